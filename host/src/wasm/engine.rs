//! The one way an engine is made, and how a component becomes a module that can be run.
//!
//! Every setting that could make two nodes compute differently is set here, and all of them are
//! part of the engine profile that nodes compare before they talk.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use wasmtime::component::{Component, InstancePre, Linker};
use wasmtime::{Config, OptLevel, RegallocAlgorithm, Strategy};

use super::admission::{self, Refusal};
use super::bindings::{self, GuestPre};
use super::guest::{self, Failure, State};
use super::{Error, bindings::lockstep::guest::log};
use crate::config::limits;

/// Version of wasmtime, pinned in the workspace manifest; a test holds the two together.
const WASMTIME_VERSION: &str = "48.0.8";
/// Version of our own rules of apply: batching, limits, what a failure does.
const APPLY_VERSION: u32 = 1;
/// The target code is compiled for: a baseline, so that nodes with other processors agree.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Address space reserved for each memory, in bytes: all that 32 bits can reach, so that a memory
/// never moves.
const MEMORY_RESERVATION_BYTES: u64 = 4 << 30;

/// A sandbox. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    engine: wasmtime::Engine,
    linker: Arc<Linker<State>>,
    profile: Arc<str>,
}

/// A component that was let in and compiled. Cheap to clone.
#[derive(Clone)]
pub struct Module {
    instance: GuestPre<State>,
    manifest: Arc<Manifest>,
}

/// What a guest says of itself; docs in `wit/guest.wit`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Name of the guest, for people.
    pub name: String,
    /// Version of the state it exports.
    pub schema_version: u32,
    /// Versions it imports.
    pub importable_schemas: Vec<u32>,
    /// Names of the requests it answers as queries.
    pub read_only: Vec<String>,
    /// Its answers depend on the entry's time.
    pub uses_time: bool,
}

impl Engine {
    /// Sets up the sandbox.
    ///
    /// # Errors
    /// On a machine of another architecture than the profile's, or without the memory it needs.
    pub fn new() -> Result<Self, Error> {
        let host = |error: wasmtime::Error| Error::Host(format!("{error:#}"));
        let engine = wasmtime::Engine::new(&config().map_err(host)?).map_err(host)?;
        let mut linker = Linker::new(&engine);
        log::add_to_linker::<State, State>(&mut linker, |state| state).map_err(host)?;
        Ok(Self { engine, linker: Arc::new(linker), profile: profile().into() })
    }

    /// Identifies everything that must be equal for replicas to stay equal, as hexadecimal.
    pub fn profile(&self) -> &str {
        &self.profile
    }

    /// Lets a component in, compiles it, and asks it what it is. Takes long, and must not run on
    /// a thread that others wait for.
    ///
    /// # Errors
    /// `Refused` names what is wrong with the module.
    pub fn compile(&self, bytes: &[u8]) -> Result<Module, Error> {
        admission::check_bytes(bytes)?;
        let component = Component::from_binary(&self.engine, bytes)
            .map_err(|error| Refusal::Invalid(root_cause(&error)))?;
        admission::check_world(&component)?;
        let types = |error: wasmtime::Error| Refusal::Types(root_cause(&error));
        let instance: InstancePre<State> =
            self.linker.instantiate_pre(&component).map_err(types)?;
        let instance = GuestPre::new(instance).map_err(types)?;
        let manifest = Arc::new(self.describe(&instance)?);
        Ok(Module { instance, manifest })
    }

    /// Asks an instance of its own what the guest is, on a thread with the stack guests need.
    fn describe(&self, instance: &GuestPre<State>) -> Result<Manifest, Error> {
        let described = std::thread::scope(|scope| {
            let spawned = std::thread::Builder::new()
                .name("describe".to_owned())
                .stack_size(limits::GUEST_STACK_BYTES + limits::HOST_STACK_BYTES)
                .spawn_scoped(scope, || guest::describe(&self.engine, instance));
            spawned.map(|thread| thread.join())
        });
        let described = described
            .map_err(|error| Error::Host(format!("cannot start a thread: {error}")))?
            .map_err(|_| Error::Host("asking a guest what it is panicked".to_owned()))?;
        let manifest = described.map_err(|failure| match failure {
            Failure::Host(reason) => Error::Host(reason),
            failure => Refusal::Describe(failure.to_string()).into(),
        })?;
        check_manifest(&manifest)?;
        Ok(manifest)
    }

    /// wasmtime's engine.
    pub(super) fn inner(&self) -> &wasmtime::Engine {
        &self.engine
    }
}

impl Module {
    /// What the guest says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What instances are made from.
    pub(super) fn instance(&self) -> &GuestPre<State> {
        &self.instance
    }
}

impl From<bindings::exports::lockstep::guest::machine::Manifest> for Manifest {
    fn from(manifest: bindings::exports::lockstep::guest::machine::Manifest) -> Self {
        Self {
            name: manifest.name,
            schema_version: manifest.schema_version,
            importable_schemas: manifest.importable_schemas,
            read_only: manifest.read_only,
            uses_time: manifest.uses_time,
        }
    }
}

fn check_manifest(manifest: &Manifest) -> Result<(), Refusal> {
    if !(1..=limits::GUEST_NAME_BYTES_MAX).contains(&manifest.name.len()) {
        return Err(Refusal::Describe("its name does not have 1 to 64 bytes".to_owned()));
    }
    if !manifest.importable_schemas.contains(&manifest.schema_version) {
        return Err(Refusal::Describe("it cannot import the schema that it exports".to_owned()));
    }
    Ok(())
}

/// All settings. Whatever changes here changes what guests compute or how they fail, so it is
/// named in `profile` too.
fn config() -> wasmtime::Result<Config> {
    let mut config = Config::new();
    config
        .target(TARGET)?
        .strategy(Strategy::Cranelift)
        .cranelift_opt_level(OptLevel::Speed)
        .cranelift_regalloc_algorithm(RegallocAlgorithm::Backtracking)
        .cranelift_nan_canonicalization(true)
        .consume_fuel(true)
        .max_wasm_stack(limits::GUEST_STACK_BYTES)
        .memory_reservation(MEMORY_RESERVATION_BYTES)
        .memory_may_move(false)
        .memory_init_cow(false)
        .concurrency_support(false)
        .wasm_relaxed_simd(false)
        .wasm_multi_memory(false)
        .wasm_memory64(false)
        .wasm_component_model(true)
        .wasm_backtrace_max_frames(None);
    Ok(config)
}

/// Hash of the settings above, of wasmtime's version and of our own rules.
fn profile() -> String {
    let text = format!(
        "wasmtime {WASMTIME_VERSION}; target {TARGET}; cranelift speed backtracking; canonical NaN; \
         fuel {} {}; default operator costs; stack {}; memory {} of {MEMORY_RESERVATION_BYTES} \
         fixed, no copy on write; tables {}; no concurrency, relaxed SIMD, threads, 64-bit or \
         second memory; replies {} {}; apply {APPLY_VERSION}",
        limits::FUEL_PER_CALL,
        limits::FUEL_PER_EXPORT_CALL,
        limits::GUEST_STACK_BYTES,
        limits::GUEST_MEMORY_BYTES_MAX,
        limits::GUEST_TABLE_ELEMENTS_MAX,
        limits::REPLY_BYTES_MAX,
        limits::REPLIES_BYTES_MAX,
    );
    let digest: [u8; 32] = Sha256::digest(text).into();
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The innermost error: the ones around it tell where wasmtime was, not what is wrong.
fn root_cause(error: &wasmtime::Error) -> String {
    error.root_cause().to_string()
}

#[cfg(test)]
mod tests {
    /// The profile names the version of wasmtime that is linked.
    #[test]
    fn the_profile_names_the_linked_wasmtime() {
        let manifest = include_str!("../../../Cargo.toml");
        let pinned = format!("wasmtime = {{ version = \"={}\"", super::WASMTIME_VERSION);
        assert!(manifest.contains(&pinned));
    }
}
