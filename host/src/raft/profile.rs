//! Logs the engine profile of the cluster, once: what the leader applies with when the log has
//! none. From that entry on a node of another profile is parked.

use std::sync::Arc;

use openraft::async_runtime::WatchReceiver as _;

use super::Raft;
use super::type_config::EntryBytes;
use crate::machine::{Directory, Proposal};

/// Watches whether this node leads a log without a profile.
pub struct ProfileTask {
    /// Where the entry goes.
    pub raft: Raft,
    /// Whether the log has one.
    pub directory: Arc<Directory>,
    /// That of this node.
    pub profile: String,
}

impl ProfileTask {
    /// Runs until the log has a profile, or openraft stops.
    pub async fn run(self) {
        let mut views = self.directory.watch();
        let mut metrics = self.raft.metrics();
        while views.borrow_and_update().engine_profile.is_none() {
            if self.raft.is_leader() && views.borrow().parked.is_none() {
                let entry = Proposal::EngineProfile(self.profile.clone()).encode();
                // Refused means that another node leads by now, which will do it.
                if self.raft.client_write(EntryBytes(entry)).await.is_ok() {
                    continue;
                }
            }
            let goes_on = tokio::select! {
                changed = views.changed() => changed.is_ok(),
                changed = metrics.changed() => changed.is_ok(),
            };
            if !goes_on {
                return;
            }
        }
        // The task ends with the node, like all others.
        std::future::pending().await
    }
}
