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
    if !bytes.starts_with(b"\0asm") {
        return Err(Error::NotComponent("it does not begin as WebAssembly does".to_owned()));
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

#[cfg(test)]
mod tests {
    use super::super::tests::{ENGINE, component};
    use super::*;

    /// A section of a component: its id, and what is in it.
    fn section(id: u8, content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len()).unwrap();
        assert!(length < 0x80, "one byte of length");
        [&[id, length], content].concat()
    }

    /// A component of these sections.
    fn sections(sections: &[Vec<u8>]) -> Vec<u8> {
        [b"\0asm\x0d\0\x01\0".to_vec(), sections.concat()].concat()
    }

    fn named(name: &str) -> Vec<u8> {
        [&[1, 0, u8::try_from(name.len()).unwrap()], name.as_bytes()].concat()
    }

    /// A core module whose memory has this type.
    fn with_memory(memory: &[u8]) -> Vec<u8> {
        let memory = section(5, &[&[1], memory].concat());
        section(1, &[&b"\0asm\x01\0\0\0"[..], &memory].concat())
    }

    fn refusal(bytes: &[u8]) -> String {
        ENGINE.compile(bytes).err().expect("it is refused").to_string()
    }

    /// The component of a guest with all of one name in it replaced by another.
    fn renamed(guest: &str, from: &str, to: &str) -> Vec<u8> {
        assert_eq!(from.len(), to.len());
        let mut bytes = component(guest);
        let mut found = 0;
        for start in 0..bytes.len() - from.len() {
            if bytes[start..].starts_with(from.as_bytes()) {
                bytes[start..start + to.len()].copy_from_slice(to.as_bytes());
                found += 1;
            }
        }
        assert!(found > 0, "{from} is in {guest}");
        bytes
    }

    /// What is no component is refused as that.
    #[test]
    fn other_files_are_refused() {
        let begin = "not a WebAssembly component: ";
        for bytes in
            [&b""[..], b"SET k v", b"\x7fELF\x02\x01\x01\0", b"\0asm", b"\0asm\x0d\0\x01\0\x07"]
        {
            let reason = refusal(bytes);
            assert!(reason.starts_with(begin), "{reason}");
        }
        let core = "it is a core module; wrap it as a component";
        assert_eq!(refusal(b"\0asm\x01\0\0\0"), format!("{begin}{core}"));
        let cut = &component("counter")[..20_000];
        assert!(refusal(cut).starts_with(begin), "{}", refusal(cut));
        let reason = refusal(&vec![0; MODULE_BYTES_MAX + 1]);
        assert_eq!(reason, "the module has 33554433 bytes, and the limit is 33554432");
    }

    /// An import that is not offered is named, also when it hides behind the one that is.
    #[test]
    fn imports_are_named() {
        let instance_type = section(7, &[1, 0x42, 0]);
        let import = section(10, &[named("wasi:io/poll@0.2.0"), vec![5, 0]].concat());
        let offered = "the only import is `lockstep:guest/log@0.1.0`";
        assert_eq!(
            refusal(&sections(&[instance_type, import])),
            format!("the component imports `wasi:io/poll@0.2.0`, which is not offered: {offered}")
        );
        let other = renamed("counter", LOG, "lockstep:guest/lag@0.1.0");
        assert!(
            refusal(&other).contains("imports `lockstep:guest/lag@0.1.0`"),
            "{}",
            refusal(&other)
        );
    }

    /// A component of another world, or with other functions or types under our names, is refused.
    #[test]
    fn the_contract_is_held() {
        let missing = "the component does not export `lockstep:guest/machine@0.1.0`, so it is of \
                       another world than `guest`";
        assert_eq!(refusal(&sections(&[])), missing);
        let later = renamed("counter", MACHINE, "lockstep:guest/machine@0.2.0");
        assert_eq!(refusal(&later), missing);
        for (from, to) in [("export-begin", "export-bogus"), ("uses-time", "uses-tame")] {
            let reason = refusal(&renamed("counter", from, to));
            assert!(reason.starts_with("the component does not fit the contract: "), "{reason}");
        }
    }

    /// One memory, of 32 bits, its own, and within the limit from the start.
    #[test]
    fn memories_are_checked() {
        let export = section(11, &[named(MACHINE), vec![5, 0, 0]].concat());
        let with = |memories: &[&[u8]]| {
            let modules: Vec<_> = memories.iter().map(|memory| with_memory(memory)).collect();
            refusal(&sections(&[modules.concat(), export.clone()]))
        };
        assert_eq!(with(&[]), "the component has 0 memories, and a guest has one");
        assert_eq!(with(&[&[0, 1], &[0, 1]]), "the component has 2 memories, and a guest has one");
        let kind = |kind: &str| format!("the component's memory is {kind}, which is not offered");
        assert_eq!(with(&[&[3, 1, 1]]), kind("shared"));
        assert_eq!(with(&[&[4, 1]]), kind("64-bit"));
        assert_eq!(
            with(&[&[0, 0x81, 0x80, 0x02]]),
            "the component starts with 2147549184 bytes of memory, and the limit is 2147483648"
        );
    }
}
