//! One live instance of a module, and forks of it.
//!
//! It does not decide what to do about a failure: after one the instance is spent, and whoever
//! holds it drops it.

use super::caller::{Caller, Emit};
use super::engine::{Engine, Module};
use super::guest_log::GuestLog;
use super::limits::{Limits, Room};
use super::memory::{Image, Memory, Shadow};

/// Where and when a call stands; see `context` in `wit/guest.wit`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// Index of the log entry.
    pub index: u64,
    /// Milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Differs from entry to entry.
    pub seed: u64,
}

/// Requests laid end to end: request `i` is `data[ends[i-1]..ends[i]]`.
///
/// Whoever makes one sees to it that `ends` never falls and its last is the length of `data`.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The bytes of all requests.
    pub data: &'a [u8],
    /// Where each ends.
    pub ends: &'a [u32],
}

/// Replies laid out as a batch, to the first request and those after it, in order: a guest may
/// leave the rest for another call. Checked to be so, and within the limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replies {
    /// The bytes of all replies.
    pub data: Vec<u8>,
    /// Where each ends.
    pub ends: Vec<u32>,
    /// Positions of the requests that were refused, rising.
    pub rejected: Vec<u32>,
}

/// Why a call did not come to an answer. All but `Host` are the same on every replica.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The guest trapped; the text is the trap's, and the guest's own last words.
    #[error("the guest trapped: {0}")]
    Trapped(String),
    /// No instance could be made of it, within its limits and the fuel for that.
    #[error("the guest does not start: {0}")]
    NoStart(String),
    /// It used up all the fuel that the call had.
    #[error("the guest used up its fuel of {fuel} ({limit})")]
    OutOfFuel {
        /// The limit that gave it so much, by its name.
        limit: &'static str,
        /// How much it had, and used.
        fuel: u64,
    },
    /// A reply, or all of them together, is over the limit.
    #[error("a reply has {length} bytes or more, and the limit is {limit}")]
    TooLarge {
        /// Its length in bytes, as far as it was looked at.
        length: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// It does not take in an export; the words are its own, made harmless.
    #[error("the guest refuses the import: {0}")]
    Refused(String),
    /// It broke the contract in another way.
    #[error("the guest broke its contract: {0}")]
    Malformed(String),
    /// The host failed, not the guest. The node must stop.
    #[error("the host failed a guest: {0}")]
    Host(String),
}

/// Whoever takes an export wants no more of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportStopped;

/// Why an export is not complete.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// The guest failed.
    #[error(transparent)]
    Guest(#[from] Failure),
    /// The receiver stopped it. The instance may be used on.
    #[error("the export was stopped")]
    Stopped,
}

impl From<ExportStopped> for ExportError {
    fn from(_: ExportStopped) -> Self {
        Self::Stopped
    }
}

/// A live instance. After a [`Failure`] it must not be called again.
///
/// Calls must be made on a thread with [`super::THREAD_STACK_BYTES`] of stack.
pub struct Guest {
    caller: Caller,
    memory: Memory,
}

/// An instance that begins each call in the state of another, the original, as it was when
/// [`Fork::follow`] was called last.
///
/// It is used where the original is not called meanwhile. After a [`Failure`] it must not be
/// called again.
pub struct Fork {
    caller: Caller,
    shadow: Shadow,
}

impl Guest {
    /// Makes an instance in the state before the first command, with the default limits.
    pub fn instantiate(engine: &Engine, module: &Module) -> Result<Self, Failure> {
        Self::instantiate_with(engine, module, Limits::default())
    }

    /// Makes an instance with limits of its own.
    pub fn instantiate_with(
        engine: &Engine,
        module: &Module,
        limits: Limits,
    ) -> Result<Self, Failure> {
        let (caller, memory) = start(engine, module, limits, None)?;
        Ok(Self { caller, memory })
    }

    /// Makes an instance in the state of an image, which is used up: its pages become the
    /// instance's memory.
    pub fn restore(
        engine: &Engine,
        module: &Module,
        limits: Limits,
        image: Image,
    ) -> Result<Self, Failure> {
        let (caller, memory) = start(engine, module, limits, Some(image.bytes()))?;
        check_length(&memory, image.bytes())?;
        memory.restore(image).map_err(host)?;
        Ok(Self { caller, memory })
    }

    /// Copies the memory. `room` is an image that is no longer needed: its pages are used
    /// again, which spares the system handing out new ones.
    pub fn image(&self, room: Option<Image>) -> Result<Image, Failure> {
        self.memory.image(room).map_err(host)
    }

    /// Ends the instance; its memory is room for an image.
    pub fn into_room(self) -> Option<Image> {
        drop(self.caller);
        self.memory.into_image()
    }

    /// Makes a fork of this instance, which must not be called while the fork is.
    pub fn fork(&self, engine: &Engine, module: &Module) -> Result<Fork, Failure> {
        let bytes = self.memory.bytes();
        let limits = *self.caller.room().limits();
        let (caller, memory) = start(engine, module, limits, Some(bytes))?;
        check_length(&memory, bytes)?;
        let shadow = memory.shadow(&self.memory).map_err(host)?;
        Ok(Fork { caller, shadow })
    }

    /// Applies the commands of one entry.
    pub fn apply(&mut self, context: &Context, batch: Batch<'_>) -> Result<Replies, Failure> {
        self.caller.apply(context, batch)
    }

    /// Hands the guest the next part of an export that has `schema`.
    pub fn import(&mut self, schema: u32, chunk: &[u8], last: bool) -> Result<(), Failure> {
        self.caller.import(schema, chunk, last)
    }

    /// Gives it other limits from the next call on. What it holds beyond them it keeps.
    pub fn set_limits(&mut self, limits: Limits) {
        self.caller.set_limits(limits);
    }

    /// Lets what it logs from now on be written.
    pub fn set_log(&mut self, log: GuestLog) {
        self.caller.set_log(log);
    }

    /// Whether the calls from now on are repeated, so that what they log was written before.
    pub fn set_quiet(&mut self, quiet: bool) {
        self.caller.set_quiet(quiet);
    }

    /// Size of its linear memory, in bytes. It never shrinks.
    pub fn memory_bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// Fuel that the last call left, out of its limit: equal on every replica.
    pub fn fuel_left(&self) -> u64 {
        self.caller.fuel_left()
    }
}

impl Fork {
    /// Makes a fork of an image, which must not change as long as the fork is in use.
    pub fn of_image(
        engine: &Engine,
        module: &Module,
        limits: Limits,
        image: &Image,
    ) -> Result<Self, Failure> {
        let bytes = image.bytes();
        let (caller, memory) = start(engine, module, limits, Some(bytes))?;
        check_length(&memory, bytes)?;
        let shadow = memory.shadow_image(image).map_err(host)?;
        Ok(Self { caller, shadow })
    }

    /// Lets what it logs from now on be written.
    pub fn set_log(&mut self, log: GuestLog) {
        self.caller.set_log(log);
    }

    /// Throws away what its calls changed, so that it shows the original as it is now. False where
    /// it can't, because memory grew, here or there: a new fork must be made.
    pub fn follow(&mut self, original: &Guest) -> Result<bool, Failure> {
        if !self.shadow.covers(&original.memory) {
            return Ok(false);
        }
        self.shadow.throw_away(&original.memory).map_err(host)?;
        Ok(true)
    }

    /// Does a bounded piece of work ahead of queries, so that they take less; false when nothing
    /// is left to do. It cannot fail: whatever it does not do, a query does.
    pub fn warm(&mut self, original: &Guest) -> bool {
        // A fork of another length is not used again.
        self.shadow.covers(&original.memory) && self.shadow.warm(&original.memory)
    }

    /// Applies commands to the fork alone.
    pub fn apply(&mut self, context: &Context, batch: Batch<'_>) -> Result<Replies, Failure> {
        self.shadow.watch(|| self.caller.apply(context, batch)).map_err(host)?
    }

    /// Answers queries, with this much fuel for all of them, or their limit if that is less.
    pub fn query(
        &mut self,
        context: &Context,
        batch: Batch<'_>,
        fuel_max: u64,
    ) -> Result<Replies, Failure> {
        self.shadow.watch(|| self.caller.query(context, batch, fuel_max)).map_err(host)?
    }

    /// Hands on the whole state, chunk by chunk, and returns the version of its schema.
    pub fn export(&mut self, emit: &mut Emit<'_>) -> Result<u32, ExportError> {
        self.shadow.watch(|| self.caller.export(emit)).map_err(host)?
    }

    /// Fuel that the last call left, out of its limit.
    pub fn fuel_left(&self) -> u64 {
        self.caller.fuel_left()
    }
}

fn start(
    engine: &Engine,
    module: &Module,
    limits: Limits,
    memory_bytes: Option<usize>,
) -> Result<(Caller, Memory), Failure> {
    let manifest = module.manifest();
    // What a copy holds may be more than its machine was limited to since.
    let at_start = if memory_bytes.is_some() { Limits::largest() } else { limits };
    let room = Room::new(&manifest.name, at_start);
    let schema = manifest.schema_version;
    let started = Caller::start(engine.inner(), module.prepared(), room, schema, memory_bytes);
    let (mut caller, memory) = started?;
    caller.set_limits(limits);
    Ok((caller, memory))
}

/// An instance may be longer than its original from the start, if the image is of another module.
fn check_length(memory: &Memory, bytes: usize) -> Result<(), Failure> {
    if memory.bytes() == bytes {
        return Ok(());
    }
    let started = memory.bytes();
    Err(Failure::Host(format!("an image of {bytes} bytes for a guest that starts with {started}")))
}

fn host(error: std::io::Error) -> Failure {
    Failure::Host(format!("guest memory: {error}"))
}
