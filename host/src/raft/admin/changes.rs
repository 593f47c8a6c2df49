//! Changes of the membership, done by a task of their own: they go on when the caller is gone.
//!
//! A change of the voters goes through a joint configuration (Raft paper, section 6), which asks
//! for a majority of the voters before and of those after it. openraft's leader commits the joint
//! configuration, then the new one. A leader that ends in between leaves the joint configuration,
//! so this task also finishes whatever joint configuration the leader of the day finds.
//!
//! **Invariant:** a leader makes one step at a time: who comes meanwhile is told so in words.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::async_runtime::WatchReceiver as _;
use openraft::{ChangeMembers, ServerState};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::raft::ask::error::Error;
use crate::raft::ask::replica::Replica;
use crate::raft::type_config::{RaftStoredMembership, TypeConfig};
use crate::types::{LogIndex, Member, Membership, NodeId};

/// What is said to who comes while something else changes the membership.
pub(in crate::raft) const BUSY: &str =
    "another change of the membership is under way: try again once that is done";
/// Changes that are under way or waited for at once: nodes that are to be voters once they have
/// caught up.
const CHANGES_MAX: usize = 16;
/// A committed membership shows in the metrics within this time.
const MEMBERSHIP_SEEN_WITHIN: Duration = Duration::from_secs(1);
/// A learner this close to the leader's log is caught up, in entries.
const CAUGHT_UP_ENTRIES: LogIndex = 100;
/// Time between two attempts to finish a joint configuration.
const RETRY: Duration = Duration::from_millis(500);

type Metrics = openraft::RaftMetrics<TypeConfig>;

/// What an operator asked for.
#[derive(Debug)]
pub(super) enum Change {
    /// A node joins, and becomes a voter unless it shall not.
    Add { node: NodeId, member: Member, voter: bool },
    /// A learner becomes a voter.
    Promote { node: NodeId },
    /// A node leaves.
    Remove { node: NodeId },
}

/// A change and who waits for it.
#[derive(Debug)]
pub struct Request {
    pub(super) change: Change,
    /// Until when a learner may take to catch up.
    pub(super) deadline: Instant,
    /// Whoever waits may be gone.
    pub(super) done: oneshot::Sender<Result<(), Error>>,
}

/// Does what is asked for, and finishes joint configurations.
pub struct MembershipTask {
    changes: Changes,
    requests: mpsc::Receiver<Request>,
}

/// The steps of changes, one at a time.
#[derive(Clone)]
struct Changes {
    replica: Replica,
    step: Arc<Mutex<()>>,
}

impl MembershipTask {
    /// The queue of a task.
    pub fn queue() -> (mpsc::Sender<Request>, mpsc::Receiver<Request>) {
        mpsc::channel(CHANGES_MAX)
    }

    /// A task for this node.
    pub fn new(replica: Replica, requests: mpsc::Receiver<Request>) -> Self {
        Self { changes: Changes { replica, step: Arc::default() }, requests }
    }

    /// Runs until openraft is gone.
    pub async fn run(mut self) {
        let mut under_way = JoinSet::new();
        // Those of the server alone: others change with every entry.
        let mut metrics = self.changes.replica.shared.raft.server_metrics();
        loop {
            let is_left = {
                let now = metrics.borrow_watched();
                is_left(now.state, &now.membership_config, &now.committed_membership_config)
            };
            tokio::select! {
                Some(request) = self.requests.recv(), if under_way.len() < CHANGES_MAX => {
                    under_way.spawn(self.changes.clone().answer(request));
                }
                Some(_) = under_way.join_next() => {}
                () = self.changes.finish(), if is_left => {}
                changed = metrics.changed(), if !is_left => if changed.is_err() { return },
            }
        }
    }
}

/// Whether this node leads and has committed a joint configuration that nobody has left yet.
fn is_left_joint(metrics: &Metrics) -> bool {
    is_left(metrics.state, &metrics.membership_config, &metrics.committed_membership_config)
}

fn is_left(
    state: ServerState,
    effective: &RaftStoredMembership,
    committed: &RaftStoredMembership,
) -> bool {
    state == ServerState::Leader
        && effective.membership().get_joint_config().len() > 1
        && committed.log_id() == effective.log_id()
}

impl Changes {
    async fn answer(self, request: Request) {
        let result = match request.change {
            Change::Add { node, member, voter } => {
                self.add(node, member, voter, request.deadline).await
            }
            Change::Promote { node } => self.promote(node, request.deadline).await,
            Change::Remove { node } => self.remove(node).await,
        };
        if let (Err(error), true) = (&result, request.done.is_closed()) {
            tracing::warn!(%error, "a change of the membership failed, and nobody waits for it");
        }
        // Whoever waited may be gone: the change is made all the same.
        let _ = request.done.send(result);
    }

    async fn add(
        &self,
        node: NodeId,
        member: Member,
        voter: bool,
        deadline: Instant,
    ) -> Result<(), Error> {
        {
            let _step = self.step.try_lock().map_err(|_| Error::Refused(BUSY.to_owned()))?;
            let retired = self.replica.shared.directory.view().retired_nodes.contains(&node);
            check_new(&self.replica.membership(), retired, node, &member)?;
            let written = self.replica.shared.raft.add_learner(node, member, false).await;
            written.map_err(Error::from_raft_write)?;
        }
        if voter { self.promote(node, deadline).await } else { Ok(()) }
    }

    async fn promote(&self, node: NodeId, deadline: Instant) -> Result<(), Error> {
        self.wait_caught_up(node, deadline).await?;
        self.make(ChangeMembers::AddVoterIds(BTreeSet::from([node])), true).await
    }

    async fn remove(&self, node: NodeId) -> Result<(), Error> {
        let membership = self.replica.membership();
        let retired = self.replica.shared.directory.view().retired_nodes.contains(&node);
        check_removal(&membership, retired, node)?;
        let nodes = BTreeSet::from([node]);
        let change = if membership.is_voter(node) {
            ChangeMembers::RemoveVoters(nodes)
        } else {
            ChangeMembers::RemoveNodes(nodes)
        };
        self.make(change, false).await
    }

    /// Makes one change, through a joint configuration where the voters change.
    async fn make(&self, change: ChangeMembers<NodeId, Member>, retain: bool) -> Result<(), Error> {
        let _step = self.step.try_lock().map_err(|_| Error::Refused(BUSY.to_owned()))?;
        let raft = &self.replica.shared.raft;
        let before = *raft.metrics().borrow_watched().membership_config.log_id();
        let error = match raft.change_membership(change, retain).await {
            Ok(_) => return Ok(()),
            Err(error) => Error::from_raft_write(error),
        };
        let now = *raft.metrics().borrow_watched().membership_config.log_id();
        Err(told(error, now != before))
    }

    /// Leaves the joint configuration that a change has left behind, unless the change goes on.
    async fn finish(&self) {
        let Ok(_step) = self.step.try_lock() else {
            // Whoever has it is about to leave that configuration.
            return drop(self.step.lock().await);
        };
        let raft = &self.replica.shared.raft;
        if !is_left_joint(&raft.metrics().borrow_watched()) {
            return;
        }
        tracing::info!("a change of the membership was left half done: it is finished");
        let none = ChangeMembers::AddVoterIds(BTreeSet::new());
        if let Err(error) = raft.change_membership(none, false).await {
            tracing::warn!(%error, "a change of the membership cannot be finished");
            return tokio::time::sleep(RETRY).await;
        }
        // Otherwise it would be finished once more.
        let is_over = |metrics: &Metrics| !is_left_joint(metrics);
        let wait = raft.wait(Some(MEMBERSHIP_SEEN_WITHIN));
        if let Err(error) = wait.metrics(is_over, "change finished").await {
            tracing::warn!(%error, "a change of the membership was finished, and does not show");
        }
    }

    async fn wait_caught_up(&self, node: NodeId, deadline: Instant) -> Result<(), Error> {
        // A node that was just added may show in the metrics a moment later.
        let raft = &self.replica.shared.raft;
        let known = |metrics: &Metrics| is_member(metrics, node);
        let seen = raft.wait(Some(MEMBERSHIP_SEEN_WITHIN)).metrics(known, "node known").await;
        seen.map_err(|_| Error::Refused(format!("node {node} is not in the cluster")))?;
        let ended = |metrics: &Metrics| catching_up(metrics, node) != CatchingUp::GoesOn;
        let remaining = deadline.saturating_duration_since(Instant::now());
        let waited = raft.wait(Some(remaining)).metrics(ended, "the node has caught up").await;
        let metrics = waited.map_err(|_| {
            Error::Refused(format!(
                "node {node} has not caught up with the log yet: it stays a learner; promote it \
                 later"
            ))
        })?;
        match catching_up(&metrics, node) {
            CatchingUp::Removed => {
                Err(Error::Refused(format!("node {node} was removed meanwhile")))
            }
            CatchingUp::NotLed => Err(Error::LeaderChanged),
            CatchingUp::Done | CatchingUp::GoesOn => Ok(()),
        }
    }
}

/// How far a learner has come, as its leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CatchingUp {
    /// It has not the leader's log yet.
    GoesOn,
    /// It has, but for a few entries.
    Done,
    /// It is no member any more.
    Removed,
    /// This node does not lead any more.
    NotLed,
}

fn catching_up(metrics: &Metrics, node: NodeId) -> CatchingUp {
    if !is_member(metrics, node) {
        return CatchingUp::Removed;
    }
    let Some(replication) = &metrics.replication else { return CatchingUp::NotLed };
    let matched = replication.get(&node).copied().flatten().map(|id| id.index());
    let last = metrics.last_log_index.unwrap_or(0);
    match matched {
        Some(matched) if matched + CAUGHT_UP_ENTRIES >= last => CatchingUp::Done,
        _ => CatchingUp::GoesOn,
    }
}

fn is_member(metrics: &Metrics, node: NodeId) -> bool {
    metrics.membership_config.membership().get_node(&node).is_some()
}

/// What is said of a change that failed. Another leader finishes what this one has begun.
fn told(error: Error, is_begun: bool) -> Error {
    match error {
        Error::NotLeader { .. } | Error::NoLeader if is_begun => Error::LeaderChanged,
        error => error,
    }
}

/// Refuses a node id that is, or was, another disk's, and an address that is taken or new.
fn check_new(
    membership: &Membership,
    retired: bool,
    node: NodeId,
    member: &Member,
) -> Result<(), Error> {
    let refused = |reason: String| Err(Error::Refused(reason));
    // Whoever asked has said so in better words; what is logged must fit every message.
    node.check().and_then(|()| member.check()).map_err(|r| Error::Refused(r.to_owned()))?;
    if retired {
        return refused(format!(
            "node id {node} was used and removed before, and ids are never used twice: empty the \
             data folder and start the node under a new id"
        ));
    }
    for (id, known) in &membership.members {
        if *id == node && known.incarnation != member.incarnation {
            return refused(format!(
                "node {node} is a member with another disk: this one was wiped or replaced. \
                 Repair: `lockstep cluster remove {node}`, start the node under a new id on an \
                 empty data folder, and add it"
            ));
        }
        if *id == node && known != member {
            return refused(moved(node, known, member));
        }
        if *id != node && known.peer_addr == member.peer_addr {
            return refused(format!("node {id} has the peer address {}", known.peer_addr));
        }
    }
    Ok(())
}

/// Why a member that says that it has other addresses than it joined with is refused.
pub fn moved(node: NodeId, known: &Member, now: &Member) -> String {
    format!(
        "node {node} is a member with the addresses {} for peers and {} for clients, and says now \
         that it has {} and {}: start it with those that the cluster knows. To move it, `lockstep \
         cluster remove {node}`, start it at the new addresses under a new id on an empty data \
         folder, and add it",
        known.peer_addr, known.client_addr, now.peer_addr, now.client_addr
    )
}

/// Refuses to remove who is not there, and the last voter.
fn check_removal(membership: &Membership, retired: bool, node: NodeId) -> Result<(), Error> {
    let refused = |reason: String| Err(Error::Refused(reason));
    if !membership.members.contains_key(&node) {
        let before = if retired { ": it was removed before" } else { "" };
        return refused(format!("node {node} is not in the cluster{before}"));
    }
    if membership.voter_ids() == BTreeSet::from([node]) {
        return refused(format!(
            "node {node} is the only voter: add another node before you remove it"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::store::convert::{log_id_to_raft, membership_to_raft};
    use crate::raft::type_config::RaftStoredMembership;
    use crate::types::LogId;

    fn member(port: u16, incarnation: u8) -> Member {
        Member {
            peer_addr: format!("127.0.0.1:{}", port + 100),
            client_addr: format!("127.0.0.1:{port}"),
            incarnation: [incarnation; 16],
        }
    }

    /// Nodes 1 and 2, of which these vote.
    fn membership(voters: &[&[u64]]) -> Membership {
        let set = |nodes: &&[u64]| nodes.iter().copied().map(NodeId).collect();
        let members = [(NodeId(1), member(7401, 1)), (NodeId(2), member(7402, 2))];
        Membership { voters: voters.iter().map(set).collect(), members: members.into() }
    }

    fn said(result: Result<(), Error>) -> String {
        result.err().map(|error| error.to_string()).unwrap_or_default()
    }

    /// A node joins under an id and addresses of its own. A member that is added again as it is
    /// changes nothing; one with other addresses, or another disk, is refused in words.
    #[test]
    fn who_may_join() {
        let known = membership(&[&[1]]);
        let rows = [
            (3, member(7403, 3), false, ""),
            (2, member(7402, 2), false, ""),
            (3, member(7403, 3), true, "never used twice"),
            (2, member(7402, 9), false, "another disk"),
            (2, member(7409, 2), false, "says now that it has 127.0.0.1:7509 and 127.0.0.1:7409"),
            (3, member(7402, 3), false, "node 2 has the peer address 127.0.0.1:7502"),
        ];
        for (node, member, retired, expected) in rows {
            let said = said(check_new(&known, retired, NodeId(node), &member));
            assert_eq!(said.is_empty(), expected.is_empty(), "{node}: {said}");
            assert!(said.contains(expected), "{node}: {said}");
        }
    }

    /// Metrics of leader 1 of nodes 1 and 2, of which these vote, as of the entry at `index`.
    fn metrics(voters: &[&[u64]], index: LogIndex) -> Metrics {
        let membership = membership_to_raft(membership(voters)).unwrap();
        let id = |index| log_id_to_raft(LogId { term: 1, node: NodeId(1), index });
        let stored = Arc::new(RaftStoredMembership::new(Some(id(index)), membership));
        Metrics {
            state: ServerState::Leader,
            membership_config: Arc::clone(&stored),
            committed_membership_config: stored,
            last_log_index: Some(1000),
            replication: Some([(NodeId(2), Some(id(900)))].into()),
            ..Metrics::new_initial(NodeId(1))
        }
    }

    /// A joint configuration is finished by whoever leads once it is committed, and by nobody else.
    #[test]
    fn what_is_left_half_done() {
        let joint = metrics(&[&[1, 2], &[1]], 5);
        assert!(is_left_joint(&joint));
        assert!(!is_left_joint(&metrics(&[&[1, 2]], 5)), "it is no joint one");
        let follower = Metrics { state: ServerState::Follower, ..joint.clone() };
        assert!(!is_left_joint(&follower));
        let committed = metrics(&[&[1, 2]], 4).committed_membership_config;
        let open = Metrics { committed_membership_config: committed, ..joint };
        assert!(!is_left_joint(&open), "it may still be undone");
    }

    /// A learner is caught up within some entries of the log of a leader that leads still.
    #[test]
    fn when_a_learner_has_caught_up() {
        let caught_up = metrics(&[&[1]], 5);
        let two = NodeId(2);
        assert_eq!(catching_up(&caught_up, two), CatchingUp::Done);
        let further = Metrics { last_log_index: Some(1001), ..caught_up.clone() };
        assert_eq!(catching_up(&further, two), CatchingUp::GoesOn);
        let silent = Metrics { replication: Some([(two, None)].into()), ..caught_up.clone() };
        assert_eq!(catching_up(&silent, two), CatchingUp::GoesOn);
        let deposed = Metrics { replication: None, ..caught_up.clone() };
        assert_eq!(catching_up(&deposed, two), CatchingUp::NotLed);
        assert_eq!(catching_up(&caught_up, NodeId(3)), CatchingUp::Removed);
    }

    /// Whoever asked for a change that has begun is not sent to another leader to begin it again.
    #[test]
    fn a_change_that_has_begun_is_in_doubt() {
        assert_eq!(told(Error::NoLeader, false), Error::NoLeader);
        assert_eq!(told(Error::NoLeader, true), Error::LeaderChanged);
        let leader = (NodeId(2), member(7402, 2));
        assert_eq!(told(Error::NotLeader { leader }, true), Error::LeaderChanged);
        let busy = Error::Refused(BUSY.to_owned());
        assert_eq!(told(busy.clone(), true), busy);
    }

    /// Who is not there cannot leave, and the last voter stays.
    #[test]
    fn who_may_leave() {
        let rows: [(&[&[u64]], bool, u64, &str); 6] = [
            (&[&[1, 2]], false, 2, ""),
            (&[&[1]], false, 2, ""),
            (&[&[1]], false, 1, "the only voter"),
            (&[&[1, 2], &[1]], false, 1, ""),
            (&[&[1, 2]], false, 3, "node 3 is not in the cluster"),
            (&[&[1, 2]], true, 3, "it was removed before"),
        ];
        for (voters, retired, node, expected) in rows {
            let said = said(check_removal(&membership(voters), retired, NodeId(node)));
            assert_eq!(said.is_empty(), expected.is_empty(), "{voters:?}, {node}: {said}");
            assert!(said.contains(expected), "{voters:?}, {node}: {said}");
        }
    }
}
