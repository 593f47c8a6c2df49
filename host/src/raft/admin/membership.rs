//! What operators ask of the cluster: form it, grow it, shrink it, hand over its leadership.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{InitializeError, RaftError};
use openraft::{ChangeMembers, Instant as _};

use crate::raft::ask::error::Error;
use crate::raft::ask::replica::Replica;
use crate::raft::store::convert::membership_from_raft;
use crate::raft::type_config::TypeConfig;
use crate::types::{ClusterId, LogIndex, Member, Membership, NodeId};

/// How long a cluster of one may take to elect its only node.
const FORMATION_TIMEOUT: Duration = Duration::from_secs(10);
/// A voter that answered within this time is taken to be there.
const HEARD_LATELY: Duration = Duration::from_millis(500);
/// A voter that shall lead says that it could within this time.
const SUCCESSOR_ANSWERS_WITHIN: Duration = Duration::from_millis(500);
/// A committed membership shows in the metrics within this time.
const MEMBERSHIP_SEEN_WITHIN: Duration = Duration::from_secs(1);
/// A learner this close to the leader's log is caught up, in entries.
const CAUGHT_UP_ENTRIES: LogIndex = 100;

impl Replica {
    /// Makes this node a cluster of one.
    pub async fn init(&self) -> Result<ClusterId, Error> {
        let shared = &self.shared;
        let raft = &shared.raft;
        if raft.is_initialized().await.map_err(|fatal| Error::Stopped(fatal.to_string()))? {
            let cluster = shared.local.cluster();
            return Err(cluster.map_or(Error::NoLeader, Error::AlreadyInitialized));
        }
        // An id without a log is an `init` that a crash cut short: it goes on with that id. But a
        // node that was adopted into a cluster must not found one.
        let cluster = match shared.local.cluster() {
            Some(cluster) if raft.metrics().borrow_watched().current_term > 0 => {
                return Err(Error::AlreadyInitialized(cluster));
            }
            Some(cluster) => cluster,
            None => {
                let cluster = fresh_id()?;
                shared.local.join(cluster).map_err(Error::Refused)?;
                cluster
            }
        };
        let members = BTreeMap::from([(shared.local.node_id(), shared.member.clone())]);
        raft.initialize(members).await.map_err(|error| match error {
            RaftError::APIError(InitializeError::NotAllowed(_)) => {
                Error::AlreadyInitialized(cluster)
            }
            RaftError::APIError(error) => Error::Refused(error.to_string()),
            RaftError::Fatal(fatal) => Error::Stopped(fatal.to_string()),
        })?;
        self.wait_formed().await?;
        Ok(cluster)
    }

    /// Waits until this node leads and its first membership is committed, so that the next node
    /// can be added at once.
    async fn wait_formed(&self) -> Result<(), Error> {
        let this = self.shared.local.node_id();
        let formed = |metrics: &openraft::RaftMetrics<TypeConfig>| {
            metrics.current_leader == Some(this)
                && metrics.committed_membership_config == metrics.membership_config
                && metrics.last_applied.is_some_and(|applied| applied.index() > 0)
        };
        let waited = self.shared.raft.wait(Some(FORMATION_TIMEOUT)).metrics(formed, "formed").await;
        waited.map(drop).map_err(|_| Error::NoLeader)
    }

    /// Adds a node as a learner; returns when the membership entry is committed.
    pub async fn add_learner(&self, node: NodeId, member: Member) -> Result<(), Error> {
        self.check_leader()?;
        self.check_new(node, &member)?;
        let written = self.shared.raft.add_learner(node, member, false).await;
        written.map(drop).map_err(Error::from_raft_write)
    }

    /// Refuses a node id that is, or was, another disk's, and an address that is taken.
    fn check_new(&self, node: NodeId, member: &Member) -> Result<(), Error> {
        let refused = |reason: String| Err(Error::Refused(reason));
        // Whoever asked has said so in better words; what is logged must fit every message.
        node.check().and_then(|()| member.check()).map_err(|r| Error::Refused(r.to_owned()))?;
        if self.shared.directory.view().retired_nodes.contains(&node) {
            return refused(format!(
                "node id {node} was used and removed before, and ids are never used twice: empty \
                 the data folder and start the node under a new id"
            ));
        }
        let metrics = self.shared.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        for (id, known) in membership.nodes() {
            if *id == node && known.incarnation != member.incarnation {
                return refused(format!(
                    "node {node} is a member with another disk: this one was wiped or replaced. \
                     Repair: `lockstep cluster remove {node}`, start the node under a new id on \
                     an empty data folder, and add it"
                ));
            }
            if *id != node && known.peer_addr == member.peer_addr {
                return refused(format!("node {id} has the peer address {}", known.peer_addr));
            }
        }
        Ok(())
    }

    /// Makes a learner a voter, once its log has caught up.
    pub async fn promote(&self, node: NodeId, deadline: Instant) -> Result<(), Error> {
        self.check_leader()?;
        self.wait_caught_up(node, deadline).await?;
        let change = ChangeMembers::AddVoterIds(BTreeSet::from([node]));
        let written = self.shared.raft.change_membership(change, true).await;
        written.map(drop).map_err(Error::from_raft_write)
    }

    async fn wait_caught_up(&self, node: NodeId, deadline: Instant) -> Result<(), Error> {
        // A node that was just added may show in the metrics a moment later.
        let raft = &self.shared.raft;
        let known = |metrics: &openraft::RaftMetrics<TypeConfig>| {
            metrics.membership_config.membership().get_node(&node).is_some()
        };
        let seen = raft.wait(Some(MEMBERSHIP_SEEN_WITHIN)).metrics(known, "node known").await;
        seen.map_err(|_| Error::Refused(format!("node {node} is not in the cluster")))?;
        let caught_up = |metrics: &openraft::RaftMetrics<TypeConfig>| {
            let Some(replication) = &metrics.replication else { return true };
            let matched = replication.get(&node).copied().flatten().map(|id| id.index());
            let last = metrics.last_log_index.unwrap_or(0);
            matched.is_some_and(|matched| matched + CAUGHT_UP_ENTRIES >= last)
        };
        let remaining = deadline.saturating_duration_since(Instant::now());
        let waited = raft.wait(Some(remaining)).metrics(caught_up, "the node has caught up").await;
        let metrics = waited.map_err(|_| {
            Error::Refused(format!(
                "node {node} has not caught up with the log yet: it stays a learner; promote it \
                 later"
            ))
        })?;
        // Without replication this node no longer leads.
        if metrics.replication.is_some() { Ok(()) } else { Err(Error::NoLeader) }
    }

    /// Takes a node out of the cluster. A leader that removes itself steps down.
    pub async fn remove(&self, node: NodeId) -> Result<(), Error> {
        self.check_leader()?;
        let (is_voter, voters) = {
            let metrics = self.shared.raft.metrics();
            let metrics = metrics.borrow_watched();
            let membership = metrics.membership_config.membership();
            if membership.get_node(&node).is_none() {
                return Err(Error::Refused(format!("node {node} is not in the cluster")));
            }
            let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
            (voters.contains(&node), voters.len())
        };
        if is_voter && voters == 1 {
            return Err(Error::Refused(format!(
                "node {node} is the only voter: add another node before you remove it"
            )));
        }
        let nodes = BTreeSet::from([node]);
        let change = if is_voter {
            ChangeMembers::RemoveVoters(nodes)
        } else {
            ChangeMembers::RemoveNodes(nodes)
        };
        let written = self.shared.raft.change_membership(change, false).await;
        written.map(drop).map_err(Error::from_raft_write)
    }

    /// Hands leadership to `to`, or to the most caught up voter; returns the new leader.
    pub async fn transfer(&self, to: Option<NodeId>, deadline: Instant) -> Result<NodeId, Error> {
        self.check_leader()?;
        self.hand_over(to, deadline).await
    }

    /// `transfer`, also for a leader that is parked.
    pub(in crate::raft) async fn hand_over(
        &self,
        to: Option<NodeId>,
        deadline: Instant,
    ) -> Result<NodeId, Error> {
        let this = self.shared.local.node_id();
        if to == Some(this) {
            return Ok(this);
        }
        let target = match to {
            Some(node) => self.check_successor(self.check_voter(node)?).await?,
            None => self.choose_successor().await?,
        };
        let transfer = self.shared.raft.trigger().transfer_leader(target).await;
        transfer.map_err(|fatal| Error::Stopped(fatal.to_string()))?;
        let mut metrics = self.shared.raft.metrics();
        loop {
            match metrics.borrow_watched().current_leader {
                Some(leader) if leader != this => return Ok(leader),
                _ => {}
            }
            match tokio::time::timeout_at(deadline.into(), metrics.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Error::ShuttingDown),
                Err(_) => {
                    return Err(Error::Refused(format!(
                        "node {target} did not take over leadership in time"
                    )));
                }
            }
        }
    }

    fn check_voter(&self, node: NodeId) -> Result<NodeId, Error> {
        let metrics = self.shared.raft.metrics();
        let metrics = metrics.borrow_watched();
        let mut voters = metrics.membership_config.membership().voter_ids();
        if voters.any(|voter| voter == node) {
            Ok(node)
        } else {
            Err(Error::Refused(format!("node {node} is not a voter of this cluster")))
        }
    }

    /// The first of the other voters that could lead.
    async fn choose_successor(&self) -> Result<NodeId, Error> {
        let mut reason = "there is no other voter to hand leadership to".to_owned();
        for node in self.by_progress() {
            match self.check_successor(node).await {
                Ok(node) => return Ok(node),
                Err(error) => reason = error.to_string(),
            }
        }
        Err(Error::Refused(reason))
    }

    /// Refuses a node that does not answer or says that it must not lead: openraft's leader
    /// proposes nothing more once it has begun to hand over, whatever comes of it.
    async fn check_successor(&self, node: NodeId) -> Result<NodeId, Error> {
        let membership = self.membership();
        let member = membership.members.get(&node).expect("a voter is a member");
        let network = &self.shared.network;
        match network.could_lead(node, member, SUCCESSOR_ANSWERS_WITHIN).await {
            Ok(()) => Ok(node),
            Err(reason) => Err(Error::Refused(format!("node {node} cannot lead: {reason}"))),
        }
    }

    /// The other voters: those heard from lately first, then by how far their logs reach.
    fn by_progress(&self) -> Vec<NodeId> {
        let this = self.shared.local.node_id();
        let metrics = self.shared.raft.metrics();
        let metrics = metrics.borrow_watched();
        let (Some(replication), Some(heartbeat)) = (&metrics.replication, &metrics.heartbeat)
        else {
            return Vec::new();
        };
        let lately = |voter: &NodeId| {
            let heard = heartbeat.get(voter).copied().flatten();
            heard.is_some_and(|heard| heard.elapsed() < HEARD_LATELY)
        };
        let matched =
            |voter: &NodeId| replication.get(voter).copied().flatten().map(|id| id.index());
        let voters = metrics.membership_config.membership().voter_ids();
        let mut voters: Vec<NodeId> = voters.filter(|voter| *voter != this).collect();
        voters.sort_by_key(|voter| std::cmp::Reverse((lately(voter), matched(voter))));
        voters
    }
}

impl Replica {
    /// The membership as this node knows it.
    pub(in crate::raft) fn membership(&self) -> Membership {
        let metrics = self.shared.raft.metrics();
        let metrics = metrics.borrow_watched();
        membership_from_raft(metrics.membership_config.membership())
    }
}

/// The id of a new cluster: sixteen bytes of the system's random numbers.
fn fresh_id() -> Result<ClusterId, Error> {
    let mut id = [0; 16];
    let filled = getrandom::fill(&mut id);
    filled.map_err(|error| Error::Refused(format!("there are no random numbers: {error}")))?;
    Ok(ClusterId(id))
}
