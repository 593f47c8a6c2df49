//! Turns the commands that arrive while entries are on their way into one entry, and gives each of
//! those who wait the outcome of their own command. One task does so; `queue` is how commands come
//! to it.
//!
//! **Invariant:** a command whose error says NOT_APPLIED was never handed to openraft, or openraft
//! said that it was never appended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use openraft::impls::ProgressResponder;
use openraft::raft::ClientWriteResult;
use tokio::sync::watch;

use crate::config::{FileConfig, limits};
use crate::machine::{Batch, Directory, Proposal, Response};
use crate::raft::Raft;
use crate::raft::ask::error::Error;
use crate::raft::ask::queue::{self, Caller, Proposer, Queue, Waiting};
use crate::raft::ask::replica::Executed;
use crate::raft::ask::returning::Answered;
use crate::raft::clock::Clock;
use crate::raft::type_config::{EntryBytes, TypeConfig};
use crate::types::{self, Command, MachineId};

/// Appends that may wait for this node's disk while entries are proposed: a quarter of what the
/// log's writer queues before it blocks whoever appends.
const UNSYNCED_APPENDS_MAX: usize = 256;

/// The task that makes entries of queued commands.
pub struct ProposerTask {
    raft: Raft,
    directory: Arc<Directory>,
    clock: Arc<Clock>,
    queue: Queue,
    entries_in_flight_max: usize,
    unsynced: watch::Receiver<usize>,
}

impl ProposerTask {
    /// The task, and where commands are queued for it.
    pub fn new(
        raft: Raft,
        directory: Arc<Directory>,
        unsynced: watch::Receiver<usize>,
        clock: Arc<Clock>,
        config: &FileConfig,
    ) -> (Proposer, Self) {
        let (proposer, queue) = queue::open(config);
        let task = Self {
            raft,
            directory,
            clock,
            queue,
            entries_in_flight_max: config.entries_in_flight_max,
            unsynced,
        };
        (proposer, task)
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
                    self.queue.learn(&answered);
                }
                Ok(()) = self.unsynced.changed(), if !disk_keeps_up => {}
                () = std::future::ready(()), if room && self.queue.has_turns() => {
                    let commands = self.queue.gather(None, false).await;
                    if !commands.is_empty() {
                        in_flight.push(self.submit(commands).await);
                    }
                }
                first = self.queue.first(), if room && !self.queue.has_turns() => {
                    let Some(first) = first else { break };
                    let commands = self.queue.gather(Some(first), in_flight.is_empty()).await;
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
    let mut told: Vec<_> = callers.into_iter().zip(replies).enumerate().collect();
    // Connections took turns. What one is told now goes out together.
    told.sort_by_key(|(_, (caller, _))| caller.account());
    for (position, (caller, outcome)) in told {
        caller.tell(Executed { outcome, index, position });
    }
    longest
}

fn fail(error: &Error, callers: Vec<Caller>) -> usize {
    callers.into_iter().for_each(|caller| caller.fail(error.clone()));
    0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::budget::Budget;
    use crate::machine::Refusal;
    use crate::raft::ask::queue::tests::{command, queue};
    use crate::types::Outcome;

    const FAR: Duration = Duration::from_secs(60);

    /// Commands of an entry are grouped by machine, each keeps its place among those of its
    /// machine, and each caller is told of its own command.
    #[tokio::test]
    async fn each_is_told_of_its_own_command() {
        let account = Budget::new(64 << 20).open();
        let (proposer, mut queue) = queue(10, 100);
        let mut pending = Vec::new();
        for (machine, text) in [(2, "a"), (1, "b"), (2, "c"), (1, "d")] {
            let held = account.begin(1).unwrap();
            pending.push((text, proposer.propose(command(machine, text), held).unwrap()));
        }
        let first = queue.first().await;
        let (batches, callers) = into_batches(queue.gather(first, false).await);
        let data: Vec<_> = batches.iter().map(|batch| (batch.machine(), batch.data())).collect();
        let expected = [(1, "bd"), (2, "ac")].map(|(machine, data)| (MachineId(machine), data));
        assert!(
            data.iter()
                .map(|(machine, data)| (*machine, &data[..]))
                .eq(expected.iter().map(|(machine, data)| (*machine, data.as_bytes())))
        );
        let replies = ["b", "d", "a", "longest c"].map(|text| Outcome::Accepted(text.into()));
        let answer = Ok((7, Response::Commands(replies.to_vec())));
        assert_eq!(distribute(answer, callers), "longest c".len());
        for (position, text) in [(2, "a"), (0, "b"), (3, "longest c"), (1, "d")] {
            let at = pending.iter().position(|(own, _)| text.ends_with(own)).unwrap();
            let (_, own) = pending.remove(at);
            let outcome = Outcome::Accepted(text.into());
            let executed = Executed { outcome, index: 7, position };
            assert_eq!(own.wait_until(Instant::now() + FAR).await, Ok(executed));
        }
    }

    /// An entry that came to nothing is told to all whose commands it held.
    #[tokio::test]
    async fn all_are_told_of_a_failure() {
        let refusal = || Refusal::Halted("why".into());
        let parked = Error::Stopped("parked: why".into());
        let rows = [
            (Err(Error::LeaderChanged), Error::LeaderChanged),
            (Ok((7, Response::NodeParked("why".into()))), parked),
            (Ok((7, Response::Refused(refusal()))), refusal().into()),
        ];
        for (answer, expected) in rows {
            let account = Budget::new(64 << 20).open();
            let (proposer, mut queue) = queue(10, 100);
            let propose = || proposer.propose(command(1, "a"), account.begin(1).unwrap());
            let pending = [propose().unwrap(), propose().unwrap()];
            let first = queue.first().await;
            let (_, callers) = into_batches(queue.gather(first, false).await);
            assert_eq!(distribute(answer, callers), 0);
            for own in pending {
                assert_eq!(own.wait_until(Instant::now() + FAR).await, Err(expected.clone()));
            }
        }
    }
}
