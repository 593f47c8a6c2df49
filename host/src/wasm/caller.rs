//! The calls of one instance, live or fork: fuel before each, and what an error of it means after.
//!
//! It checks all that a guest returns, so that what it hands on fits.

use wasmtime::{Store, Trap, WasmBacktrace};

use super::admission::Error;
use super::bindings::{self, Calls, Instance, Prepared};
use super::engine::Manifest;
use super::guest::{Batch, Context, ExportError, ExportStopped, Failure, Replies};
use super::guest_log::{GuestLog, Place, printable};
use super::limits::{Limits, NoStart, Room};
use super::memory::{self, Memory};
use crate::config::limits::{
    ADMISSION_FUEL, CALL_REPLIES_BYTES, EXPORT_CHUNK_BYTES, EXPORT_CHUNK_BYTES_MIN,
    EXPORT_SMALL_CHUNKS_MAX, START_FUEL,
};

/// What wasmtime's error begins with when more crosses to the host than was allowed; its type is
/// not public. The version is pinned, and a test makes a guest cross it.
const CROSSED_TOO_MUCH: &str = "too much data is being copied between the host and the guest";
/// The limit of a machine that gives exports and imports their fuel.
const EXPORT_FUEL: &str = "fuel_per_export_step";
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
        let crossing_bytes_max = room.limits().crossing_bytes_max();
        let mut store = Store::new(engine, room);
        store.limiter(|room| room);
        store.set_hostcall_fuel(crossing_bytes_max);
        begin(&mut store, START_FUEL, Place::Start)?;
        let (instance, memory) =
            memory::creating(memory_bytes, || prepared.instantiate(&mut store));
        let memory = memory.map_err(Failure::Host)?;
        let instance = instance.map_err(|error| start_failure(&mut store, &error))?;
        let memory = memory.ok_or_else(|| Failure::Malformed("it has no memory".to_owned()))?;
        Ok((Self { store, instance, schema_version }, memory))
    }

    /// Asks a module for its manifest, on an instance of its own.
    pub(super) fn describe(
        engine: &wasmtime::Engine,
        prepared: &Prepared<Room>,
    ) -> Result<Manifest, Error> {
        let room = Room::new("(being admitted)", Limits::for_admission());
        let (mut caller, _) =
            Self::start(engine, prepared, room, 0, None).map_err(|failure| match failure {
                // Types are checked as an instance is made; nothing else ends like this there.
                Failure::Malformed(reason) => Error::Contract(reason),
                failure => failure.into(),
            })?;
        let fuel = ("admission", ADMISSION_FUEL);
        let described =
            caller.call(Place::Describe, fuel, |calls, store| calls.call_describe(store));
        Ok(described?.into())
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
        let fuel = ("fuel_per_command", fuel);
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
        let replies = self.call(Place::Query, ("fuel_per_query", fuel), call)?;
        self.check(replies, batch.ends.len())
    }

    /// A step's fuel is for as many bytes as one chunk may have: a guest that hands out less at a
    /// time has less fuel for it, or an export would have no end.
    pub(super) fn export(&mut self, emit: &mut Emit<'_>) -> Result<u32, ExportError> {
        let step = self.room().limits().fuel_per_export_step;
        let begin = |calls: &Calls, store: &mut Store<Room>| calls.call_export_begin(store);
        self.call(Place::Export, (EXPORT_FUEL, step), begin)?;
        let mut fuel = self.fuel_left();
        let (mut chunks, mut bytes) = (0_u64, 0_u64);
        loop {
            let chunk = self.call(Place::Export, (EXPORT_FUEL, fuel), |calls, store| {
                calls.call_export_next(store, EXPORT_CHUNK_BYTES)
            })?;
            if chunk.is_empty() {
                return Ok(self.schema_version);
            }
            let length = u64::try_from(chunk.len()).expect("a length in memory fits");
            bytes = bytes.saturating_add(length);
            chunks += 1;
            self.check_export(length, chunks, bytes)?;
            let earned = step.saturating_mul(length) / u64::from(EXPORT_CHUNK_BYTES);
            fuel = self.fuel_left().saturating_add(earned).min(step);
            emit(chunk)?;
        }
    }

    pub(super) fn import(&mut self, schema: u32, chunk: &[u8], last: bool) -> Result<(), Failure> {
        let fuel = self.room().limits().fuel_per_export_step;
        let taken = self.call(Place::Import, (EXPORT_FUEL, fuel), |calls, store| {
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

    /// Makes a call with so much fuel, which this limit gives it.
    fn call<T>(
        &mut self,
        place: Place,
        (limit, fuel): (&'static str, u64),
        call: impl FnOnce(&Calls, &mut Store<Room>) -> wasmtime::Result<T>,
    ) -> Result<T, Failure> {
        begin(&mut self.store, fuel, place)?;
        call(self.instance.lockstep_guest_machine(), &mut self.store)
            .map_err(|error| failure(&mut self.store, &error, (limit, fuel)))
    }

    fn check(&self, replies: bindings::Replies, count: usize) -> Result<Replies, Failure> {
        check_replies(&replies, count, self.room().limits())?;
        Ok(Replies { data: replies.data, ends: replies.ends, rejected: replies.rejected })
    }

    /// Checks the newest chunk of an export, of so many and so many bytes.
    fn check_export(&self, chunk_bytes: u64, chunks: u64, bytes: u64) -> Result<(), Failure> {
        if chunk_bytes > u64::from(EXPORT_CHUNK_BYTES) {
            return Err(Failure::Malformed(format!(
                "an export chunk has {chunk_bytes} bytes, and {EXPORT_CHUNK_BYTES} were asked for"
            )));
        }
        if chunks > EXPORT_SMALL_CHUNKS_MAX + bytes / EXPORT_CHUNK_BYTES_MIN {
            return Err(Failure::Malformed(format!(
                "the {chunks} chunks of its export so far have {bytes} bytes, and beyond \
                 {EXPORT_SMALL_CHUNKS_MAX} chunks {EXPORT_CHUNK_BYTES_MIN} each are the least"
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
fn failure(
    store: &mut Store<Room>,
    error: &wasmtime::Error,
    (limit, fuel): (&'static str, u64),
) -> Failure {
    if let Some(reason) = store.data_mut().take_host_failure() {
        return Failure::Host(reason);
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => return Failure::OutOfFuel { limit, fuel },
        Some(trap) => return Failure::Trapped(trap_text(*trap, store.data_mut())),
        None => {}
    }
    let text = error.root_cause().to_string();
    if text.starts_with(CROSSED_TOO_MUCH) {
        // Without the guest's own frames it is of what the call returned.
        let of_a_line = error.downcast_ref::<WasmBacktrace>().is_some();
        return crossed_too_much(store.data(), of_a_line);
    }
    Failure::Malformed(cut(&text).to_owned())
}

fn crossed_too_much(room: &Room, of_a_line: bool) -> Failure {
    let what = match room.place() {
        _ if of_a_line => "a line that it logs",
        Place::Entry(_) | Place::Query => {
            let limit = room.limits().replies_bytes_max();
            return Failure::TooLarge { length: limit + 1, limit };
        }
        Place::Start | Place::Describe => "its manifest",
        Place::Export => "a chunk of its export",
        Place::Import => "its refusal",
    };
    let limit = room.limits().crossing_bytes_max();
    Failure::Malformed(format!("{what} is longer than the {limit} bytes that go out at once"))
}

/// Says why an instance was not made.
fn start_failure(store: &mut Store<Room>, error: &wasmtime::Error) -> Failure {
    if let Some(reason) = error.downcast_ref::<NoStart>() {
        return Failure::NoStart(reason.to_string());
    }
    match failure(store, error, ("start", START_FUEL)) {
        Failure::OutOfFuel { fuel, .. } => {
            Failure::NoStart(format!("its start function used up its fuel of {fuel}"))
        }
        Failure::Trapped(reason) => {
            Failure::NoStart(format!("its start function trapped: {reason}"))
        }
        failure => failure,
    }
}

/// What a guest said last may be long; what memory it was refused stands before it.
fn trap_text(trap: Trap, room: &mut Room) -> String {
    let mut text = trap.to_string();
    if let Some(refused) = room.take_memory_refused() {
        text = format!("{text}; it was refused memory: {refused}");
    }
    match room.take_last_error() {
        Some(words) => format!("{text}; it said: {}", cut(&words)),
        None => text,
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(WORDS_BYTES_MAX)]
}

/// Checks that replies are laid out as the contract has it, within the limits, and to all requests
/// unless they are long.
fn check_replies(
    replies: &bindings::Replies,
    count: usize,
    limits: &Limits,
) -> Result<(), Failure> {
    let malformed = |text: String| Err(Failure::Malformed(text));
    let answered = replies.ends.len();
    let may_stop = answered > 0 && replies.data.len() >= CALL_REPLIES_BYTES;
    if answered > count || (answered < count && !may_stop) {
        return malformed(format!("{answered} replies to {count} requests"));
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
    check_rejected(&replies.rejected, answered)
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
