//! One live instance of a guest: calls with bounded fuel, memory and replies, and every way a
//! call can fail, as data.

use wasmtime::component::HasData;
use wasmtime::{Store, Trap};

use super::bindings::exports::lockstep::guest::machine as wit;
use super::bindings::lockstep::guest::log;
use super::bindings::{Guest as Instance, GuestPre};
use super::engine::{Engine, Manifest, Module};
use super::limits::Limits;
use crate::config::limits;

/// Bytes a guest may hand to the host in one call: a full set of replies with their ends.
const HOSTCALL_BYTES_MAX: usize = limits::REPLIES_BYTES_MAX + (1 << 20);

/// Where and when a call stands, the same on every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Index of the log entry; for a query, of the last one applied.
    pub index: u64,
    /// The replicated time, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Differs from entry to entry.
    pub seed: u64,
}

/// Requests, back to back, and where each ends. The caller has checked that the ends fit.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'batch> {
    /// All requests.
    pub data: &'batch [u8],
    /// Where each ends in `data`.
    pub ends: &'batch [u32],
}

/// Replies to a batch, checked: as many as requests, ends in order, each within its limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replies {
    /// All replies.
    pub data: Vec<u8>,
    /// Where each ends in `data`.
    pub ends: Vec<u32>,
    /// Positions of those that refuse their request, in order.
    pub rejected: Vec<u32>,
}

/// How a call failed. After one, the instance cannot be entered again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It trapped.
    #[error("it trapped: {0}")]
    Trapped(String),
    /// It used up its fuel.
    #[error("it ran out of fuel")]
    OutOfFuel,
    /// It replied with more than it may.
    #[error("its reply has {length} bytes, the limit is {limit}")]
    TooLarge {
        /// Length of the reply, in bytes.
        length: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// It broke the contract.
    #[error("it broke the contract: {0}")]
    Malformed(String),
    /// Not the guest but the host failed: the node must stop.
    #[error("{0}")]
    Host(String),
}

/// What a store holds beside the instance.
#[derive(Default)]
pub(super) struct State {
    limits: Limits,
}

impl HasData for State {
    type Data<'state> = &'state mut Self;
}

impl log::Host for State {
    /// Guests' logs are dropped for now. Nothing comes back, so that no answer depends on them.
    fn log(&mut self, _level: log::Level, _message: String) {}
}

/// A live instance. One call at a time; never again after a failure.
pub struct Guest {
    store: Store<State>,
    instance: Instance,
}

impl Guest {
    /// A fresh instance.
    pub fn instantiate(engine: &Engine, module: &Module) -> Result<Self, Failure> {
        instantiate(engine.inner(), module.instance())
    }

    /// Applies the commands of one entry.
    pub fn apply(&mut self, context: &Context, batch: Batch<'_>) -> Result<Replies, Failure> {
        let call = wit::Batch { data: batch.data, ends: batch.ends };
        let replies = self.call(limits::FUEL_PER_CALL, |instance, store| {
            instance.lockstep_guest_machine().call_apply(store, (*context).into(), call)
        })?;
        check_replies(replies, batch.ends.len())
    }

    /// Answers queries on this instance.
    pub fn query(&mut self, context: &Context, batch: Batch<'_>) -> Result<Replies, Failure> {
        let call = wit::Batch { data: batch.data, ends: batch.ends };
        let replies = self.call(limits::FUEL_PER_CALL, |instance, store| {
            instance.lockstep_guest_machine().call_query(store, (*context).into(), call)
        })?;
        check_replies(replies, batch.ends.len())
    }

    /// Has the guest serialize its state, chunk by chunk, until it is done or `emit` says false.
    /// What it exports is of the schema in its manifest.
    pub fn export(&mut self, emit: &mut dyn FnMut(Vec<u8>) -> bool) -> Result<(), Failure> {
        self.call(limits::FUEL_PER_EXPORT_CALL, |instance, store| {
            instance.lockstep_guest_machine().call_export_begin(store)
        })?;
        loop {
            let chunk = self.call(limits::FUEL_PER_EXPORT_CALL, |instance, store| {
                let machine = instance.lockstep_guest_machine();
                machine.call_export_next(store, limits::EXPORT_CHUNK_BYTES)
            })?;
            if chunk.is_empty() {
                return Ok(());
            }
            check_chunk(&chunk)?;
            if !emit(chunk) {
                return Err(Failure::Host("nobody takes the export of a guest".to_owned()));
            }
        }
    }

    /// Gives a fresh instance the next chunk of an exported state.
    pub fn import(&mut self, schema: u32, chunk: &[u8], last: bool) -> Result<(), Failure> {
        let imported = self.call(limits::FUEL_PER_EXPORT_CALL, |instance, store| {
            let machine = instance.lockstep_guest_machine();
            machine.call_import_chunk(store, schema, chunk, last)
        })?;
        imported.map_err(|reason| Failure::Malformed(format!("it refuses an export: {reason}")))
    }

    /// Linear memory of the instance, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.store.data().limits.memory_bytes()
    }

    fn call<T>(
        &mut self,
        fuel: u64,
        call: impl FnOnce(&Instance, &mut Store<State>) -> wasmtime::Result<T>,
    ) -> Result<T, Failure> {
        self.store.set_fuel(fuel).map_err(|error| Failure::Host(error.to_string()))?;
        call(&self.instance, &mut self.store).map_err(|error| failure(&error, self.store.data()))
    }
}

impl From<Context> for wit::Context {
    fn from(context: Context) -> Self {
        Self { index: context.index, time_ms: context.time_ms, seed: context.seed }
    }
}

/// Asks a fresh instance what the guest is.
pub(super) fn describe(
    engine: &wasmtime::Engine,
    module: &GuestPre<State>,
) -> Result<Manifest, Failure> {
    let mut guest = instantiate(engine, module)?;
    let manifest = guest.call(limits::FUEL_PER_CALL, |instance, store| {
        instance.lockstep_guest_machine().call_describe(store)
    })?;
    Ok(manifest.into())
}

fn instantiate(engine: &wasmtime::Engine, module: &GuestPre<State>) -> Result<Guest, Failure> {
    let mut store = Store::new(engine, State::default());
    store.limiter(|state| &mut state.limits);
    store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
    store.set_fuel(limits::FUEL_PER_CALL).map_err(|error| Failure::Host(error.to_string()))?;
    match module.instantiate(&mut store) {
        Ok(instance) => Ok(Guest { store, instance }),
        Err(error) => Err(failure(&error, store.data())),
    }
}

/// What an error of wasmtime says about the guest, or about the host. The text is wasmtime's own
/// for the trap, which has no addresses in it.
fn failure(error: &wasmtime::Error, state: &State) -> Failure {
    if let Some(reason) = state.limits.host_failure() {
        return Failure::Host(reason.to_owned());
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => Failure::OutOfFuel,
        Some(trap) => Failure::Trapped(trap.to_string()),
        None => Failure::Trapped(error.root_cause().to_string()),
    }
}

fn check_chunk(chunk: &[u8]) -> Result<(), Failure> {
    let limit = usize::try_from(limits::EXPORT_CHUNK_BYTES).expect("32 bits fit");
    if chunk.len() > limit {
        let (length, limit) = (as_u64(chunk.len()), as_u64(limit));
        return Err(Failure::TooLarge { length, limit });
    }
    Ok(())
}

/// Checks everything that the host relies on when it cuts the replies apart.
fn check_replies(replies: wit::Replies, requests: usize) -> Result<Replies, Failure> {
    let wit::Replies { data, ends, rejected } = replies;
    let malformed = |reason: &str| Err(Failure::Malformed(reason.to_owned()));
    if ends.len() != requests {
        return malformed("it did not give one reply to each request");
    }
    if data.len() > limits::REPLIES_BYTES_MAX {
        let limit = as_u64(limits::REPLIES_BYTES_MAX);
        return Err(Failure::TooLarge { length: as_u64(data.len()), limit });
    }
    let mut start = 0;
    for end in &ends {
        let Some(length) = end.checked_sub(start) else {
            return malformed("the ends of its replies go backwards");
        };
        start = *end;
        let limit = as_u64(limits::REPLY_BYTES_MAX);
        if u64::from(length) > limit {
            return Err(Failure::TooLarge { length: u64::from(length), limit });
        }
    }
    if u64::from(start) != as_u64(data.len()) {
        return malformed("the ends of its replies do not cover their bytes");
    }
    let in_order = rejected.windows(2).all(|pair| pair[0] < pair[1]);
    let last = rejected.last().map_or(0, |last| u64::from(*last) + 1);
    if !in_order || last > as_u64(requests) {
        return malformed("the positions of its refusals are out of order or out of range");
    }
    Ok(Replies { data, ends, rejected })
}

fn as_u64(length: usize) -> u64 {
    u64::try_from(length).expect("a length in memory fits")
}
