//! What a node does beside applying nothing while it is parked: it stands in no election, and where
//! it leads it hands leadership to a voter that could lead.
//!
//! The state machine decides what parks, and the directory shows it; this task alone reacts.
//! Transfers to a parked node are refused where they arrive (`network::handler`).

use std::time::{Duration, Instant};

use openraft::async_runtime::WatchReceiver as _;

use crate::raft::ask::replica::Replica;

/// How long one attempt to hand leadership over may take.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two attempts.
const RETRY: Duration = Duration::from_secs(1);

/// Follows the directory for as long as the node runs.
pub struct ParkingTask {
    replica: Replica,
}

impl ParkingTask {
    /// A task for this node.
    pub fn new(replica: Replica) -> Self {
        Self { replica }
    }

    /// Runs until openraft or the apply path is gone.
    pub async fn run(self) {
        let shared = &self.replica.shared;
        let mut views = shared.directory.watch();
        let mut metrics = shared.raft.metrics();
        loop {
            let parked = views.borrow_and_update().parked.is_some();
            shared.raft.runtime_config().elect(!parked);
            let leads = parked && shared.raft.is_leader();
            let handed_over = !leads || self.hand_over().await;
            let goes_on = tokio::select! {
                changed = views.changed() => changed.is_ok(),
                changed = metrics.changed(), if parked && handed_over => changed.is_ok(),
                () = tokio::time::sleep(RETRY), if !handed_over => true,
            };
            if !goes_on {
                return;
            }
        }
    }

    async fn hand_over(&self) -> bool {
        let deadline = Instant::now() + HANDOVER_TIMEOUT;
        match self.replica.hand_over(None, deadline).await {
            Ok(leader) => {
                tracing::info!(%leader, "a parked leader handed leadership over");
                true
            }
            Err(error) => {
                tracing::warn!(%error, "a parked leader cannot hand leadership over");
                false
            }
        }
    }
}
