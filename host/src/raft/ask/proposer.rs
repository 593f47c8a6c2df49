//! Turns the commands that arrive while entries are on their way into one entry.
//!
//! One task owns the batching; requests reach it through a bounded queue and get their outcome
//! through a channel of their own. Commands of one account keep the order in which they were
//! queued.
//!
//! A reply counts on its caller's account from when it is there until it is taken; a command whose
//! account is over its share by the time of its entry is refused instead of proposed.
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

use crate::budget::Held;
use crate::config::{FileConfig, limits};
use crate::in_turn::InTurn;
use crate::machine::{Batch, Directory, Expected, Proposal, Response};
use crate::raft::Raft;
use crate::raft::ask::error::Error;
use crate::raft::ask::replica::Executed;
use crate::raft::ask::returning::{Answered, Returning};
use crate::raft::clock::Clock;
use crate::raft::type_config::{EntryBytes, TypeConfig};
use crate::types::{self, Command, MachineId};

type Outcome = Result<(Executed, Held), Error>;

/// Appends that may wait for this node's disk while entries are proposed: a quarter of what the
/// log's writer queues before it blocks whoever appends.
const UNSYNCED_APPENDS_MAX: usize = 256;

/// A command and who waits for it.
struct Waiting {
    command: Command,
    caller: Caller,
    /// Set by whoever comes first: the batching, or the caller whose deadline passed.
    claimed: Arc<AtomicBool>,
}

/// Where the outcome goes, and what is held for it.
struct Caller {
    outcome: oneshot::Sender<Outcome>,
    held: Held,
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
    queued: Arc<Queued>,
    commands_max: usize,
    bytes_max: usize,
}

/// What waits for its entry, in the channel or for its turn.
#[derive(Debug, Default)]
struct Queued {
    commands: AtomicUsize,
    bytes: AtomicUsize,
}

impl Queued {
    fn add(&self, bytes: usize) -> (usize, usize) {
        let commands = self.commands.fetch_add(1, Ordering::Relaxed) + 1;
        (commands, self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes)
    }

    fn remove(&self, bytes: usize) {
        self.commands.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The task that makes entries of queued commands.
pub struct ProposerTask {
    raft: Raft,
    directory: Arc<Directory>,
    clock: Arc<Clock>,
    queue: mpsc::Receiver<Waiting>,
    queued: Arc<Queued>,
    entries_in_flight_max: usize,
    unsynced: watch::Receiver<usize>,
    returning: Returning,
    /// What replies have had lately.
    expected: Expected,
    /// While more is queued than one entry takes, callers take turns.
    in_turn: InTurn<Waiting>,
}

impl Proposer {
    /// A queue and the task that empties it.
    pub fn new(
        raft: Raft,
        directory: Arc<Directory>,
        unsynced: watch::Receiver<usize>,
        clock: Arc<Clock>,
        config: &FileConfig,
    ) -> (Self, ProposerTask) {
        let (sender, queue) = mpsc::channel(config.proposer_queue_commands_max);
        let queued = Arc::new(Queued::default());
        let proposer = Self {
            queue: sender,
            queued: Arc::clone(&queued),
            commands_max: config.proposer_queue_commands_max,
            bytes_max: config.proposer_queue_bytes_max,
        };
        let task = ProposerTask {
            raft,
            directory,
            clock,
            queue,
            queued,
            entries_in_flight_max: config.entries_in_flight_max,
            unsynced,
            returning: Returning::default(),
            expected: Expected::default(),
            in_turn: InTurn::default(),
        };
        (proposer, task)
    }

    /// Queues a command. Never waits: a full queue is an error. The order of calls with one account
    /// is the order of their commands in the log.
    pub fn propose(&self, command: Command, held: Held) -> Result<Pending, Error> {
        let length = command.bytes.len();
        let (commands, bytes) = self.queued.add(length);
        if commands > self.commands_max || bytes > self.bytes_max {
            self.queued.remove(length);
            return Err(Error::Overloaded);
        }
        let (sender, outcome) = oneshot::channel();
        let claimed = Arc::new(AtomicBool::new(false));
        let caller = Caller { outcome: sender, held };
        let waiting = Waiting { command, caller, claimed: Arc::clone(&claimed) };
        self.queue.try_send(waiting).map_err(|error| {
            self.queued.remove(length);
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
    pub async fn wait_until(mut self, deadline: Instant) -> Result<Executed, Error> {
        match tokio::time::timeout_at(deadline.into(), &mut self.outcome).await {
            Ok(Ok(outcome)) => outcome.map(|(executed, _)| executed),
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
                    let answered: Answered = answered;
                    self.expected.learn(answered.longest_reply);
                    self.returning.expect(&answered, self.queue.len() + self.in_turn.len());
                }
                Ok(()) = self.unsynced.changed(), if !disk_keeps_up => {}
                () = std::future::ready(()), if room && !self.in_turn.is_empty() => {
                    let commands = self.gather(None, false).await;
                    if !commands.is_empty() {
                        in_flight.push(self.submit(commands).await);
                    }
                }
                first = self.queue.recv(), if room && self.in_turn.is_empty() => {
                    let Some(first) = first else { break };
                    let commands = self.gather(Some(first), in_flight.is_empty()).await;
                    if !commands.is_empty() {
                        in_flight.push(self.submit(commands).await);
                    }
                }
                // The log is gone, and with it all that could be written to.
                else => break,
            }
        }
        while in_flight.next().await.is_some() {}
    }

    /// The commands of the next entry.
    async fn gather(&mut self, first: Option<Waiting>, may_wait: bool) -> Vec<Waiting> {
        // Answers to one entry bring many commands at once: let those that are here already be
        // queued, so that they share the next entry.
        tokio::task::yield_now().await;
        let commands_max = self.expected.count_max();
        let mut gathered = Gathered { commands_max, ..Gathered::default() };
        let all_fit = self.queue.len() < commands_max && commands_max == limits::ENTRY_COMMANDS_MAX;
        if self.in_turn.is_empty() && all_fit {
            if let Some(first) = first {
                self.take(first, &mut gathered);
            }
            if may_wait {
                self.await_returning(&mut gathered).await;
            }
            self.take_queued(&mut gathered);
        } else {
            self.take_in_turn(first, &mut gathered);
        }
        gathered.commands
    }

    /// Takes one command of each caller, again and again, up to the limits of an entry.
    fn take_in_turn(&mut self, first: Option<Waiting>, gathered: &mut Gathered) {
        let mut next = first.or_else(|| self.queue.try_recv().ok());
        while let Some(waiting) = next {
            self.in_turn.push(waiting.caller.held.account(), waiting);
            next = self.queue.try_recv().ok();
        }
        while !gathered.is_full()
            && let Some(waiting) = self.in_turn.pop()
        {
            self.take(waiting, gathered);
        }
    }

    /// Takes a command off the queue, unless nobody waits for it any more.
    fn take(&self, waiting: Waiting, gathered: &mut Gathered) {
        let length = waiting.command.bytes.len();
        self.queued.remove(length);
        let is_gone = waiting.caller.outcome.is_closed();
        if waiting.claimed.swap(true, Ordering::AcqRel) || is_gone {
            return;
        }
        if waiting.caller.held.is_over() {
            return waiting.caller.fail(Error::Overloaded);
        }
        gathered.bytes += length;
        gathered.reply_bytes += waiting.caller.held.expected();
        gathered.commands.push(waiting);
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
        let (batches, callers) = into_batches(waiting);
        let time_ms = self.clock.stamp(self.directory.time_ms()).await;
        let entry = EntryBytes(Proposal::Commands { time_ms, batches }.encode());
        let length = entry.0.len();
        assert!(length <= limits::ENTRY_ENCODED_BYTES_MAX, "an entry has {length} bytes");
        let (responder, answer) = ProgressResponder::complete_only();
        let submitted = self.raft.client_write_ff(entry, Some(responder)).await;
        async move {
            let answer = match submitted {
                Ok(()) => answer
                    .await
                    .map_err(|_| Error::Stopped("the node stopped before it answered".to_owned())),
                Err(fatal) => Err(Error::Stopped(fatal.to_string())),
            };
            let longest_reply = distribute(answer.and_then(into_response), callers);
            Answered { commands, took: start.elapsed(), longest_reply }
        }
    }
}

impl Gathered {
    fn is_full(&self) -> bool {
        self.commands.len() >= self.commands_max
            || self.bytes >= limits::ENTRY_BYTES_MAX
            || self.reply_bytes >= limits::CALL_REPLY_BYTES_EXPECTED
    }
}

/// Commands of the next entry.
#[derive(Default)]
struct Gathered {
    commands: Vec<Waiting>,
    bytes: usize,
    /// What the replies are taken to have.
    reply_bytes: usize,
    commands_max: usize,
}

/// Groups commands by machine, one batch each, and puts those who wait in the same order.
fn into_batches(waiting: Vec<Waiting>) -> (Vec<Batch>, Vec<Caller>) {
    let mut machines: BTreeMap<MachineId, (Vec<Command>, Vec<Caller>)> = BTreeMap::new();
    for Waiting { command, caller, .. } in waiting {
        let (commands, callers) = machines.entry(command.machine).or_default();
        commands.push(command);
        callers.push(caller);
    }
    let mut batches = Vec::with_capacity(machines.len());
    let mut all = Vec::new();
    for (machine, (commands, callers)) in machines {
        batches.push(Batch::new(machine, &commands));
        all.extend(callers);
    }
    (batches, all)
}

/// What openraft says of an entry, in our terms.
fn into_response(answer: ClientWriteResult<TypeConfig>) -> Result<(u64, Response), Error> {
    answer.map(|written| (written.log_id.index(), written.data)).map_err(Error::from_write)
}

/// Gives each of those who wait the outcome of their own command; the length of the longest reply.
fn distribute(answer: Result<(u64, Response), Error>, callers: Vec<Caller>) -> usize {
    let (index, replies) = match answer {
        Ok((index, Response::Commands(replies))) => (index, replies),
        Ok((_, Response::NodeParked(reason))) => {
            return fail(&Error::Stopped(format!("parked: {reason}")), callers);
        }
        Ok((_, Response::Refused(refusal))) => return fail(&refusal.into(), callers),
        Ok((index, other)) => panic!("commands of entry {index} were answered by {other:?}"),
        Err(error) => return fail(&error, callers),
    };
    assert_eq!(replies.len(), callers.len(), "one outcome a command, at entry {index}");
    let longest = replies.iter().map(types::Outcome::length).max().unwrap_or(0);
    for (position, (caller, outcome)) in callers.into_iter().zip(replies).enumerate() {
        caller.tell(Executed { outcome, index, position });
    }
    longest
}

fn fail(error: &Error, callers: Vec<Caller>) -> usize {
    callers.into_iter().for_each(|caller| caller.fail(error.clone()));
    0
}

/// One that waits no longer has dropped its receiver, which is all there is to ignore.
impl Caller {
    fn tell(self, executed: Executed) {
        let Self { outcome, mut held } = self;
        held.becomes_reply(executed.outcome.length());
        let _ = outcome.send(Ok((executed, held)));
    }

    fn fail(self, error: Error) {
        let _ = self.outcome.send(Err(error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;

    /// The bound on commands holds however they wait: those that wait for their turn have left the
    /// channel, and count nevertheless.
    #[tokio::test]
    async fn what_waits_is_bounded_in_count() {
        let (queue, mut waiting) = mpsc::channel(2);
        let queued = Arc::new(Queued::default());
        let (commands_max, bytes_max) = (2, 100);
        let proposer = Proposer { queue, queued: Arc::clone(&queued), commands_max, bytes_max };
        let account = Budget::new(1 << 30).open();
        let propose = |bytes: &'static [u8]| {
            let command = Command { machine: MachineId(1), session: None, bytes: bytes.into() };
            proposer.propose(command, account.hold(1).unwrap())
        };
        let mut in_turn = InTurn::default();
        for _ in 0..2 {
            propose(b"a").unwrap();
            in_turn.push(1, waiting.recv().await.unwrap());
        }
        assert_eq!(propose(b"a").err(), Some(Error::Overloaded));
        in_turn.pop().unwrap();
        queued.remove(1);
        assert_eq!(propose(&[0; 100]).err(), Some(Error::Overloaded));
        propose(b"a").unwrap();
    }
}
