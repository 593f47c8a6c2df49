//! What a module must be before it is compiled: a component of our world, with one memory.
//!
//! It reads structure and names only. Types are checked where the component is linked, by the
//! engine, and behaviour where it is asked to describe itself.

use wasmparser::{Encoding, Parser, Payload};

use super::bindings::{LOG, MACHINE};
use super::guest::Failure;
use super::limits::Limits;
use crate::config::limits::MODULE_BYTES_MAX;

/// Why bytes cannot become a guest. All of them but `Engine` are the module's fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine cannot run on this machine.
    #[error("the wasm engine cannot be set up: {0}")]
    Engine(String),
    /// The module is over the limit.
    #[error("the module has {length} bytes, and the limit is {limit}")]
    TooLong {
        /// Its length, in bytes.
        length: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The bytes are something else.
    #[error("not a WebAssembly component: {0}")]
    NotComponent(String),
    /// It wants something that is not offered.
    #[error("the component imports `{0}`, which is not offered: the only import is `{LOG}`")]
    Import(String),
    /// It lacks the export that makes it a guest.
    #[error("the component does not export `{MACHINE}`, so it is of another world than `guest`")]
    MissingExport,
    /// An import or export has our name and another type.
    #[error("the component does not fit the contract: {0}")]
    Contract(String),
    /// It has more or less than one memory.
    #[error("the component has {0} memories, and a guest has one")]
    Memories(u32),
    /// Its memory may be seen by others, or is addressed with 64 bits.
    #[error("the component's memory is {0}, which is not offered")]
    MemoryKind(&'static str),
    /// Its memory is over the limit before it runs.
    #[error("the component starts with {bytes} bytes of memory, and the limit is {limit}")]
    MemorySize {
        /// What it starts with, in bytes.
        bytes: u64,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The engine refuses the code.
    #[error("the component cannot be compiled: {0}")]
    Compile(String),
    /// Its `describe` failed.
    #[error("the guest cannot describe itself: {0}")]
    Describe(Failure),
    /// Its `describe` answered something that is no manifest.
    #[error("the guest's manifest is wrong: {0}")]
    Manifest(String),
}

/// Checks the structure of a module.
pub(super) fn inspect(bytes: &[u8], limits: &Limits) -> Result<(), Error> {
    if bytes.len() > MODULE_BYTES_MAX {
        return Err(Error::TooLong { length: bytes.len(), limit: MODULE_BYTES_MAX });
    }
    let mut shape = Shape::default();
    for payload in Parser::new(0).parse_all(bytes) {
        let malformed = |error: wasmparser::BinaryReaderError| {
            Error::NotComponent(format!("{} at offset {:#x}", error.message(), error.offset()))
        };
        shape.read(payload.map_err(malformed)?, limits)?;
    }
    shape.check()
}

/// What was seen of a component so far.
#[derive(Default)]
struct Shape {
    /// How many modules and components the reader is inside of.
    depth: u32,
    memories: u32,
    exports_machine: bool,
}

impl Shape {
    fn read(&mut self, payload: Payload<'_>, limits: &Limits) -> Result<(), Error> {
        let malformed =
            |error: wasmparser::BinaryReaderError| Error::NotComponent(error.message().to_owned());
        match payload {
            Payload::Version { encoding: Encoding::Module, .. } if self.depth == 0 => {
                Err(Error::NotComponent("it is a core module; wrap it as a component".to_owned()))
            }
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => {
                self.depth += 1;
                Ok(())
            }
            Payload::End(_) => {
                self.depth = self.depth.saturating_sub(1);
                Ok(())
            }
            Payload::ComponentImportSection(section) if self.depth == 0 => section
                .into_iter()
                .try_for_each(|import| match import.map_err(malformed)?.name.name {
                    LOG => Ok(()),
                    other => Err(Error::Import(other.to_owned())),
                }),
            Payload::ComponentExportSection(section) if self.depth == 0 => {
                section.into_iter().try_for_each(|export| {
                    self.exports_machine |= export.map_err(malformed)?.name.name == MACHINE;
                    Ok(())
                })
            }
            Payload::MemorySection(section) => section
                .into_iter()
                .try_for_each(|memory| self.read_memory(memory.map_err(malformed)?, limits)),
            _ => Ok(()),
        }
    }

    fn read_memory(
        &mut self,
        memory: wasmparser::MemoryType,
        limits: &Limits,
    ) -> Result<(), Error> {
        self.memories += 1;
        if memory.shared {
            return Err(Error::MemoryKind("shared"));
        }
        if memory.memory64 {
            return Err(Error::MemoryKind("64-bit"));
        }
        if memory.page_size_log2.is_some() {
            return Err(Error::MemoryKind("of another page size"));
        }
        let bytes = memory.initial.saturating_mul(64 << 10);
        if usize::try_from(bytes).is_ok_and(|bytes| bytes <= limits.memory_bytes_max) {
            return Ok(());
        }
        Err(Error::MemorySize { bytes, limit: limits.memory_bytes_max })
    }

    fn check(&self) -> Result<(), Error> {
        if !self.exports_machine {
            return Err(Error::MissingExport);
        }
        if self.memories != 1 {
            return Err(Error::Memories(self.memories));
        }
        Ok(())
    }
}
