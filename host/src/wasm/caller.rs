//! The calls of one instance, live or fork: fuel before each, and what an error of it means after.
//!
//! It checks all that a guest returns, so that what it hands on fits.

use wasmtime::{Store, Trap};

use super::admission::Error;
use super::bindings::{self, Calls, Instance, Prepared};
use super::engine::Manifest;
use super::guest::{Batch, Context, ExportError, ExportStopped, Failure, Replies};
use super::guest_log::{GuestLog, Place, printable};
use super::limits::{Limits, Room};
use super::memory::{self, Memory};
use crate::config::limits::EXPORT_CHUNK_BYTES;

/// What wasmtime's error begins with when more crosses to the host than was allowed; its type is
/// not public. The version is pinned, and a test makes a guest cross it.
const CROSSED_TOO_MUCH: &str = "too much data is being copied between the host and the guest";
/// Bytes of a guest's own words in the text of a failure.
const WORDS_BYTES_MAX: usize = 512;

/// An instance that can be called until a call fails.
pub(super) struct Caller {
    store: Store<Room>,
    instance: Instance,
    schema_version: u32,
}

/// Receives the chunks of an export, and may stop it.
pub type Emit<'a> = dyn FnMut(Vec<u8>) -> Result<(), ExportStopped> + 'a;

impl Caller {
    /// Makes an instance and its memory; `memory_bytes` long, if that is given.
    pub(super) fn start(
        engine: &wasmtime::Engine,
        prepared: &Prepared<Room>,
        room: Room,
        schema_version: u32,
        memory_bytes: Option<usize>,
    ) -> Result<(Self, Memory), Failure> {
        let fuel = room.limits().fuel_per_command;
        let crossing_bytes_max = room.limits().crossing_bytes_max();
        let mut store = Store::new(engine, room);
        store.limiter(|room| room);
        store.set_hostcall_fuel(crossing_bytes_max);
        begin(&mut store, fuel, Place::Start)?;
        let (instance, memory) =
            memory::creating(memory_bytes, || prepared.instantiate(&mut store));
        let memory = memory.map_err(Failure::Host)?;
        let instance = instance.map_err(|error| failure(&mut store, &error))?;
        let memory = memory.ok_or_else(|| Failure::Malformed("it has no memory".to_owned()))?;
        Ok((Self { store, instance, schema_version }, memory))
    }

    /// Asks a module for its manifest, on an instance of its own.
    pub(super) fn describe(
        engine: &wasmtime::Engine,
        prepared: &Prepared<Room>,
    ) -> Result<Manifest, Error> {
        let room = Room::new("(being admitted)", Limits::largest());
        let (mut caller, _) =
            Self::start(engine, prepared, room, 0, None).map_err(|failure| match failure {
                // Types are checked as an instance is made; nothing else ends like this there.
                Failure::Malformed(reason) => Error::Contract(reason),
                failure => failure.into(),
            })?;
        let fuel = Limits::default().fuel_per_query;
        let manifest =
            caller.call(Place::Start, fuel, |calls, store| calls.call_describe(store))?;
        Ok(manifest.into())
    }

    pub(super) fn apply(
        &mut self,
        context: &Context,
        batch: Batch<'_>,
    ) -> Result<Replies, Failure> {
        let fuel = self.room().limits().fuel_per_command;
        let call = |calls: &Calls, store: &mut Store<Room>| {
            calls.call_apply(store, (*context).into(), batch.into())
        };
        let replies = self.call(Place::Entry(context.index), fuel, call)?;
        self.check(replies, batch.ends.len())
    }

    pub(super) fn query(
        &mut self,
        context: &Context,
        batch: Batch<'_>,
        fuel_max: u64,
    ) -> Result<Replies, Failure> {
        let fuel = self.room().limits().fuel_per_query.min(fuel_max);
        let call = |calls: &Calls, store: &mut Store<Room>| {
            calls.call_query(store, (*context).into(), batch.into())
        };
        let replies = self.call(Place::Query, fuel, call)?;
        self.check(replies, batch.ends.len())
    }

    pub(super) fn export(&mut self, emit: &mut Emit<'_>) -> Result<u32, ExportError> {
        self.step(Place::Export, |calls, store| calls.call_export_begin(store))?;
        let mut bytes: u64 = 0;
        loop {
            let chunk = self.step(Place::Export, |calls, store| {
                calls.call_export_next(store, EXPORT_CHUNK_BYTES)
            })?;
            if chunk.is_empty() {
                return Ok(self.schema_version);
            }
            bytes = bytes.saturating_add(chunk.len() as u64);
            self.check_export(chunk.len(), bytes)?;
            emit(chunk)?;
        }
    }

    pub(super) fn import(&mut self, schema: u32, chunk: &[u8], last: bool) -> Result<(), Failure> {
        let taken = self.step(Place::Import, |calls, store| {
            calls.call_import_chunk(store, schema, chunk, last)
        })?;
        taken.map_err(|reason| Failure::Refused(printable(cut(&reason))))
    }

    /// Gives it other limits from the next call on. What it holds beyond them it keeps.
    pub(super) fn set_limits(&mut self, limits: Limits) {
        self.store.data_mut().set_limits(limits);
        self.store.set_hostcall_fuel(limits.crossing_bytes_max());
    }

    pub(super) fn set_log(&mut self, log: GuestLog) {
        self.store.data_mut().set_log(log);
    }

    pub(super) fn set_quiet(&mut self, quiet: bool) {
        self.store.data_mut().set_quiet(quiet);
    }

    pub(super) fn room(&self) -> &Room {
        self.store.data()
    }

    /// Fuel that the last call left, out of its limit.
    pub(super) fn fuel_left(&self) -> u64 {
        self.store.get_fuel().unwrap_or(0)
    }

    fn step<T>(
        &mut self,
        place: Place,
        call: impl FnOnce(&Calls, &mut Store<Room>) -> wasmtime::Result<T>,
    ) -> Result<T, Failure> {
        self.call(place, self.room().limits().fuel_per_export_step, call)
    }

    fn call<T>(
        &mut self,
        place: Place,
        fuel: u64,
        call: impl FnOnce(&Calls, &mut Store<Room>) -> wasmtime::Result<T>,
    ) -> Result<T, Failure> {
        begin(&mut self.store, fuel, place)?;
        call(self.instance.lockstep_guest_machine(), &mut self.store)
            .map_err(|error| failure(&mut self.store, &error))
    }

    fn check(&self, replies: bindings::Replies, count: usize) -> Result<Replies, Failure> {
        check_replies(&replies, count, self.room().limits())?;
        Ok(Replies { data: replies.data, ends: replies.ends, rejected: replies.rejected })
    }

    fn check_export(&self, chunk_bytes: usize, bytes: u64) -> Result<(), Failure> {
        if chunk_bytes as u64 > u64::from(EXPORT_CHUNK_BYTES) {
            return Err(Failure::Malformed(format!(
                "an export chunk has {chunk_bytes} bytes, and {EXPORT_CHUNK_BYTES} were asked for"
            )));
        }
        let limit = self.room().limits().export_bytes_max;
        if bytes > limit {
            return Err(Failure::Malformed(format!("its export is longer than {limit} bytes")));
        }
        Ok(())
    }
}

fn begin(store: &mut Store<Room>, fuel: u64, place: Place) -> Result<(), Failure> {
    store.data_mut().begin_call(place);
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
        let limit = store.data().limits().replies_bytes_max();
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
        if u64::from(length) > limits.reply_bytes_max {
            let limit = limits.reply_bytes_max;
            return Err(Failure::TooLarge { length: u64::from(length), limit });
        }
        start = end;
    }
    if u64::from(start) != replies.data.len() as u64 {
        let length = replies.data.len();
        return malformed(format!("the last reply ends at {start} of {length} bytes"));
    }
    let (length, limit) = (replies.data.len() as u64, limits.replies_bytes_max());
    if length > limit {
        return Err(Failure::TooLarge { length, limit });
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
