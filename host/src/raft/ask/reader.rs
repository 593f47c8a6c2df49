//! Linearizable queries: one ReadIndex round for all that wait (Raft dissertation, section 6.4),
//! then one call of each guest for all its queries.
//!
//! While a round is under way, later queries gather for the next one: a query may only use a
//! round that began after the query came. The guest's thread tells each caller its own answer.
//!
//! **Invariant:** a query, linearizable or stale, has a place from when it comes until it is
//! answered, so that no more wait, wherever that is, than there are places.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use openraft::ReadPolicy;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::budget::Held;
use crate::machine::{Asker, Context, Directory, GuestHandle, Proposal, Query, Told, View};
use crate::raft::Raft;
use crate::raft::ask::error::Error;
use crate::raft::ask::replica::{Answered, check_writable};
use crate::raft::clock::Clock;
use crate::raft::duties::space::Space;
use crate::raft::type_config::EntryBytes;
use crate::types::{LogIndex, TimeMs};

type Answer = Result<(Answered, Held), Error>;

/// Queries that may be under way.
const PLACES: usize = 65_536;
/// How far the replicated time may lag before a query of a guest that uses time has the leader
/// log a `Tick`, in milliseconds. It bounds ticks to ten a second.
const TICK_LAG_MS: TimeMs = 100;

/// A query and who waits for it.
struct Waiting {
    machine: String,
    query: Bytes,
    deadline: Instant,
    caller: Caller,
}

/// Who waits for an answer, and what is held for it meanwhile.
struct Caller {
    answer: oneshot::Sender<Answer>,
    held: Held,
    _place: OwnedSemaphorePermit,
}

/// Where queries come in.
#[derive(Clone, Debug)]
pub struct Reader {
    queue: mpsc::Sender<Waiting>,
    places: Arc<Semaphore>,
}

/// The task that makes rounds of queued queries.
pub struct ReaderTask {
    raft: Raft,
    directory: Arc<Directory>,
    space: Arc<Space>,
    clock: Arc<Clock>,
    queue: mpsc::Receiver<Waiting>,
}

impl Reader {
    /// A queue and the task that empties it.
    pub fn new(
        raft: Raft,
        directory: Arc<Directory>,
        space: Arc<Space>,
        clock: Arc<Clock>,
    ) -> (Self, ReaderTask) {
        let (sender, queue) = mpsc::channel(PLACES);
        let reader = Self { queue: sender, places: Arc::new(Semaphore::new(PLACES)) };
        (reader, ReaderTask { raft, directory, space, clock, queue })
    }

    /// Asks a machine for an answer that reflects everything acknowledged before this call. One
    /// whose deadline has passed is not begun, and one that runs past it is ended.
    pub async fn query(
        &self,
        machine: &str,
        query: Bytes,
        deadline: Instant,
        held: Held,
    ) -> Result<Answered, Error> {
        let (caller, answer) = self.caller(held)?;
        let waiting = Waiting { machine: machine.to_owned(), query, deadline, caller };
        self.queue.try_send(waiting).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::Overloaded,
            mpsc::error::TrySendError::Closed(_) => Error::ShuttingDown,
        })?;
        answered(answer).await
    }

    /// Asks a machine at whatever this node has applied.
    pub async fn query_stale(
        &self,
        directory: &Directory,
        machine: &str,
        query: Bytes,
        deadline: Instant,
        held: Held,
    ) -> Result<Answered, Error> {
        let guest = guest_of(&directory.view(), machine)?;
        let (caller, answer) = self.caller(held)?;
        let query = Query { bytes: query, deadline, asker: Box::new(caller) };
        guest.query(context(directory), vec![query]);
        answered(answer).await
    }

    fn caller(&self, held: Held) -> Result<(Caller, oneshot::Receiver<Answer>), Error> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let _place = place.map_err(|_| Error::Overloaded)?;
        let (answer, receiver) = oneshot::channel();
        Ok((Caller { answer, held, _place }, receiver))
    }
}

/// What is held for an answer is given back as soon as the answer is taken.
async fn answered(answer: oneshot::Receiver<Answer>) -> Result<Answered, Error> {
    answer.await.map_err(|_| Error::ShuttingDown)?.map(|(answered, _)| answered)
}

fn context(directory: &Directory) -> Context {
    Context { index: directory.applied(), time_ms: directory.time_ms(), seed: 0 }
}

impl ReaderTask {
    /// Runs until every `Reader` is gone.
    pub async fn run(mut self) {
        let mut waiting = Vec::new();
        // All that wait have one round: nobody waits for a second one because of others.
        while self.queue.recv_many(&mut waiting, PLACES).await > 0 {
            waiting.retain(|waiting| !waiting.caller.is_gone());
            match self.round(&waiting).await {
                Ok(()) => self.hand_on(std::mem::take(&mut waiting)),
                Err(error) => fail(&error, waiting.drain(..)),
            }
        }
    }

    /// Returns once this node was the leader after the round began and has applied what had been
    /// committed by then.
    async fn round(&self, waiting: &[Waiting]) -> Result<(), Error> {
        let confirmed = self.raft.ensure_linearizable(ReadPolicy::ReadIndex).await;
        confirmed.map_err(Error::from_raft_read)?;
        self.keep_time(waiting).await
    }

    /// A guest that uses time is asked at a time that does not lag, unless the disk is nearly full
    /// or writes have stopped: then nothing is appended, and reads go on at the time of the last
    /// entry.
    async fn keep_time(&self, waiting: &[Waiting]) -> Result<(), Error> {
        let lags = |now| now >= self.directory.time_ms() + TICK_LAG_MS;
        let is_late = self.clock.time_ms().is_none_or(lags);
        if !is_late || check_writable(&self.space, &self.directory).is_err() {
            return Ok(());
        }
        let view = self.directory.view();
        let uses_time = |waiting: &Waiting| {
            let machine = view.machines.get(&waiting.machine);
            machine.and_then(|machine| machine.manifest.as_ref()).is_some_and(|m| m.uses_time)
        };
        if !waiting.iter().any(uses_time) {
            return Ok(());
        }
        let time_ms = self.clock.stamp(self.directory.time_ms()).await;
        let tick = Proposal::Tick { time_ms }.encode();
        let ticked = self.raft.client_write(EntryBytes(tick)).await;
        ticked.map(drop).map_err(Error::from_raft_write)
    }

    /// Hands the queries to the guests.
    fn hand_on(&self, waiting: Vec<Waiting>) {
        let view = self.directory.view();
        let mut guests: BTreeMap<String, (GuestHandle, Vec<Query>)> = BTreeMap::new();
        for Waiting { machine, query, deadline, caller } in waiting {
            match guest_of(&view, &machine) {
                Ok(guest) => {
                    let (_, queries) = guests.entry(machine).or_insert((guest, Vec::new()));
                    queries.push(Query { bytes: query, deadline, asker: Box::new(caller) });
                }
                Err(error) => caller.fail(error),
            }
        }
        for (guest, queries) in guests.into_values() {
            guest.query(context(&self.directory), queries);
        }
    }
}

/// The guest that answers for a machine, or why none does.
fn guest_of(view: &View, machine: &str) -> Result<GuestHandle, Error> {
    if let Some(reason) = &view.parked {
        return Err(Error::Parked(reason.clone()));
    }
    let published = view.machines.get(machine).ok_or_else(|| match view.replacing {
        true => Error::Recovering,
        false => Error::NoSuchMachine(machine.to_owned()),
    })?;
    published.guest.clone().ok_or_else(|| match published.restoring {
        _ if view.replacing => Error::Recovering,
        Some(_) => Error::Restoring(machine.to_owned()),
        None => Error::NoSuchMachine(machine.to_owned()),
    })
}

fn fail(error: &Error, waiting: impl Iterator<Item = Waiting>) {
    waiting.for_each(|waiting| waiting.caller.fail(error.clone()));
}

impl Caller {
    fn fail(self, error: Error) {
        let _ = self.answer.send(Err(error));
    }
}

impl Asker for Caller {
    fn account(&self) -> u64 {
        self.held.account()
    }

    fn is_gone(&self) -> bool {
        self.answer.is_closed()
    }

    fn has_room(&self) -> bool {
        !self.held.is_over()
    }

    fn expected(&self) -> usize {
        self.held.expected()
    }

    fn refuse(self: Box<Self>) {
        self.fail(Error::Overloaded);
    }

    fn tell(self: Box<Self>, told: Told, applied: LogIndex) {
        let Self { answer, mut held, _place } = *self;
        let answered = match told {
            Ok(Some(outcome)) => {
                held.becomes_reply(outcome.length());
                Ok((Answered { outcome, applied }, held))
            }
            // What was not applied was not begun, or its changes are thrown away.
            Ok(None) => Err(Error::DeadlineBeforeProposal),
            Err(failure) => Err(Error::Stopped(failure.to_string())),
        };
        let _ = answer.send(answered);
    }
}
