//! A machine's guest over time: a command that fails leaves no trace, a query cannot leave one.
//!
//! The live guest is called once for each batch, and again for what it leaves: it answers no more
//! at a time than some bytes of replies. Beside it stand an image of its memory at an
//! earlier boundary of calls and a journal of the calls since. When a call fails, the image and
//! the journal bring the guest back to before it, and the batch's commands are applied one by one,
//! so that a failure costs the command that it is of and nothing else. What is long ago the journal
//! knows by its place in the log alone, so that it takes little memory.
//!
//! After a failure the next calls are tried on a fork first: more of the same then cost a fork's
//! few pages and no rollback. When images are taken, and what is tried first, is each node's
//! own choice and shows in no result.
//!
//! An import is in no journal: until it is complete, no image shows the live guest. A failure of it
//! spends the guest, and one is taken only where the state leaves or the import is complete.
//!
//! **Invariant:** the live guest has been through exactly the calls that succeeded, in order, each
//! once. **Invariant:** a rollback that uses other fuel, or a fork that answers otherwise than its
//! original, stops the node.

use std::ops::Range;
use std::sync::Arc;

use crate::machine::HostFailure;
use crate::machine::entry::batch::Batch;
use crate::machine::guest::history::History;
use crate::machine::guest::outcome::{FuelUse, bytes_of, outcome_of, outcomes_of};
use crate::types::Outcome;
use crate::wasm::{
    self, Context, Engine, Failure, Fork, Guest, GuestLog, Image, Limits, Module, Replies,
};

/// An image is due after this much fuel for each byte of memory. Copying a byte takes about as
/// long as half a unit of fuel, so that images take at most a twentieth of the time of apply.
const IMAGE_FUEL_PER_BYTE: u64 = 10;
/// No image is due before this much fuel, some tens of milliseconds of apply.
const IMAGE_FUEL_MIN: u64 = 50_000_000;
/// While a snapshot is written from the image, the next one needs room of its own: it is due this
/// many times later.
const PINNED_FACTOR: u64 = 8;
/// Batches that are tried on a fork after a failure.
const CAUTIOUS_BATCHES: u32 = 64;
const IMAGE_STANDS: &str = "an image stands beside the guest between calls";

mod frozen;
mod journal;
#[cfg(test)]
mod tests;

pub use frozen::Frozen;
use journal::Journal;

/// What a guest is made from.
#[derive(Clone)]
pub struct Blueprint {
    /// The sandbox.
    pub engine: Engine,
    /// The code.
    pub module: Module,
    /// What the guest may use.
    pub limits: Limits,
    /// Where calls are found that the guest has been through.
    pub history: Arc<dyn History>,
}

/// A machine's guest with its past.
pub struct Instance {
    blueprint: Blueprint,
    live: Guest,
    /// None only inside of the functions that replace it.
    image: Option<Arc<Image>>,
    /// The guest has taken in parts of an export that the image doesn't show.
    importing: bool,
    journal: Journal,
    fork: Option<Fork>,
    /// Whether the fork has answered queries.
    asked: bool,
    cautious: u32,
    fuel_used: u64,
    fuel_use: FuelUse,
    /// Where the guest is heard: on its own calls, on queries, and on commands that are tried; not
    /// as it repeats what was tried, and not on a replay.
    log: Option<GuestLog>,
}

impl Instance {
    /// A guest in the state before the first command.
    pub fn start(blueprint: Blueprint) -> Result<Self, Failure> {
        let Blueprint { engine, module, limits, .. } = &blueprint;
        let live = Guest::instantiate_with(engine, module, *limits)?;
        Self::with(blueprint, live, 0)
    }

    /// A guest in the state of an image.
    pub fn restore(blueprint: Blueprint, image: Image, fuel_used: u64) -> Result<Self, Failure> {
        let Blueprint { engine, module, limits, .. } = &blueprint;
        let live = Guest::restore(engine, module, *limits, image)?;
        Self::with(blueprint, live, fuel_used)
    }

    fn with(blueprint: Blueprint, live: Guest, fuel_used: u64) -> Result<Self, Failure> {
        let image = live.image(None)?;
        assert_eq!(image.bytes(), live.memory_bytes(), "the first image shows all of the memory");
        let image = Some(Arc::new(image));
        let journal = Journal::new(Arc::clone(&blueprint.history));
        Ok(Self {
            blueprint,
            live,
            image,
            importing: false,
            journal,
            fork: None,
            asked: false,
            cautious: 0,
            fuel_used,
            fuel_use: FuelUse::default(),
            log: None,
        })
    }

    /// Lets the guest be heard from now on.
    pub fn set_log(&mut self, log: GuestLog) {
        self.live.set_log(log.clone());
        self.log = Some(log);
        self.fork = None;
    }

    /// Gives the guest other limits from the next call on. The journal begins anew: what is in it
    /// went by the earlier ones.
    pub fn set_limits(&mut self, limits: Limits) -> Result<(), HostFailure> {
        self.replace_image()?;
        assert!(self.journal.is_empty(), "all calls of a journal have the same limits");
        self.fork = None;
        self.live.set_limits(limits);
        self.blueprint.limits = limits;
        Ok(())
    }

    /// Hands the guest the next part of an export that has `schema`; `last` with the last one
    /// alone. To be called on a guest that has applied nothing, and until the last part is in,
    /// nothing but this and [`Instance::freeze`]. The inner error is the guest's own: the words
    /// of its refusal, or how it failed; the instance is spent then and must be dropped.
    pub fn import(
        &mut self,
        schema: u32,
        chunk: &[u8],
        last: bool,
    ) -> Result<Result<(), Outcome>, HostFailure> {
        if let Err(failure) = self.live.import(schema, chunk, last) {
            return outcome_of(failure).map(Err);
        }
        assert!(self.journal.is_empty(), "a state comes in before the first command");
        let fuel = used(self.blueprint.limits.fuel_per_export_step, self.live.fuel_left());
        self.fuel_used = self.fuel_used.saturating_add(fuel);
        self.importing = true;
        if last {
            self.replace_image()?;
        }
        Ok(Ok(()))
    }

    /// Applies a batch: an outcome for each command. Once the outcomes hold `room` bytes, the rest
    /// of the commands is not executed. But for that, the outcome of a command never depends on its
    /// neighbours: commands share the fuel of one as long as that is enough for all, and have it
    /// each where it isn't.
    pub fn apply(
        &mut self,
        context: Context,
        batch: &Batch,
        room: usize,
    ) -> Result<Vec<Outcome>, HostFailure> {
        assert!(!self.importing, "a state that is half in is not changed, at {}", context.index);
        assert!(room > 0, "a batch without room is not begun, at {}", context.index);
        let mut outcomes = self.apply_some(context, batch, 0, room)?;
        while outcomes.len() < batch.count() {
            let left = room.saturating_sub(bytes_of(&outcomes));
            if left == 0 {
                break;
            }
            let reached = outcomes.len();
            let rest = batch.part(reached..batch.count());
            outcomes.append(&mut self.apply_some(context, &rest, reached, left)?);
            assert!(outcomes.len() > reached, "a call answers a command, at {}", context.index);
        }
        outcomes.resize(batch.count(), Outcome::NotReached);
        self.image_if_due()?;
        Ok(outcomes)
    }

    /// Applies the first commands of what is left of a batch, from position `at` on: as many as the
    /// guest answers at once.
    fn apply_some(
        &mut self,
        context: Context,
        batch: &Batch,
        at: usize,
        room: usize,
    ) -> Result<Vec<Outcome>, HostFailure> {
        let part = at..at + batch.count();
        let tried = if self.cautious == 0 { None } else { Some(self.attempt(context, batch)?) };
        let outcomes = match tried {
            None => match self.call(context, batch, part) {
                Ok(replies) => outcomes_of(replies),
                Err(failure) => {
                    let outcome = outcome_of(failure)?;
                    self.note_failed(batch, self.live.fuel_left());
                    self.roll_back()?;
                    self.apply_apart(context, batch, (at, room), outcome)?
                }
            },
            Some(Ok(tried)) => {
                self.cautious -= 1;
                outcomes_of(self.repeat(context, batch, part, &tried)?)
            }
            Some(Err(outcome)) => self.apply_apart(context, batch, (at, room), outcome)?,
        };
        assert!(outcomes.len() <= batch.count(), "one outcome a command, at {}", context.index);
        Ok(outcomes)
    }

    /// Applies each command by itself, after all of them together failed by `outcome`, as long as
    /// there is room for outcomes.
    fn apply_apart(
        &mut self,
        context: Context,
        batch: &Batch,
        (at, room): (usize, usize),
        outcome: Outcome,
    ) -> Result<Vec<Outcome>, HostFailure> {
        self.cautious = CAUTIOUS_BATCHES;
        if batch.count() == 1 {
            return Ok(vec![outcome]);
        }
        let (mut outcomes, mut held) = (Vec::with_capacity(batch.count()), 0);
        for position in 0..batch.count() {
            if held >= room {
                break;
            }
            let single = batch.part(position..position + 1);
            let outcome = match self.attempt(context, &single)? {
                Ok(tried) => {
                    let part = at + position..at + position + 1;
                    let replies = self.repeat(context, &single, part, &tried)?;
                    outcomes_of(replies).pop().expect("a call answers a command")
                }
                Err(outcome) => outcome,
            };
            held += outcome.length();
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    /// What a call would come to.
    fn attempt(
        &mut self,
        context: Context,
        batch: &Batch,
    ) -> Result<Result<Tried, Outcome>, HostFailure> {
        let fork = self.fork()?;
        match fork.apply(&context, laid_out(batch)) {
            Ok(replies) => Ok(Ok(Tried { replies, fuel_left: fork.fuel_left() })),
            Err(failure) => {
                let fuel_left = fork.fuel_left();
                self.note_failed(batch, fuel_left);
                self.fork = None;
                outcome_of(failure).map(Err)
            }
        }
    }

    /// Notes what a command took that failed. Of several the one that failed is not known: each is
    /// tried by itself then.
    fn note_failed(&mut self, batch: &Batch, fuel_left: u64) {
        if batch.count() == 1 {
            self.fuel_use.note(used(self.blueprint.limits.fuel_per_command, fuel_left));
        }
    }

    /// Makes a call that has succeeded on a fork.
    fn repeat(
        &mut self,
        context: Context,
        batch: &Batch,
        part: Range<usize>,
        tried: &Tried,
    ) -> Result<Replies, HostFailure> {
        self.live.set_quiet(true);
        let repeated = self.call(context, batch, part);
        self.live.set_quiet(false);
        match repeated {
            Ok(replies) if replies == tried.replies && self.live.fuel_left() == tried.fuel_left => {
                Ok(replies)
            }
            Err(Failure::Host(reason)) => Err(HostFailure::Stop(reason)),
            _ => Err(HostFailure::Stop(format!(
                "at log index {}, a guest answers otherwise than its fork",
                context.index
            ))),
        }
    }

    /// Calls the live guest, and notes the call if it succeeds.
    fn call(
        &mut self,
        context: Context,
        batch: &Batch,
        part: Range<usize>,
    ) -> Result<Replies, Failure> {
        let replies = self.live.apply(&context, laid_out(batch))?;
        let fuel = used(self.blueprint.limits.fuel_per_command, self.live.fuel_left());
        self.fuel_used = self.fuel_used.saturating_add(fuel);
        let answered = u64::try_from(replies.ends.len()).expect("an entry bounds the commands");
        self.fuel_use.note(fuel.div_ceil(answered.max(1)));
        self.journal.push(context, batch.clone(), part, fuel);
        Ok(replies)
    }

    /// Brings the guest back to before the call that failed.
    fn roll_back(&mut self) -> Result<(), HostFailure> {
        let Blueprint { engine, module, limits, .. } = &self.blueprint;
        self.fork = None;
        // An image that a snapshot is being written from stays; else its pages become the memory.
        let image = self.image.take().expect(IMAGE_STANDS);
        let (image, shared) = match Arc::try_unwrap(image) {
            Ok(image) => (image, None),
            Err(shared) => (shared.copy().map_err(host)?, Some(shared)),
        };
        let mut live = Guest::restore(engine, module, *limits, image).map_err(host)?;
        let mut fuel = 0_u64;
        self.journal.replay(|context, batch| {
            live.apply(context, laid_out(batch)).map_err(|failure| {
                let index = context.index;
                HostFailure::Stop(format!("a replay failed at log index {index}: {failure}"))
            })?;
            fuel = fuel.saturating_add(used(limits.fuel_per_command, live.fuel_left()));
            Ok(())
        })?;
        if fuel != self.journal.fuel() {
            let expected = self.journal.fuel();
            return Err(HostFailure::Stop(format!("a replay used {fuel} fuel, not {expected}")));
        }
        if let Some(log) = &self.log {
            live.set_log(log.clone());
        }
        assert!(
            live.memory_bytes() <= self.live.memory_bytes(),
            "a guest that failed had no less memory than before"
        );
        let failed = std::mem::replace(&mut self.live, live);
        if shared.is_none() {
            return self.take_image(failed.into_room());
        }
        self.image = shared;
        Ok(())
    }

    /// Answers queries, the first one at least, on a fork. What they change is thrown away. They
    /// have this much fuel together, or their limit if that is less. A failure is that of the first
    /// query that fails, and of all if there is only one.
    pub fn query(
        &mut self,
        context: Context,
        queries: wasm::Batch<'_>,
        fuel_max: u64,
    ) -> Result<Result<Vec<Outcome>, Outcome>, HostFailure> {
        let fork = self.fork()?;
        match fork.query(&context, queries, fuel_max) {
            Ok(replies) => {
                self.asked = true;
                Ok(Ok(outcomes_of(replies)))
            }
            Err(failure) => {
                self.fork = None;
                outcome_of(failure).map(Err)
            }
        }
    }

    /// Does a bounded piece of work ahead of the next queries, if there were any before; false
    /// when nothing is left to do. It cannot fail: it only saves time.
    pub fn prepare_queries(&mut self) -> bool {
        match &mut self.fork {
            Some(fork) if self.asked => fork.warm(&self.live),
            _ => false,
        }
    }

    /// The state as it is now.
    pub fn freeze(&mut self) -> Result<Frozen, HostFailure> {
        if self.importing || !self.journal.is_empty() {
            self.replace_image()?;
        }
        let image = Arc::clone(self.image.as_ref().expect(IMAGE_STANDS));
        assert!(self.journal.is_empty(), "nothing was applied since the image that is frozen");
        assert_eq!(image.bytes(), self.live.memory_bytes(), "what is frozen is the state of now");
        Ok(Frozen::new(self.blueprint.clone(), image, self.fuel_used))
    }

    /// What the guest may use.
    pub fn limits(&self) -> &Limits {
        &self.blueprint.limits
    }

    /// Fuel of the calls between two images of a memory of so many bytes.
    pub fn image_fuel(memory_bytes: u64) -> u64 {
        IMAGE_FUEL_MIN.max(IMAGE_FUEL_PER_BYTE.saturating_mul(memory_bytes))
    }

    /// What commands took so far.
    pub fn fuel_use(&self) -> FuelUse {
        self.fuel_use
    }

    /// Size of the guest's memory, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.live.memory_bytes()
    }

    fn fork(&mut self) -> Result<&mut Fork, HostFailure> {
        let fork = match self.following()? {
            Some(fork) => fork,
            None => {
                self.asked = false;
                let Blueprint { engine, module, .. } = &self.blueprint;
                let mut fork = self.live.fork(engine, module).map_err(host)?;
                if let Some(log) = &self.log {
                    fork.set_log(log.clone());
                }
                fork
            }
        };
        Ok(self.fork.insert(fork))
    }

    /// The fork that there is, if it can show the state as it is now.
    fn following(&mut self) -> Result<Option<Fork>, HostFailure> {
        let Some(mut fork) = self.fork.take() else { return Ok(None) };
        let follows = fork.follow(&self.live).map_err(host)?;
        Ok(follows.then_some(fork))
    }

    fn image_if_due(&mut self) -> Result<(), HostFailure> {
        let bytes = u64::try_from(self.live.memory_bytes()).expect("a length in memory fits");
        let pinned = self.image.as_ref().is_some_and(|image| Arc::strong_count(image) > 1);
        let factor = if pinned { PINNED_FACTOR } else { 1 };
        let due = Self::image_fuel(bytes).saturating_mul(factor);
        if self.journal.fuel() >= due || self.journal.is_full() {
            self.replace_image()?;
        }
        Ok(())
    }

    /// Takes an image in the room of the last one, unless a snapshot is written from that.
    fn replace_image(&mut self) -> Result<(), HostFailure> {
        let room = self.image.take().and_then(Arc::into_inner);
        self.take_image(room)
    }

    fn take_image(&mut self, room: Option<Image>) -> Result<(), HostFailure> {
        let image = self.live.image(room).map_err(host)?;
        assert_eq!(image.bytes(), self.live.memory_bytes(), "an image is as long as its memory");
        self.image = Some(Arc::new(image));
        self.journal.clear();
        self.importing = false;
        Ok(())
    }
}

/// A call as it went on a fork.
struct Tried {
    replies: Replies,
    fuel_left: u64,
}

fn laid_out(batch: &Batch) -> wasm::Batch<'_> {
    wasm::Batch { data: batch.data(), ends: batch.ends() }
}

/// Fuel of a call that had so much and left so much.
fn used(limit: u64, left: u64) -> u64 {
    assert!(left <= limit, "a call that had {limit} fuel has left {left}");
    limit - left
}

/// A failure where the guest has no say: making, copying or forking an instance that ran before.
fn host(failure: impl std::fmt::Display) -> HostFailure {
    HostFailure::Stop(failure.to_string())
}
