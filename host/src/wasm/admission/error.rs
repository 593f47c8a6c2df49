//! Why bytes are not admitted: what is wrong with them, and where.

use std::fmt;

use super::super::bindings::{LOG, MACHINE};
use super::super::guest::Failure;

/// Why bytes cannot become a guest. All of them but `Engine` and `Code` are the module's fault.
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
    /// It breaks a rule of WebAssembly, or uses a part of it that is not offered.
    #[error("the component is not valid here: {reason} at offset {offset:#x}")]
    Invalid {
        /// What the validator says.
        reason: String,
        /// Where, in bytes.
        offset: usize,
    },
    /// It has more of something than a guest may.
    #[error("the component has {count} {what}, and the limit is {limit}")]
    TooMany {
        /// What is counted, in the plural.
        what: &'static str,
        /// How many there are, as far as they were counted.
        count: u64,
        /// The limit.
        limit: u64,
    },
    /// A function is longer, or has more locals, than one may.
    #[error("{place} has {count} {what}, and the limit is {limit}")]
    FunctionTooLarge {
        /// Which function.
        place: Place,
        /// What is counted, in the plural.
        what: &'static str,
        /// How many there are, as far as they were counted.
        count: u64,
        /// The limit.
        limit: u64,
    },
    /// Compiling it is more work than the cluster allows.
    #[error(
        "compiling the component takes {work} units of work by estimate, and the limit is {limit} \
         (compile_work_max of the cluster); {} of them are for {}", heaviest.work, heaviest.place
    )]
    TooMuchWork {
        /// What it takes.
        work: u64,
        /// The limit.
        limit: u64,
        /// The function that takes most of it.
        heaviest: Heaviest,
    },
    /// It wants something that is not offered.
    #[error("the component imports `{0}`, which is not offered: the only import is `{LOG}`")]
    Import(String),
    /// It lacks the export that makes it a guest.
    #[error("the component does not export `{MACHINE}`, so it is of another world than `guest`")]
    MissingExport,
    /// An import or export has our name and another type.
    #[error("the component does not fit the contract: {0}")]
    Contract(String),
    /// It is put together from parts in a way that hides how often each runs.
    #[error(
        "the component {what} at offset {offset:#x}: a guest is one component, and runs each core \
         module of its own once"
    )]
    Composed {
        /// What it does.
        what: &'static str,
        /// Where, in bytes.
        offset: usize,
    },
    /// It uses a function of the component model that keeps state outside of its memory.
    #[error(
        "the component uses the canonical function `{name}` at offset {offset:#x}, and may only \
         lift and lower functions: its state is its memory alone"
    )]
    Canonical {
        /// Which function.
        name: String,
        /// Where, in bytes.
        offset: usize,
    },
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
        limit: u64,
    },
    /// A mutable global that code outside of its module could write, or a second that is written.
    #[error("core module {module} {what}, and a guest's state is its memory alone")]
    Global {
        /// Number of the core module.
        module: u32,
        /// What it does with the global.
        what: String,
    },
    /// An instruction changes what no image of the memory holds.
    #[error("{place} uses `{name}`, which changes more than its memory")]
    Instruction {
        /// Which function, and where in it.
        place: Place,
        /// The instruction.
        name: &'static str,
    },
    /// A function may leave the stack pointer elsewhere than it found it.
    #[error("{place} writes global {global}, and {reason}")]
    StackPointer {
        /// Which function, and where in it.
        place: Place,
        /// The global.
        global: u32,
        /// What is missing.
        reason: &'static str,
    },
    /// Compiled code that is not what this engine made of this module.
    #[error("compiled code cannot be used: {0}")]
    Code(String),
    /// The engine refuses the code.
    #[error("the component cannot be compiled: {0}")]
    Compile(String),
    /// A probe went otherwise on a copy of its state than on itself.
    #[error("the guest does not repeat itself: {where_run} has another {what}")]
    NotRepeatable {
        /// What the probe ran on.
        where_run: &'static str,
        /// What differs.
        what: &'static str,
    },
    /// No instance of it can be made.
    #[error("the guest does not start: {0}")]
    NoStart(String),
    /// It fails whatever it is asked.
    #[error(
        "the guest fails in every one of the {count} probe {what} of the self-test, such as \
         {probe}: {failure}. It must answer what it cannot read by a rejection"
    )]
    FailsAlways {
        /// What the probes were, in the plural.
        what: &'static str,
        /// How many there were.
        count: usize,
        /// One of them, made printable.
        probe: String,
        /// How that one failed.
        failure: Failure,
    },
    /// Its state cannot leave or enter.
    #[error("the guest cannot {what}, {when}: {failure}")]
    RoundTrip {
        /// What it was to do.
        what: &'static str,
        /// In which state.
        when: &'static str,
        /// How it failed.
        failure: Failure,
    },
    /// What it takes in is not what it exported.
    #[error(
        "the guest exports other bytes once it has taken in its own export, {when}: {after} bytes, \
         and {before} before; they differ from byte {place} on"
    )]
    ExportDiffers {
        /// In which state.
        when: &'static str,
        /// Length of the export that it took in.
        before: usize,
        /// Length of the one that it made then.
        after: usize,
        /// The first byte that differs.
        place: usize,
    },
    /// Its `describe` failed.
    #[error("the guest cannot describe itself: {0}")]
    Describe(Failure),
    /// Its `describe` answered something that is no manifest.
    #[error("the guest's manifest is wrong: {0}")]
    Manifest(String),
}

impl From<wasmparser::BinaryReaderError> for Error {
    fn from(error: wasmparser::BinaryReaderError) -> Self {
        Self::Invalid { reason: error.message().to_owned(), offset: error.offset() }
    }
}

/// The function that takes a compiler most work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heaviest {
    /// Which function.
    pub place: Place,
    /// The work that it takes by estimate.
    pub work: u64,
}

/// A place in the code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Number of the core module in the component.
    pub module: u32,
    /// Index of the function in the module, its imports counted.
    pub function: u32,
    /// Its name, where the module has names.
    pub name: Option<String>,
    /// Bytes from the beginning of the component.
    pub offset: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "function {}", self.function)?;
        if let Some(name) = &self.name {
            write!(f, " `{name}`")?;
        }
        write!(f, " of core module {} (offset {:#x})", self.module, self.offset)
    }
}
