//! One live instance of a module, and its calls.
//!
//! It does not decide what to do about a failure: after one the instance is spent, and whoever
//! holds it drops it. It checks all that a guest returns, so that what it hands on fits.

use wasmtime::{Store, Trap};

use super::admission::Error;
use super::bindings::{self, Calls, Instance, Prepared};
use super::engine::{Engine, Manifest, Module};
use super::limits::{Limits, Room};
use crate::config::limits::EXPORT_CHUNK_BYTES;

/// What wasmtime's error begins with when more crosses to the host than was allowed; its type is
/// not public. The version is pinned, and a test makes a guest cross it.
const CROSSED_TOO_MUCH: &str = "too much data is being copied between the host and the guest";
/// Bytes of a guest's own words in the text of a failure.
const WORDS_BYTES_MAX: usize = 512;

/// Where and when a call stands; see `context` in `wit/guest.wit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// Replies laid out as a batch, one per request; checked to be so, and within the limits.
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
    /// It used more fuel than the call had.
    #[error("the guest ran out of fuel")]
    OutOfFuel,
    /// A reply, or all of them together, is over the limit.
    #[error("a reply has {length} bytes or more, and the limit is {limit}")]
    TooLarge {
        /// Its length in bytes, as far as it was looked at.
        length: u64,
        /// The limit, in bytes.
        limit: u64,
    },
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
    store: Store<Room>,
    instance: Instance,
    schema_version: u32,
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
        let manifest = module.manifest();
        let room = Room::new(&manifest.name, limits);
        let (store, instance) = start(engine.inner(), module.prepared(), room)?;
        Ok(Self { store, instance, schema_version: manifest.schema_version })
    }

    /// Asks a module for its manifest, on an instance of its own.
    pub(super) fn describe(
        engine: &wasmtime::Engine,
        prepared: &Prepared<Room>,
    ) -> Result<Manifest, Error> {
        let room = Room::new("(being admitted)", Limits::default());
        let (mut store, instance) =
            start(engine, prepared, room).map_err(|failure| match failure {
                // Types are checked as an instance is made; nothing else ends like this there.
                Failure::Malformed(reason) => Error::Contract(reason),
                failure => failure.into(),
            })?;
        let fuel = store.data().limits().fuel_per_call;
        begin(&mut store, fuel)?;
        let manifest = instance.lockstep_guest_machine().call_describe(&mut store);
        let manifest = manifest.map_err(|error| failure(&mut store, &error))?;
        Ok(manifest.into())
    }

    /// Applies the commands of one entry.
    pub fn apply(&mut self, context: &Context, batch: Batch<'_>) -> Result<Replies, Failure> {
        self.answer(batch, |calls, store| calls.call_apply(store, (*context).into(), batch.into()))
    }

    /// Answers requests. In this version on the live instance: the guest promises not to change
    /// its state, and the SDK holds it to that.
    pub fn query(&mut self, context: &Context, batch: Batch<'_>) -> Result<Replies, Failure> {
        self.answer(batch, |calls, store| calls.call_query(store, (*context).into(), batch.into()))
    }

    /// Hands on the whole state, chunk by chunk, and returns the version of its schema.
    pub fn export(
        &mut self,
        emit: &mut dyn FnMut(Vec<u8>) -> Result<(), ExportStopped>,
    ) -> Result<u32, ExportError> {
        self.step(|calls, store| calls.call_export_begin(store))?;
        let mut bytes: u64 = 0;
        loop {
            let chunk =
                self.step(|calls, store| calls.call_export_next(store, EXPORT_CHUNK_BYTES))?;
            if chunk.is_empty() {
                return Ok(self.schema_version);
            }
            bytes = bytes.saturating_add(chunk.len() as u64);
            self.check_export(chunk.len(), bytes)?;
            emit(chunk)?;
        }
    }

    /// Hands the guest the next part of an export that has `schema`.
    pub fn import(&mut self, schema: u32, chunk: &[u8], last: bool) -> Result<(), Failure> {
        let taken =
            self.step(|calls, store| calls.call_import_chunk(store, schema, chunk, last))?;
        taken.map_err(|reason| {
            Failure::Malformed(format!("it refuses the import: {}", cut(&reason)))
        })
    }

    /// Size of its linear memory, in bytes. It never shrinks.
    pub fn memory_bytes(&self) -> usize {
        self.store.data().memory_bytes()
    }

    /// Fuel that the last call left, out of its limit: equal on every replica.
    pub fn fuel_left(&self) -> u64 {
        self.store.get_fuel().unwrap_or(0)
    }

    fn answer(
        &mut self,
        batch: Batch<'_>,
        call: impl FnOnce(&Calls, &mut Store<Room>) -> wasmtime::Result<bindings::Replies>,
    ) -> Result<Replies, Failure> {
        let fuel = self.store.data().limits().fuel_per_call;
        begin(&mut self.store, fuel)?;
        let replies = call(self.instance.lockstep_guest_machine(), &mut self.store)
            .map_err(|error| failure(&mut self.store, &error))?;
        check_replies(&replies, batch.ends.len(), self.store.data().limits())?;
        Ok(Replies { data: replies.data, ends: replies.ends, rejected: replies.rejected })
    }

    fn step<T>(
        &mut self,
        call: impl FnOnce(&Calls, &mut Store<Room>) -> wasmtime::Result<T>,
    ) -> Result<T, Failure> {
        let fuel = self.store.data().limits().fuel_per_export_call;
        begin(&mut self.store, fuel)?;
        call(self.instance.lockstep_guest_machine(), &mut self.store)
            .map_err(|error| failure(&mut self.store, &error))
    }

    fn check_export(&self, chunk_bytes: usize, bytes: u64) -> Result<(), Failure> {
        if chunk_bytes as u64 > u64::from(EXPORT_CHUNK_BYTES) {
            return Err(Failure::Malformed(format!(
                "an export chunk has {chunk_bytes} bytes, and {EXPORT_CHUNK_BYTES} were asked for"
            )));
        }
        let limit = self.store.data().limits().export_bytes_max;
        if bytes > limit {
            return Err(Failure::Malformed(format!("its export is longer than {limit} bytes")));
        }
        Ok(())
    }
}

fn start(
    engine: &wasmtime::Engine,
    prepared: &Prepared<Room>,
    room: Room,
) -> Result<(Store<Room>, Instance), Failure> {
    let fuel = room.limits().fuel_per_call;
    let crossing_bytes_max = room.limits().crossing_bytes_max();
    let mut store = Store::new(engine, room);
    store.limiter(|room| room);
    store.set_hostcall_fuel(crossing_bytes_max);
    begin(&mut store, fuel)?;
    let instance = prepared.instantiate(&mut store);
    let instance = instance.map_err(|error| failure(&mut store, &error))?;
    Ok((store, instance))
}

fn begin(store: &mut Store<Room>, fuel: u64) -> Result<(), Failure> {
    store.data_mut().begin_call();
    store.set_fuel(fuel).map_err(|error| Failure::Host(format!("{error:#}")))
}

/// Says whose fault an error of a call is, in words without addresses.
fn failure(store: &mut Store<Room>, error: &wasmtime::Error) -> Failure {
    if let Some(reason) = store.data_mut().take_host_failure() {
        return Failure::Host(reason);
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => return Failure::OutOfFuel,
        Some(trap) => return Failure::Trapped(trap_text(*trap, store.data_mut())),
        None => {}
    }
    let text = error.root_cause().to_string();
    if text.starts_with(CROSSED_TOO_MUCH) {
        let limit = store.data().limits().replies_bytes_max as u64;
        return Failure::TooLarge { length: limit + 1, limit };
    }
    Failure::Malformed(cut(&text).to_owned())
}

fn trap_text(trap: Trap, room: &mut Room) -> String {
    match room.take_last_error() {
        Some(words) => format!("{trap}; it said: {}", cut(&words)),
        None => trap.to_string(),
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(WORDS_BYTES_MAX)]
}

/// Checks that replies are laid out as the contract has it, and within the limits.
fn check_replies(
    replies: &bindings::Replies,
    count: usize,
    limits: &Limits,
) -> Result<(), Failure> {
    let malformed = |text: String| Err(Failure::Malformed(text));
    if replies.ends.len() != count {
        return malformed(format!("{} replies to {count} requests", replies.ends.len()));
    }
    let mut start = 0;
    for (position, &end) in replies.ends.iter().enumerate() {
        let Some(length) = end.checked_sub(start) else {
            return malformed(format!("reply {position} ends before the one ahead of it"));
        };
        if u64::from(length) > limits.reply_bytes_max as u64 {
            let limit = limits.reply_bytes_max as u64;
            return Err(Failure::TooLarge { length: u64::from(length), limit });
        }
        start = end;
    }
    if u64::from(start) != replies.data.len() as u64 {
        let length = replies.data.len();
        return malformed(format!("the last reply ends at {start} of {length} bytes"));
    }
    if replies.data.len() > limits.replies_bytes_max {
        let limit = limits.replies_bytes_max as u64;
        return Err(Failure::TooLarge { length: replies.data.len() as u64, limit });
    }
    check_rejected(&replies.rejected, count)
}

fn check_rejected(rejected: &[u32], count: usize) -> Result<(), Failure> {
    let rises = rejected.windows(2).all(|pair| pair[0] < pair[1]);
    let fits = rejected.last().is_none_or(|&last| u64::from(last) < count as u64);
    if rises && fits {
        return Ok(());
    }
    Err(Failure::Malformed(format!("its list of rejected requests is none of {count} requests")))
}

impl From<Context> for bindings::Context {
    fn from(context: Context) -> Self {
        Self { index: context.index, time_ms: context.time_ms, seed: context.seed }
    }
}

impl<'a> From<Batch<'a>> for bindings::Batch<'a> {
    fn from(batch: Batch<'a>) -> Self {
        Self { data: batch.data, ends: batch.ends }
    }
}

impl From<bindings::Manifest> for Manifest {
    fn from(manifest: bindings::Manifest) -> Self {
        Self {
            name: manifest.name,
            schema_version: manifest.schema_version,
            importable_schemas: manifest.importable_schemas,
            uses_time: manifest.uses_time,
            read_only: manifest.read_only,
        }
    }
}
