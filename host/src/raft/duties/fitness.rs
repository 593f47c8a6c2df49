//! What a node does that must not lead: it stands in no election, and where it leads it hands
//! leadership to a voter that could lead.
//!
//! A node must not lead while it is parked, and while it waits in vain for its own disk or for a
//! guest. The state machine decides what parks, and `stall` sees what is waited for; this task
//! alone reacts. Transfers to such a node are refused where they arrive (`network::handler`).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use openraft::async_runtime::WatchReceiver as _;

use super::stall::{Cause, Stall};
use crate::raft::admin::Successor;
use crate::raft::ask::replica::Replica;
use crate::types::NodeId;

/// How long one attempt to hand leadership over may take.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two attempts.
const RETRY: Duration = Duration::from_secs(1);
/// A leader whose disk has not finished a write for so long gives up leadership.
const DISK_PATIENCE: Duration = Duration::from_millis(1200);
/// A leader gives up leadership whose guest has not come back for so long from an entry that
/// others had applied when this was first told.
const GUEST_PATIENCE: Duration = Duration::from_millis(1600);

/// Follows the directory and the stalls for as long as the node runs.
pub struct FitnessTask {
    replica: Replica,
    /// Voters that had applied more when a stall was first told.
    ahead: BTreeSet<NodeId>,
    /// Not before this is handing over tried again.
    not_before: Instant,
}

impl FitnessTask {
    /// A task for this node.
    pub fn new(replica: Replica) -> Self {
        Self { replica, ahead: BTreeSet::new(), not_before: Instant::now() }
    }

    /// Runs until openraft or the apply path is gone.
    pub async fn run(mut self) {
        let replica = self.replica.clone();
        let shared = &replica.shared;
        let mut views = shared.directory.watch();
        let mut stalls = shared.local.stalls().watch();
        let mut metrics = shared.raft.metrics();
        let mut votes = shared.local.votes();
        loop {
            let may_stand = votes.borrow_and_update().may_go_to(shared.local.last());
            let parked = views.borrow_and_update().parked.is_some();
            let stall = *stalls.borrow_and_update();
            shared.raft.runtime_config().elect(!parked && stall.is_none() && may_stand);
            let is_due = Instant::now() >= self.not_before && shared.raft.is_leader();
            match stall {
                _ if !is_due => {}
                _ if parked => self.hand_over("a parked leader", Successor::Any).await,
                Some(stall) => self.give_up(stall).await,
                None => self.ahead.clear(),
            }
            let retry = tokio::time::sleep_until(self.not_before.into());
            let waits = Instant::now() < self.not_before;
            let goes_on = tokio::select! {
                changed = views.changed() => changed.is_ok(),
                changed = stalls.changed() => changed.is_ok(),
                changed = votes.changed() => changed.is_ok(),
                changed = metrics.changed(), if parked && !waits => changed.is_ok(),
                () = retry, if waits => true,
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Gives up leadership once a stall has lasted for too long, if a majority is better off.
    async fn give_up(&mut self, stall: Stall) {
        let applied = match stall.cause {
            Cause::Disk => None,
            Cause::Entry(applied) => Some(applied),
        };
        let is_late = match stall.cause {
            Cause::Disk => stall.lasts >= DISK_PATIENCE,
            Cause::Entry(_) => stall.lasts >= GUEST_PATIENCE,
        };
        if !is_late && (applied.is_none() || !self.ahead.is_empty()) {
            return;
        }
        let fit = self.replica.fit_voters(applied).await;
        if !is_late {
            self.ahead = fit;
            return;
        }
        let mut majority = fit;
        if applied.is_some() {
            // Whoever has come past the entry only now is no faster than this node.
            majority.retain(|node| self.ahead.contains(node));
        }
        if self.replica.membership().is_majority(&majority) {
            let who = "a leader that waits for its disk or a guest";
            self.hand_over(who, Successor::OneOf(&majority)).await;
        } else {
            self.not_before = Instant::now() + RETRY;
        }
    }

    async fn hand_over(&mut self, who: &str, to: Successor<'_>) {
        let deadline = Instant::now() + HANDOVER_TIMEOUT;
        match self.replica.hand_over(to, deadline).await {
            Ok(leader) => tracing::info!(%leader, "{who} handed leadership over"),
            Err(error) => {
                tracing::warn!(%error, "{who} cannot hand leadership over");
                self.not_before = Instant::now() + RETRY;
            }
        }
    }
}
