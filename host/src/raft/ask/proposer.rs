//! Turns the commands that arrive while entries are on their way into one entry.
//!
//! One task owns the batching; requests reach it through a bounded queue and get their outcome
//! through a channel of their own. Commands keep the order in which they were queued.
//!
//! **Invariant:** a command whose error says NOT_APPLIED was never handed to openraft, or openraft
//! said that it was never appended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use openraft::impls::ProgressResponder;
use openraft::raft::ClientWriteResult;
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::{FileConfig, limits};
use crate::machine::{Batch, Directory, Proposal, Response};
use crate::raft::Raft;
use crate::raft::ask::error::Error;
use crate::raft::ask::replica::Executed;
use crate::raft::ask::returning::{Answered, Returning};
use crate::raft::type_config::{EntryBytes, TypeConfig};
use crate::types::{Command, MachineId, TimeMs};

type Outcome = Result<Executed, Error>;

/// Appends that may wait for this node's disk while entries are proposed: a quarter of what the
/// log's writer queues before it blocks whoever appends.
const UNSYNCED_APPENDS_MAX: usize = 256;

/// A command and who waits for it.
struct Waiting {
    command: Command,
    outcome: oneshot::Sender<Outcome>,
    /// Set by whoever comes first: the batching, or the caller whose deadline passed.
    claimed: Arc<AtomicBool>,
}

/// A queued command's outcome, to be awaited.
#[derive(Debug)]
pub struct Pending {
    outcome: oneshot::Receiver<Outcome>,
    claimed: Arc<AtomicBool>,
}

/// Where commands are queued.
#[derive(Clone, Debug)]
pub struct Proposer {
    queue: mpsc::Sender<Waiting>,
    queued_bytes: Arc<AtomicUsize>,
    queued_bytes_max: usize,
}

/// The task that makes entries of queued commands.
pub struct ProposerTask {
    raft: Raft,
    directory: Arc<Directory>,
    clock: fn() -> TimeMs,
    queue: mpsc::Receiver<Waiting>,
    queued_bytes: Arc<AtomicUsize>,
    entries_in_flight_max: usize,
    unsynced: watch::Receiver<usize>,
    returning: Returning,
    last_time_ms: TimeMs,
}

impl Proposer {
    /// A queue and the task that empties it.
    pub fn new(
        raft: Raft,
        directory: Arc<Directory>,
        unsynced: watch::Receiver<usize>,
        clock: fn() -> TimeMs,
        config: &FileConfig,
    ) -> (Self, ProposerTask) {
        let (sender, queue) = mpsc::channel(config.proposer_queue_commands_max);
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let proposer = Self {
            queue: sender,
            queued_bytes: Arc::clone(&queued_bytes),
            queued_bytes_max: config.proposer_queue_bytes_max,
        };
        let task = ProposerTask {
            raft,
            directory,
            clock,
            queue,
            queued_bytes,
            entries_in_flight_max: config.entries_in_flight_max,
            unsynced,
            returning: Returning::default(),
            last_time_ms: 0,
        };
        (proposer, task)
    }

    /// Queues a command. Never waits: a full queue is an error. The order of calls is the order of
    /// the commands in the log.
    pub fn propose(&self, command: Command) -> Result<Pending, Error> {
        let length = command.bytes.len();
        if self.queued_bytes.load(Ordering::Relaxed) + length > self.queued_bytes_max {
            return Err(Error::Overloaded);
        }
        let (sender, outcome) = oneshot::channel();
        let claimed = Arc::new(AtomicBool::new(false));
        self.queued_bytes.fetch_add(length, Ordering::Relaxed);
        let waiting = Waiting { command, outcome: sender, claimed: Arc::clone(&claimed) };
        self.queue.try_send(waiting).map_err(|error| {
            self.queued_bytes.fetch_sub(length, Ordering::Relaxed);
            match error {
                mpsc::error::TrySendError::Full(_) => Error::Overloaded,
                mpsc::error::TrySendError::Closed(_) => Error::ShuttingDown,
            }
        })?;
        Ok(Pending { outcome, claimed })
    }
}

impl Pending {
    /// Waits for the outcome. A command still queued when the deadline passes is never proposed.
    pub async fn wait_until(mut self, deadline: Instant) -> Outcome {
        match tokio::time::timeout_at(deadline.into(), &mut self.outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Error::Stopped("the node stopped before it answered".to_owned())),
            Err(_) if self.claimed.swap(true, Ordering::AcqRel) => {
                Err(Error::DeadlineAfterProposal)
            }
            Err(_) => Err(Error::DeadlineBeforeProposal),
        }
    }
}

impl ProposerTask {
    /// Runs until every `Proposer` is gone and every entry has come back. While as many entries
    /// are on their way as may be, commands gather in the queue; the next entry takes them all.
    pub async fn run(mut self) {
        let mut in_flight = FuturesUnordered::new();
        loop {
            // Others may commit without this node's disk, but it must not fall behind for ever.
            let disk_keeps_up = *self.unsynced.borrow_and_update() < UNSYNCED_APPENDS_MAX;
            let room = in_flight.len() < self.entries_in_flight_max && disk_keeps_up;
            tokio::select! {
                Some(answered) = in_flight.next(), if !in_flight.is_empty() => {
                    self.returning.expect(&answered, self.queue.len());
                }
                Ok(()) = self.unsynced.changed(), if !disk_keeps_up => {}
                first = self.queue.recv(), if room => {
                    let Some(first) = first else { break };
                    // Answers to one entry bring many commands at once: let those that are here
                    // already be queued, so that they share the next entry.
                    tokio::task::yield_now().await;
                    let mut gathered = Gathered::default();
                    self.take(first, &mut gathered);
                    if in_flight.is_empty() {
                        self.await_returning(&mut gathered).await;
                    }
                    self.take_queued(&mut gathered);
                    if !gathered.commands.is_empty() {
                        in_flight.push(self.submit(gathered.commands).await);
                    }
                }
                // The log is gone, and with it all that could be written to.
                else => break,
            }
        }
        while in_flight.next().await.is_some() {}
    }

    /// Takes a command off the queue, unless nobody waits for it any more.
    fn take(&self, waiting: Waiting, gathered: &mut Gathered) {
        let length = waiting.command.bytes.len();
        self.queued_bytes.fetch_sub(length, Ordering::Relaxed);
        if !waiting.claimed.swap(true, Ordering::AcqRel) {
            gathered.bytes += length;
            gathered.commands.push(waiting);
        }
    }

    /// Takes what is queued, up to the limits of an entry.
    fn take_queued(&mut self, gathered: &mut Gathered) {
        while !gathered.is_full() {
            match self.queue.try_recv() {
                Ok(waiting) => self.take(waiting, gathered),
                Err(_) => return,
            }
        }
    }

    /// Takes commands as they come, as long as it pays to wait for those of clients that were just
    /// answered.
    async fn await_returning(&mut self, gathered: &mut Gathered) {
        let Some((count, until)) = self.returning.worth_waiting_for() else { return };
        while gathered.commands.len() < count && !gathered.is_full() {
            match tokio::time::timeout_at(until.into(), self.queue.recv()).await {
                Ok(Some(waiting)) if Instant::now() < until => self.take(waiting, gathered),
                Ok(Some(waiting)) => {
                    self.take(waiting, gathered);
                    return self.returning.disappoint();
                }
                Ok(None) => return,
                Err(_) => return self.returning.disappoint(),
            }
        }
        self.returning.satisfy();
    }

    /// Hands one entry to openraft; the future completes when all its commands are answered.
    async fn submit(&mut self, waiting: Vec<Waiting>) -> impl Future<Output = Answered> + use<> {
        let (commands, start) = (waiting.len(), Instant::now());
        let (batches, outcomes) = into_batches(waiting);
        let floor = self.last_time_ms.max(self.directory.time_ms());
        let time_ms = (self.clock)().max(floor);
        self.last_time_ms = time_ms;
        let entry = EntryBytes(Proposal::Commands { time_ms, batches }.encode());
        let (responder, answer) = ProgressResponder::complete_only();
        let submitted = self.raft.client_write_ff(entry, Some(responder)).await;
        async move {
            let answer = match submitted {
                Ok(()) => answer
                    .await
                    .map_err(|_| Error::Stopped("the node stopped before it answered".to_owned())),
                Err(fatal) => Err(Error::Stopped(fatal.to_string())),
            };
            distribute(answer.and_then(into_response), outcomes);
            Answered { commands, took: start.elapsed() }
        }
    }
}

impl Gathered {
    fn is_full(&self) -> bool {
        self.commands.len() >= limits::ENTRY_COMMANDS_MAX || self.bytes >= limits::ENTRY_BYTES_MAX
    }
}

/// Commands of the next entry.
#[derive(Default)]
struct Gathered {
    commands: Vec<Waiting>,
    bytes: usize,
}

/// Groups commands by machine, one batch each, and puts those who wait in the same order.
fn into_batches(waiting: Vec<Waiting>) -> (Vec<Batch>, Vec<oneshot::Sender<Outcome>>) {
    let mut machines: BTreeMap<MachineId, (Vec<Command>, Vec<oneshot::Sender<Outcome>>)> =
        BTreeMap::new();
    for Waiting { command, outcome, .. } in waiting {
        let (commands, outcomes) = machines.entry(command.machine).or_default();
        commands.push(command);
        outcomes.push(outcome);
    }
    let mut batches = Vec::with_capacity(machines.len());
    let mut all = Vec::new();
    for (machine, (commands, outcomes)) in machines {
        batches.push(Batch::new(machine, &commands));
        all.extend(outcomes);
    }
    (batches, all)
}

/// What openraft says of an entry, in our terms.
fn into_response(answer: ClientWriteResult<TypeConfig>) -> Result<(u64, Response), Error> {
    answer.map(|written| (written.log_id.index(), written.data)).map_err(Error::from_write)
}

/// Gives each of those who wait the outcome of their own command. One that waits no longer has
/// dropped its receiver, which is all there is to ignore.
fn distribute(answer: Result<(u64, Response), Error>, outcomes: Vec<oneshot::Sender<Outcome>>) {
    let (index, replies) = match answer {
        Ok((index, Response::Commands(replies))) => (index, replies),
        Ok((_, Response::NodeParked(reason))) => {
            return fail(&Error::Stopped(format!("parked: {reason}")), outcomes);
        }
        Ok((_, Response::Refused(refusal))) => return fail(&refusal.into(), outcomes),
        Ok((index, other)) => panic!("commands of entry {index} were answered by {other:?}"),
        Err(error) => return fail(&error, outcomes),
    };
    assert_eq!(replies.len(), outcomes.len(), "one outcome a command, at entry {index}");
    for (outcome, reply) in outcomes.into_iter().zip(replies) {
        let _ = outcome.send(Ok(Executed { outcome: reply, index }));
    }
}

fn fail(error: &Error, outcomes: Vec<oneshot::Sender<Outcome>>) {
    for outcome in outcomes {
        let _ = outcome.send(Err(error.clone()));
    }
}
