//! The one constructor of the engine, and modules compiled by it.
//!
//! Invariant: two nodes whose [`Engine::profile`] is equal run a module to the same answers, the
//! same failures and the same use of fuel, on any machine of that architecture.

use std::hash::{Hash, Hasher};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};
use wasmtime::component::{Component, Linker};
use wasmtime::{Config, OperatorCost, OptLevel, Strategy, VariableOperatorCost, WasmFeatures};

use super::admission::{self, Error, Shape};
use super::bindings::{self, Prepared};
use super::cache;
use super::caller::Caller;
use super::guest::Failure;
use super::limits::{Limits, Room, THREAD_STACK_BYTES};
use super::memory::{self, HostMemory};
use super::self_test;
use crate::config::limits;
use crate::types::ModuleDigest;

/// Version of our own rules for applying an entry: what is called when, with what, and what its
/// result comes to. A change that could make replicas differ raises it.
const APPLY_VERSION: u32 = 4;

/// The processor that code is made for: the baseline of its architecture, never the features of
/// the machine it happens to run on.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
const TARGET: &str = "x86_64-unknown-linux-gnu";
#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
const TARGET: &str = "aarch64-unknown-linux-gnu";
#[cfg(all(target_os = "macos", target_arch = "aarch64"))]
const TARGET: &str = "aarch64-apple-darwin";

/// Addresses set aside for a guest's memory: all that 32 bits reach, so that it never moves and
/// no access needs a check.
pub(super) const MEMORY_RESERVATION_BYTES: u64 = 4 << 30;

/// Whether this process stands for another build; see [`stand_for_another_build`].
static ANOTHER_BUILD: AtomicBool = AtomicBool::new(false);

/// Lets every engine of this process count other fuel, by which its profile is another, as that of
/// a build of another version would be. For tests of engine changes; the daemon never calls it.
pub fn stand_for_another_build() {
    ANOTHER_BUILD.store(true, Ordering::Relaxed);
}

/// What each operator costs, in fuel. One that calls the host, as growing memory does, takes as
/// long as many others; memory that is copied or filled costs its bytes.
fn cost() -> OperatorCost {
    let variable =
        VariableOperatorCost { memory_grow_per_page: 255, ..VariableOperatorCost::new() };
    OperatorCost {
        MemoryGrow: 255,
        MemoryCopy: 10,
        MemoryFill: 10,
        variable,
        ..OperatorCost::new()
    }
}

/// What each costs in another build.
fn other_cost() -> OperatorCost {
    OperatorCost { Call: 3, ..cost() }
}

/// Compiles modules. Clones share one engine.
#[derive(Clone)]
pub struct Engine(Arc<Shared>);

struct Shared {
    engine: wasmtime::Engine,
    linker: Linker<Room>,
    profile: String,
}

/// A compiled module and what it says of itself. Clones share the code.
#[derive(Clone)]
pub struct Module {
    component: Component,
    prepared: Prepared<Room>,
    manifest: Arc<Manifest>,
    shape: Arc<Shape>,
    warnings: Arc<[String]>,
}

/// What a guest says of itself; see `manifest` in `wit/guest.wit`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Its name, 1 to 64 bytes.
    pub name: String,
    /// Version of the state that it exports.
    pub schema_version: u32,
    /// Versions that it imports, its own among them.
    pub importable_schemas: Vec<u32>,
    /// Its answers depend on the time.
    pub uses_time: bool,
    /// Names of the requests that its `query` answers, for people and tools.
    pub read_only: Vec<String>,
}

impl Engine {
    /// Sets the engine up.
    ///
    /// # Errors
    /// [`Error::Engine`] when this machine can't run it.
    pub fn new() -> Result<Self, Error> {
        Self::with(if ANOTHER_BUILD.load(Ordering::Relaxed) { other_cost() } else { cost() })
    }

    /// An engine of another profile, beside those of this build.
    #[cfg(test)]
    pub(crate) fn of_another_build() -> Result<Self, Error> {
        Self::with(other_cost())
    }

    fn with(cost: OperatorCost) -> Result<Self, Error> {
        let refused = |error: wasmtime::Error| Error::Engine(format!("{error:#}"));
        let engine =
            config(cost).and_then(|config| wasmtime::Engine::new(&config)).map_err(refused)?;
        memory::prepare().map_err(|error| Error::Engine(format!("signals: {error}")))?;
        let mut linker = Linker::new(&engine);
        bindings::add_log(&mut linker).map_err(refused)?;
        let profile = profile(&engine);
        Ok(Self(Arc::new(Shared { engine, linker, profile })))
    }

    /// Hash of all that decides what a guest does: compiler and its version, settings,
    /// architecture, limits, and our own rules. Lower-case hexadecimal.
    pub fn profile(&self) -> &str {
        &self.0.profile
    }

    /// Admits and compiles a module, which may take so much work by estimate, and asks it to
    /// describe itself. It takes from milliseconds to seconds: call it where blocking is fine. Any
    /// thread will do.
    ///
    /// # Errors
    /// Why the bytes can't be a guest.
    pub fn compile(&self, bytes: &[u8], work_max: u64) -> Result<Module, Error> {
        let compile = || {
            Component::from_binary(&self.0.engine, bytes)
                .map_err(|error| Error::Compile(format!("{error:#}")))
        };
        self.admit(bytes, work_max, compile)
    }

    /// The same with code that [`Engine::seal`] gave for the module that has this digest. It is
    /// admitted and described as if it was compiled now.
    ///
    /// # Errors
    /// Why the bytes can't be a guest, or [`Error::Code`] when the code is not such code.
    pub fn load(
        &self,
        bytes: &[u8],
        digest: &ModuleDigest,
        sealed: &[u8],
    ) -> Result<Module, Error> {
        self.admit(bytes, u64::MAX, || cache::open(&self.0.engine, sealed, self.profile(), digest))
    }

    /// The code of a module, which has this digest, for a later [`Engine::load`].
    ///
    /// # Errors
    /// [`Error::Code`] when it cannot be given out.
    pub fn seal(&self, module: &Module, digest: &ModuleDigest) -> Result<Vec<u8>, Error> {
        cache::seal(&module.component, self.profile(), digest)
    }

    fn admit(
        &self,
        bytes: &[u8],
        work_max: u64,
        code: impl FnOnce() -> Result<Component, Error> + Send,
    ) -> Result<Module, Error> {
        let shape = admission::inspect(bytes, &Limits::for_admission(), work_max)?;
        // Both the compiler and `describe` may recurse deeper than the caller's stack.
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("wasm-compile".to_owned())
                .stack_size(THREAD_STACK_BYTES)
                .spawn_scoped(scope, || self.link(code()?, shape))
                .map_err(|error| Error::Engine(format!("no thread to compile on: {error}")))?
                .join()
                .unwrap_or_else(|_| Err(Error::Compile("the compiler gave up".to_owned())))
        })
    }

    fn link(&self, component: Component, shape: Shape) -> Result<Module, Error> {
        let contract = |error: wasmtime::Error| Error::Contract(format!("{error:#}"));
        let linked = self.0.linker.instantiate_pre(&component).map_err(contract)?;
        let prepared = Prepared::new(linked).map_err(contract)?;
        let manifest = Caller::describe(&self.0.engine, &prepared)?;
        manifest.check()?;
        let (manifest, shape) = (Arc::new(manifest), Arc::new(shape));
        let mut module = Module { component, prepared, manifest, shape, warnings: Arc::default() };
        module.warnings = self_test::run(self, &module)?.into();
        Ok(module)
    }

    pub(super) fn inner(&self) -> &wasmtime::Engine {
        &self.0.engine
    }
}

impl Module {
    /// What the guest says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What it is made of.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Refuses a module that takes more work to compile than this, though it is compiled.
    ///
    /// # Errors
    /// [`Error::TooMuchWork`].
    pub fn check_work(&self, limit: u64) -> Result<(), Error> {
        self.shape.check_work(limit)
    }

    /// What its author should know of it, one sentence each: what the self-test saw that is no
    /// reason to refuse it.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    pub(super) fn prepared(&self) -> &Prepared<Room> {
        &self.prepared
    }
}

impl Manifest {
    fn check(&self) -> Result<(), Error> {
        let wrong = |text: String| Err(Error::Manifest(text));
        if self.name.is_empty() || self.name.len() > 64 {
            return wrong(format!("the name has {} bytes, not 1 to 64", self.name.len()));
        }
        if self.name.contains(char::is_control) {
            return wrong("the name has control characters".to_owned());
        }
        if !self.importable_schemas.contains(&self.schema_version) {
            let version = self.schema_version;
            return wrong(format!("it cannot import schema {version}, which it exports"));
        }
        if self.importable_schemas.len() > 1024 || self.read_only.len() > 1024 {
            return wrong("it lists more than 1024 schemas or requests".to_owned());
        }
        Ok(())
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Host(reason) => Self::Engine(reason),
            Failure::NoStart(reason) => Self::NoStart(reason),
            failure => Self::Describe(failure),
        }
    }
}

fn config(cost: OperatorCost) -> wasmtime::Result<Config> {
    let mut config = Config::new();
    config
        .strategy(Strategy::Cranelift)
        .cranelift_opt_level(OptLevel::Speed)
        .cranelift_nan_canonicalization(true)
        .target(TARGET)?
        // Results must be equal, or not be at all.
        .wasm_features(WasmFeatures::all().difference(admission::FEATURES), false)
        .wasm_features(admission::FEATURES, true)
        .relaxed_simd_deterministic(true)
        .concurrency_support(false)
        .consume_fuel(true)
        .operator_cost(cost)
        .max_wasm_stack(limits::GUEST_STACK_BYTES)
        // Not used, but an engine must have it no smaller than the other.
        .async_stack_size(THREAD_STACK_BYTES)
        .memory_reservation(MEMORY_RESERVATION_BYTES)
        .memory_may_move(false)
        .memory_init_cow(false)
        .with_host_memory(Arc::new(HostMemory))
        // The text of a trap is replicated, and a backtrace is no part of it. That there is one
        // tells an error in the middle of a call from one after it.
        .wasm_backtrace_max_frames(Some(NonZeroUsize::MIN));
    Ok(config)
}

fn profile(engine: &wasmtime::Engine) -> String {
    let mut hasher = ProfileHasher(Sha256::new());
    // Wasmtime's own: its version, the target, the compiler's flags, features and fuel costs.
    engine.precompile_compatibility_hash().hash(&mut hasher);
    APPLY_VERSION.hash(&mut hasher);
    std::env::consts::ARCH.hash(&mut hasher);
    limits::GUEST_STACK_BYTES.hash(&mut hasher);
    let charges = [
        limits::LOG_FUEL,
        limits::LOG_FUEL_PER_BYTE,
        limits::EXPORT_SMALL_CHUNKS_MAX,
        limits::EXPORT_CHUNK_BYTES_MIN,
        limits::START_FUEL,
    ];
    charges.hash(&mut hasher);
    // Voters of one profile come to one estimate, and so to one answer.
    admission::WORK_WEIGHTS.hash(&mut hasher);
    format!("{:?}", Limits::default()).hash(&mut hasher);
    hex::encode(hasher.0.finalize())
}

/// Lets a `Hash` feed a hash that is the same in every build, as std's default needn't be.
struct ProfileHasher(Sha256);

impl Hasher for ProfileHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        unreachable!("the profile is taken from the inner hash")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manifest that no operator or upgrade could use is refused.
    #[test]
    fn manifests_are_checked() {
        let good = Manifest {
            name: "some".to_owned(),
            schema_version: 2,
            importable_schemas: vec![1, 2],
            uses_time: false,
            read_only: Vec::new(),
        };
        good.check().unwrap();
        let refusal = |manifest: Manifest| manifest.check().unwrap_err().to_string();
        let named = |name: &str| refusal(Manifest { name: name.to_owned(), ..good.clone() });
        let begin = "the guest's manifest is wrong: ";
        assert_eq!(named(""), format!("{begin}the name has 0 bytes, not 1 to 64"));
        assert_eq!(named(&"x".repeat(65)), format!("{begin}the name has 65 bytes, not 1 to 64"));
        assert_eq!(named("a\nb"), format!("{begin}the name has control characters"));
        let cannot = refusal(Manifest { schema_version: 3, ..good.clone() });
        assert_eq!(cannot, format!("{begin}it cannot import schema 3, which it exports"));
        let many = refusal(Manifest { importable_schemas: (0..1025).collect(), ..good.clone() });
        assert_eq!(many, format!("{begin}it lists more than 1024 schemas or requests"));
    }
}
