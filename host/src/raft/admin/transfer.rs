//! Leadership that is handed over: because an operator asks for it, or because this node must not
//! or cannot lead.
//!
//! openraft's leader proposes nothing more once it has begun to hand over, whatever comes of it. So
//! a successor is asked first whether it could lead.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver as _;

use crate::raft::ask::error::Error;
use crate::raft::ask::replica::Replica;
use crate::types::{LogIndex, NodeId};

/// A voter that answered within this time is taken to be there.
const HEARD_LATELY: Duration = Duration::from_millis(500);
/// A voter that shall lead says that it could within this time.
const SUCCESSOR_ANSWERS_WITHIN: Duration = Duration::from_millis(500);

/// Who shall lead.
pub(in crate::raft) enum Successor<'a> {
    /// The most caught up voter that could.
    Any,
    /// The most caught up of these that could.
    OneOf(&'a BTreeSet<NodeId>),
    /// This node, if it could.
    Node(NodeId),
}

impl Replica {
    /// Hands leadership to `to`, or to the most caught up voter; returns the new leader.
    pub async fn transfer(&self, to: Option<NodeId>, deadline: Instant) -> Result<NodeId, Error> {
        self.check_leader()?;
        self.hand_over(to.map_or(Successor::Any, Successor::Node), deadline).await
    }

    /// `transfer`, also for a leader that must not lead.
    pub(in crate::raft) async fn hand_over(
        &self,
        to: Successor<'_>,
        deadline: Instant,
    ) -> Result<NodeId, Error> {
        let this = self.shared.local.node_id();
        let target = match to {
            Successor::Node(node) if node == this => return Ok(this),
            Successor::Node(node) => self.check_successor(self.check_voter(node)?).await?,
            Successor::Any => self.choose_successor(|_| true).await?,
            Successor::OneOf(nodes) => self.choose_successor(|node| nodes.contains(node)).await?,
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
        if self.membership().is_voter(node) {
            Ok(node)
        } else {
            Err(Error::Refused(format!("node {node} is not a voter of this cluster")))
        }
    }

    /// The first of the other voters that is `wanted` and could lead.
    async fn choose_successor(&self, wanted: impl Fn(&NodeId) -> bool) -> Result<NodeId, Error> {
        let mut reason = "there is no other voter to hand leadership to".to_owned();
        for node in self.by_progress().into_iter().filter(wanted) {
            match self.check_successor(node).await {
                Ok(node) => return Ok(node),
                Err(error) => reason = error.to_string(),
            }
        }
        Err(Error::Refused(reason))
    }

    /// Refuses a node that does not answer, is no member any more, or says that it must not lead.
    async fn check_successor(&self, node: NodeId) -> Result<NodeId, Error> {
        let membership = self.membership();
        let Some(member) = membership.members.get(&node) else {
            return Err(Error::Refused(format!("node {node} was removed meanwhile")));
        };
        let network = &self.shared.network;
        match network.could_lead(node, member, SUCCESSOR_ANSWERS_WITHIN).await {
            Ok(()) => Ok(node),
            Err(reason) => Err(Error::Refused(format!("node {node} cannot lead: {reason}"))),
        }
    }

    /// The other voters that could lead, and have applied more than `applied` where that is given.
    /// All are asked at once.
    pub(in crate::raft) async fn fit_voters(&self, applied: Option<LogIndex>) -> BTreeSet<NodeId> {
        let membership = self.membership();
        let this = self.shared.local.node_id();
        let others = membership.members.iter().filter(|(node, _)| membership.is_voter(**node));
        let asked = others.filter(|(node, _)| **node != this).map(async |(node, member)| {
            let network = &self.shared.network;
            let said = network.standing(*node, member, SUCCESSOR_ANSWERS_WITHIN).await.ok()?;
            let is_ahead = applied.is_none_or(|applied| said.applied > applied);
            (said.parked.is_empty() && said.stalled.is_empty() && is_ahead).then_some(*node)
        });
        futures::future::join_all(asked).await.into_iter().flatten().collect()
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
