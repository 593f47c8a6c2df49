//! `Replica`: what the rest of the daemon asks of the replicated state machine. One handle, cheap
//! to clone; the gRPC services are built on it and know nothing below it.
//!
//! Commands and queries are here; what operators ask for is in `membership` and `machine_admin`.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use openraft::ReadPolicy;
use openraft::async_runtime::WatchReceiver as _;
use tokio::sync::{mpsc, watch};

use crate::budget::Held;
use crate::machine::{Directory, Environment};
use crate::raft::Raft;
use crate::raft::admin::Request;
use crate::raft::admin::machine_admin::AskedCheckpoints;
use crate::raft::ask::error::Error;
use crate::raft::ask::queue::{Pending, Proposer};
use crate::raft::ask::reader::Reader;
use crate::raft::ask::status;
use crate::raft::ask::status::Status;
use crate::raft::clock::Clock;
use crate::raft::duties::space::Space;
use crate::raft::network::{Local, Network};
use crate::raft::store::snapshots::SharedSnapshots;
use crate::raft::type_config::{RaftLogId, RaftVote};
use crate::types::{Command, LogIndex, MachineId, Member, Outcome, SessionSlot};

/// A handle on this node's replica.
#[derive(Clone)]
pub struct Replica {
    pub(in crate::raft) shared: Arc<Shared>,
}

/// What all handles share.
pub struct Shared {
    /// This node, as far as its peers are concerned.
    pub local: Arc<Local>,
    /// How this node is reached.
    pub member: Member,
    /// openraft.
    pub raft: Raft,
    /// The way to the other nodes.
    pub network: Network,
    /// The machines as applied.
    pub directory: Arc<Directory>,
    /// The sandbox, to check modules before they are staged.
    pub environment: Environment,
    /// Where commands are queued.
    pub proposer: Proposer,
    /// Where linearizable queries are queued.
    pub reader: Reader,
    /// The snapshots on disk.
    pub snapshots: SharedSnapshots,
    /// The checkpoints that operators ask for.
    pub asked_checkpoints: AskedCheckpoints,
    /// Room on disk.
    pub space: Arc<Space>,
    /// Where changes of the membership are queued.
    pub changes: mpsc::Sender<Request>,
    /// The replicated time.
    pub clock: Arc<Clock>,
    /// True once reads here cannot go back behind what was read before a restart.
    pub recovered: watch::Receiver<bool>,
}

/// Whether a node that leads may write: its disk has room, and writes have not stopped.
pub(in crate::raft) fn check_writable(space: &Space, directory: &Directory) -> Result<(), Error> {
    space.check()?;
    let view = directory.view();
    if let Some(reason) = &view.halted {
        return Err(Error::Halted(reason.clone()));
    }
    match &view.sealed {
        Some(sealed) => Err(Error::Sealed(sealed.to_string())),
        None => Ok(()),
    }
}

/// Whether the leader of this vote has applied an entry of its own. The first is the blank one of
/// its election, and all that was committed before stands in front of it (Raft dissertation,
/// section 6.4).
fn has_applied_own(last_applied: Option<&RaftLogId>, vote: &RaftVote) -> bool {
    last_applied.is_some_and(|id| id.committed_leader_id() == vote.leader_id())
}

/// A committed command: what it came to, and where it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executed {
    /// What the command came to, the same on every node.
    pub outcome: Outcome,
    /// Index of the entry that held it.
    pub index: LogIndex,
    /// Which of the commands of that entry it was, from 0 on.
    pub position: usize,
}

/// The answer to a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// What the guest answered, or how it failed.
    pub outcome: Outcome,
    /// The machine had applied the log up to here.
    pub applied: LogIndex,
}

/// How fresh a query's answer must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// Reflects every command acknowledged before the query was received (ReadIndex, Raft
    /// dissertation, section 6.4). Only the leader answers.
    Linearizable,
    /// What this node has applied, however old.
    Stale,
}

impl Replica {
    /// A handle on the parts that the composition root has put together.
    pub fn new(shared: Shared) -> Self {
        Self { shared: Arc::new(shared) }
    }

    /// Orders a command, whose length the caller has checked, and waits until it is applied. Calls
    /// made in order on one task for one account enter the log in that order, up to the first
    /// await of the returned future. `held` is what its caller holds for it and its reply.
    pub async fn execute(
        &self,
        machine: &str,
        session: Option<SessionSlot>,
        command: Bytes,
        deadline: Instant,
        held: Held,
    ) -> Result<Executed, Error> {
        let id = match self.find_running(machine) {
            Some(id) => id,
            None => {
                self.find_current(machine, deadline).await?;
                self.find_running(machine).ok_or_else(|| Error::Restoring(machine.to_owned()))?
            }
        };
        let command = Command { machine: id, session, bytes: command };
        let executed = self.propose(command, held)?.wait_until(deadline).await?;
        match executed.outcome {
            Outcome::NoSuchMachine => Err(Error::NoSuchMachine(machine.to_owned())),
            _ => Ok(executed),
        }
    }

    fn propose(&self, command: Command, held: Held) -> Result<Pending, Error> {
        self.check_writable()?;
        self.shared.proposer.propose(command, held)
    }

    /// Whether a write may start: the one place that decides it before the log does. An entry that
    /// is on its way when this changes is refused by the machines, on every node alike. So is one
    /// that a new leader lets through: it may not have applied the entry yet that let writes go on.
    pub(in crate::raft) fn check_writable(&self) -> Result<(), Error> {
        self.check_leader()?;
        let check = || check_writable(&self.shared.space, &self.shared.directory);
        match check() {
            Err(Error::Halted(_) | Error::Sealed(_)) if self.is_caught_up() => check(),
            Err(Error::Halted(_) | Error::Sealed(_)) => Ok(()),
            decided => decided,
        }
    }

    /// Whether this node, if it leads, has applied all that was committed before it led.
    fn is_caught_up(&self) -> bool {
        let metrics = self.shared.raft.metrics();
        let metrics = metrics.borrow_watched();
        has_applied_own(metrics.last_applied.as_ref(), &metrics.vote)
    }

    /// Asks a machine without changing it.
    pub async fn query(
        &self,
        machine: &str,
        query: Bytes,
        consistency: Consistency,
        deadline: Instant,
        held: Held,
    ) -> Result<Answered, Error> {
        let reader = &self.shared.reader;
        let answer = async {
            match consistency {
                Consistency::Linearizable => {
                    self.check_leader()?;
                    reader.query(machine, query, deadline, held).await
                }
                Consistency::Stale if self.shared.local.went_back().is_some() => {
                    let reason = self.shared.local.went_back().unwrap_or_default();
                    Err(Error::Refused(reason.to_owned()))
                }
                Consistency::Stale if !*self.shared.recovered.borrow() => Err(Error::Recovering),
                Consistency::Stale => {
                    let directory = &self.shared.directory;
                    reader.query_stale(directory, machine, query, deadline, held).await
                }
            }
        };
        // A query changes nothing, so one that was given up has certainly not been applied.
        tokio::time::timeout_at(deadline.into(), answer)
            .await
            .map_err(|_| Error::DeadlineBeforeProposal)?
    }

    /// What this node knows of itself and the cluster.
    pub fn status(&self) -> Status {
        status::of(&self.shared)
    }

    /// The machine's id as applied here, unless its state is still coming in.
    fn find_running(&self, machine: &str) -> Option<MachineId> {
        let view = self.shared.directory.view();
        let published = view.machines.get(machine)?;
        published.restoring.is_none().then_some(published.id)
    }

    /// The machine's id as applied here.
    pub(in crate::raft) fn find(&self, machine: &str) -> Option<MachineId> {
        self.shared.directory.view().machines.get(machine).map(|published| published.id)
    }

    /// The machine's id once this node, if it leads, has applied all that was committed before
    /// now: a new leader may not have applied the entry that created it yet.
    pub(in crate::raft) async fn find_current(
        &self,
        machine: &str,
        deadline: Instant,
    ) -> Result<MachineId, Error> {
        self.check_leader()?;
        let confirmed = self.shared.raft.ensure_linearizable(ReadPolicy::ReadIndex);
        tokio::time::timeout_at(deadline.into(), confirmed)
            .await
            .map_err(|_| Error::DeadlineBeforeProposal)?
            .map_err(Error::from_raft_read)?;
        self.find(machine).ok_or_else(|| Error::NoSuchMachine(machine.to_owned()))
    }

    /// Refuses early what only the leader can do, with its address.
    pub(in crate::raft) fn check_leader(&self) -> Result<(), Error> {
        let metrics = self.shared.raft.metrics();
        let metrics = metrics.borrow_watched();
        if let Err(fatal) = &metrics.running_state {
            return Err(Error::Stopped(fatal.to_string()));
        }
        if self.shared.local.cluster().is_none() {
            return Err(Error::Uninitialized);
        }
        // A parked node still knows who leads.
        let check_parked = || match &self.shared.directory.view().parked {
            Some(reason) => Err(Error::Parked(reason.clone())),
            None => Ok(()),
        };
        match status::leader(&self.shared, &metrics) {
            Some(leader) if leader == self.shared.local.node_id() => check_parked(),
            Some(leader) => match metrics.membership_config.membership().get_node(&leader) {
                Some(member) => Err(Error::NotLeader { leader: (leader, member.clone()) }),
                None => Err(Error::NoLeader),
            },
            None => check_parked().and(Err(Error::NoLeader)),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::raft::ask::replica::has_applied_own;
    use crate::raft::store::convert::{log_id_to_raft, vote_to_raft};
    use crate::types::{LogId, NodeId, Vote};

    /// A new leader whose last applied entry is of an earlier term, or of another leader, knows
    /// less than what was committed.
    #[test]
    fn a_leader_is_caught_up_once_it_applied_its_own() {
        let vote = vote_to_raft(Vote { term: 4, node: NodeId(1), committed: true });
        let rows = [(3, 2, false), (3, 1, false), (4, 2, false), (4, 1, true)];
        for (term, node, caught_up) in rows {
            let applied = log_id_to_raft(LogId { term, node: NodeId(node), index: 9 });
            assert_eq!(has_applied_own(Some(&applied), &vote), caught_up, "{term} of {node}");
        }
        assert!(!has_applied_own(None, &vote), "nothing is applied");
    }
}
