//! What a node does before it votes: it asks its peers how far they know that it had its log
//! (`network::known`). A leader that reaches it says so unasked.
//!
//! It waits for a bounded time: a peer that does not answer must not keep the others from electing
//! a leader. A node whose log was cut at its start waits longer, and until then votes for those
//! alone that have what its peers have.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use openraft::async_runtime::WatchReceiver as _;
use tokio::time::Instant;

use crate::raft::Raft;
use crate::raft::network::{Local, Network, Votes};
use crate::storage::Log;
use crate::types::{LogId, Member, NodeId};

/// How long a node whose log was cut waits for its peers.
const DOUBT_WAIT: Duration = Duration::from_secs(10);
/// How long one peer may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// Time between two rounds.
const RETRY: Duration = Duration::from_millis(100);

/// Asks the peers of a node that has just started.
pub struct RejoinTask {
    /// This node.
    pub local: Arc<Local>,
    /// Who the peers are.
    pub raft: Raft,
    /// The way to them.
    pub network: Network,
    /// The log whose end may be in doubt.
    pub log: Log,
    /// How long to wait for peers that do not answer.
    pub wait: Duration,
}

impl RejoinTask {
    /// Asks, lets the node vote, and runs on without doing anything.
    pub async fn run(self) {
        let mut votes = self.local.votes();
        tokio::select! {
            _ = votes.wait_for(|votes| *votes == Votes::Free) => {}
            () = self.ask() => {}
        }
        if self.local.went_back().is_none() {
            self.local.set_votes(Votes::Free);
            self.clear_doubt().await;
        }
        std::future::pending().await
    }

    async fn clear_doubt(&self) {
        if self.log.in_doubt() {
            let log = self.log.clone();
            // An error closes the log, and ends the node with it.
            let cleared = tokio::task::spawn_blocking(move || log.clear_doubt()).await;
            tracing::info!(?cleared, "the peers know of nothing that the log lost");
        }
    }

    async fn ask(&self) {
        let in_doubt = self.log.in_doubt();
        let deadline = Instant::now() + if in_doubt { DOUBT_WAIT } else { self.wait };
        let mut heard = BTreeMap::new();
        loop {
            let peers = self.peers();
            let silent: Vec<_> =
                peers.iter().filter(|(node, _)| !heard.contains_key(node)).cloned().collect();
            if silent.is_empty() {
                return self.wait_for_better(in_doubt, &heard, deadline).await;
            }
            if Instant::now() >= deadline {
                let silent: Vec<_> = silent.iter().map(|(node, _)| node.0).collect();
                tracing::warn!(?silent, "votes without an answer of these nodes");
                return;
            }
            let asked = silent.iter().map(|(node, member)| self.ask_one(*node, member));
            heard.extend(join_all(asked).await.into_iter().flatten());
            if self.local.went_back().is_some() {
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Where the log of a peer ends, if it answers.
    async fn ask_one(&self, node: NodeId, member: &Member) -> Option<(NodeId, Option<LogId>)> {
        let standing = self.network.standing(node, member, ANSWER_TIMEOUT).await.ok()?;
        if let Some(known) = standing.known {
            self.local.compare(node, known).ok()?;
        }
        Some((node, standing.last))
    }

    /// A node whose log was cut lets those lead that have more, for a while.
    async fn wait_for_better(
        &self,
        in_doubt: bool,
        heard: &BTreeMap<NodeId, Option<LogId>>,
        deadline: Instant,
    ) {
        let best = heard.values().max().copied().flatten();
        if in_doubt && self.local.last() < best {
            self.local.set_votes(Votes::From(best));
            tokio::time::sleep_until(deadline).await;
        }
    }

    /// The other voters.
    fn peers(&self) -> Vec<(NodeId, Member)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let this = self.local.node_id();
        let others = membership.voter_ids().filter(|node| *node != this);
        others.filter_map(|node| Some((node, membership.get_node(&node)?.clone()))).collect()
    }
}
