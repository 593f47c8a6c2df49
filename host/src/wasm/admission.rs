//! Which modules are let in. Checked before anything of a module is compiled, staged or run, by
//! the same code on every node; a refusal names what and where.

use wasmparser::{Encoding, Parser, Payload};
use wasmtime::component::Component;
use wasmtime::component::types::ComponentItem;

use crate::config::limits;

/// The only interface a guest may import.
const LOG_INTERFACE: &str = "lockstep:guest/log@0.1.0";
/// The interface a guest must export.
const MACHINE_INTERFACE: &str = "lockstep:guest/machine@0.1.0";
/// What that interface must hold.
const MACHINE_FUNCTIONS: [&str; 6] =
    ["describe", "apply", "query", "export-begin", "export-next", "import-chunk"];

/// Why a module is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is too long.
    #[error("it has {length} bytes, the limit is {limit}")]
    TooLong {
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// It is no WebAssembly at all.
    #[error("it is not a WebAssembly component: it does not begin as one")]
    NotWasm,
    /// It is WebAssembly, but not a component.
    #[error(
        "it is a core WebAssembly module, not a component: build it with `cargo xtask guests`, or \
         wrap it with wit-component"
    )]
    CoreModule,
    /// It is damaged, or uses what this version switches off.
    #[error("it is not a valid component: {0}")]
    Invalid(String),
    /// It has a memory of a kind that cannot be replicated.
    #[error("it has {0}: a guest has exactly one memory, 32-bit and not shared")]
    Memory(String),
    /// It wants something of the host that guests do not get.
    #[error("it imports {0:?}, which is not offered: a guest may import {LOG_INTERFACE:?} alone")]
    Import(String),
    /// It lacks a part of the contract.
    #[error("it does not export {0:?} of world lockstep:guest/guest@0.1.0")]
    Export(String),
    /// Its functions have other types than the contract's.
    #[error("its exports do not have the types of world lockstep:guest/guest@0.1.0: {0}")]
    Types(String),
    /// It fails when it is asked what it is.
    #[error("it cannot say what it is: {0}")]
    Describe(String),
}

/// Checks what can be seen without compiling.
pub(super) fn check_bytes(bytes: &[u8]) -> Result<(), Refusal> {
    if bytes.len() > limits::MODULE_BYTES_MAX {
        let limit = limits::MODULE_BYTES_MAX;
        return Err(Refusal::TooLong { length: bytes.len(), limit });
    }
    let invalid = |error: wasmparser::BinaryReaderError| Refusal::Invalid(error.to_string());
    let mut memories = 0;
    for (number, payload) in Parser::new(0).parse_all(bytes).enumerate() {
        match payload {
            Err(_) if number == 0 => return Err(Refusal::NotWasm),
            Err(error) => return Err(invalid(error)),
            Ok(Payload::Version { encoding: Encoding::Module, .. }) if number == 0 => {
                return Err(Refusal::CoreModule);
            }
            Ok(Payload::MemorySection(section)) => {
                for memory in section {
                    memories += 1;
                    check_memory(&memory.map_err(invalid)?)?;
                }
            }
            Ok(_) => {}
        }
    }
    match memories {
        1 => Ok(()),
        0 => Err(Refusal::Memory("no memory".to_owned())),
        count => Err(Refusal::Memory(format!("{count} memories"))),
    }
}

fn check_memory(memory: &wasmparser::MemoryType) -> Result<(), Refusal> {
    let kinds = [
        (memory.shared, "a shared memory"),
        (memory.memory64, "a 64-bit memory"),
        (memory.page_size_log2.is_some(), "a memory with pages of its own size"),
    ];
    match kinds.into_iter().find(|(found, _)| *found) {
        Some((_, kind)) => Err(Refusal::Memory(kind.to_owned())),
        None => Ok(()),
    }
}

/// Checks the world of a compiled component: what it wants and what it offers.
pub(super) fn check_world(component: &Component) -> Result<(), Refusal> {
    let engine = component.engine();
    let world = component.component_type();
    if let Some((name, _)) = world.imports(engine).find(|(name, _)| *name != LOG_INTERFACE) {
        return Err(Refusal::Import(name.to_owned()));
    }
    let missing = |name: &str| Refusal::Export(name.to_owned());
    let machine =
        world.get_export(engine, MACHINE_INTERFACE).ok_or_else(|| missing(MACHINE_INTERFACE))?;
    let ComponentItem::ComponentInstance(machine) = machine.ty else {
        return Err(missing(MACHINE_INTERFACE));
    };
    for function in MACHINE_FUNCTIONS {
        if machine.get_export(engine, function).is_none() {
            return Err(missing(&format!("{MACHINE_INTERFACE}.{function}")));
        }
    }
    Ok(())
}
