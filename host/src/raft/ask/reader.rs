//! Linearizable queries: one ReadIndex round for all that wait (Raft dissertation, section 6.4),
//! then one call of each guest for all its queries.
//!
//! While a round is under way, later queries gather for the next one: a query may only use a
//! round that began after the query came.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use openraft::ReadPolicy;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::config::limits;
use crate::machine::{Context, Directory, GuestHandle, Proposal, Queries, View};
use crate::raft::Raft;
use crate::raft::ask::error::Error;
use crate::raft::ask::replica::Answered;
use crate::raft::duties::space::Space;
use crate::raft::type_config::EntryBytes;
use crate::types::TimeMs;

type Answer = Result<Answered, Error>;

/// Queries that may wait for a round.
const QUEUE_MAX: usize = 65_536;
/// How far the replicated time may lag before a query of a guest that uses time has the leader
/// log a `Tick`, in milliseconds. It bounds ticks to ten a second.
const TICK_LAG_MS: TimeMs = 100;

/// A query and who waits for it.
struct Waiting {
    machine: String,
    query: Bytes,
    deadline: Instant,
    answer: oneshot::Sender<Answer>,
}

/// Where linearizable queries are queued.
#[derive(Clone, Debug)]
pub struct Reader {
    queue: mpsc::Sender<Waiting>,
}

/// The task that makes rounds of queued queries.
pub struct ReaderTask {
    raft: Raft,
    directory: Arc<Directory>,
    space: Arc<Space>,
    clock: fn() -> TimeMs,
    queue: mpsc::Receiver<Waiting>,
}

impl Reader {
    /// A queue and the task that empties it.
    pub fn new(
        raft: Raft,
        directory: Arc<Directory>,
        space: Arc<Space>,
        clock: fn() -> TimeMs,
    ) -> (Self, ReaderTask) {
        let (sender, queue) = mpsc::channel(QUEUE_MAX);
        (Self { queue: sender }, ReaderTask { raft, directory, space, clock, queue })
    }

    /// Asks a machine for an answer that reflects everything acknowledged before this call. One
    /// whose deadline has passed is not begun, and one that runs past it is ended.
    pub async fn query(&self, machine: String, query: Bytes, deadline: Instant) -> Answer {
        let (answer, receiver) = oneshot::channel();
        self.queue.try_send(Waiting { machine, query, deadline, answer }).map_err(|error| {
            match error {
                mpsc::error::TrySendError::Full(_) => Error::Overloaded,
                mpsc::error::TrySendError::Closed(_) => Error::ShuttingDown,
            }
        })?;
        receiver.await.map_err(|_| Error::ShuttingDown)?
    }
}

impl ReaderTask {
    /// Runs until every `Reader` is gone.
    pub async fn run(mut self) {
        let mut answering = JoinSet::new();
        let mut waiting = Vec::new();
        while self.queue.recv_many(&mut waiting, limits::ENTRY_COMMANDS_MAX).await > 0 {
            while answering.try_join_next().is_some() {}
            match self.round(&waiting).await {
                Ok(()) => {
                    for batch in self.group(std::mem::take(&mut waiting)) {
                        answering.spawn(batch.answer(Arc::clone(&self.directory)));
                    }
                }
                Err(error) => fail(&error, waiting.drain(..).map(|waiting| waiting.answer)),
            }
        }
        while answering.join_next().await.is_some() {}
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
        let now = (self.clock)();
        if now < self.directory.time_ms() + TICK_LAG_MS || self.space.check().is_err() {
            return Ok(());
        }
        let view = self.directory.view();
        if view.halted.is_some() || view.sealed.is_some() {
            return Ok(());
        }
        let uses_time = |waiting: &Waiting| {
            let machine = view.machines.get(&waiting.machine);
            machine.and_then(|machine| machine.manifest.as_ref()).is_some_and(|m| m.uses_time)
        };
        if !waiting.iter().any(uses_time) {
            return Ok(());
        }
        let tick = Proposal::Tick { time_ms: now }.encode();
        let ticked = self.raft.client_write(EntryBytes(tick)).await;
        ticked.map(drop).map_err(Error::from_raft_write)
    }

    fn group(&self, waiting: Vec<Waiting>) -> Vec<QueryBatch> {
        let view = self.directory.view();
        let mut batches: BTreeMap<String, QueryBatch> = BTreeMap::new();
        // Who gave up meanwhile is not asked for.
        let waiting = waiting.into_iter().filter(|waiting| !waiting.answer.is_closed());
        for Waiting { machine, query, deadline, answer } in waiting {
            match guest_of(&view, &machine) {
                Ok(guest) => {
                    let batch = batches.entry(machine).or_insert_with(|| QueryBatch::new(guest));
                    batch.push(&query, deadline, answer);
                }
                Err(error) => fail(&error, std::iter::once(answer)),
            }
        }
        batches.into_values().collect()
    }
}

/// Asks a machine at whatever this node has applied.
pub async fn query_stale(
    directory: Arc<Directory>,
    machine: &str,
    query: &Bytes,
    deadline: Instant,
) -> Answer {
    let guest = guest_of(&directory.view(), machine)?;
    let (sender, receiver) = oneshot::channel();
    let mut batch = QueryBatch::new(guest);
    batch.push(query, deadline, sender);
    batch.answer(directory).await;
    receiver.await.map_err(|_| Error::ShuttingDown)?
}

/// The guest that answers for a machine, or why none does.
fn guest_of(view: &View, machine: &str) -> Result<GuestHandle, Error> {
    if let Some(reason) = &view.parked {
        return Err(Error::Parked(reason.clone()));
    }
    let published =
        view.machines.get(machine).ok_or_else(|| Error::NoSuchMachine(machine.to_owned()))?;
    published.guest.clone().ok_or_else(|| match published.restoring {
        Some(_) => Error::Restoring(machine.to_owned()),
        None => Error::NoSuchMachine(machine.to_owned()),
    })
}

/// Queries of one guest call, and who waits for their answers.
struct QueryBatch {
    guest: GuestHandle,
    queries: Queries,
    answers: Vec<oneshot::Sender<Answer>>,
}

impl QueryBatch {
    fn new(guest: GuestHandle) -> Self {
        Self { guest, queries: Queries::default(), answers: Vec::new() }
    }

    fn push(&mut self, query: &[u8], deadline: Instant, answer: oneshot::Sender<Answer>) {
        self.queries.push(query, deadline);
        self.answers.push(answer);
    }

    /// Asks the guest and answers everybody.
    async fn answer(self, directory: Arc<Directory>) {
        let applied = directory.applied();
        let context = Context { index: applied, time_ms: directory.time_ms(), seed: 0 };
        match self.guest.query(context, self.queries).await {
            Ok(outcomes) => {
                for (answer, outcome) in self.answers.into_iter().zip(outcomes) {
                    let answered = outcome.map(|outcome| Answered { outcome, applied });
                    // What was not applied was not begun, or its changes are thrown away.
                    let _ = answer.send(answered.ok_or(Error::DeadlineBeforeProposal));
                }
            }
            Err(failure) => fail(&Error::Stopped(failure.to_string()), self.answers),
        }
    }
}

fn fail(error: &Error, answers: impl IntoIterator<Item = oneshot::Sender<Answer>>) {
    for answer in answers {
        let _ = answer.send(Err(error.clone()));
    }
}
