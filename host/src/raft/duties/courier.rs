//! Brings internal entries into the log, whoever leads: what a node reports of itself.

use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver as _;

use crate::raft::Raft;
use crate::raft::network::Network;
use crate::raft::type_config::EntryBytes;
use crate::types::NodeId;

/// Time between two tries.
const RETRY: Duration = Duration::from_millis(200);

/// A way to the leader.
#[derive(Clone)]
pub struct Courier {
    /// This node.
    pub node: NodeId,
    /// Where entries go when this node leads.
    pub raft: Raft,
    /// Where they go when another does.
    pub network: Network,
}

impl Courier {
    /// Brings an entry that does no harm twice into the log. Ends when `is_there`, which is asked
    /// between two tries, or with openraft.
    pub async fn bring(&self, entry: &Bytes, is_there: impl Fn() -> bool) {
        loop {
            match self.raft.client_write(EntryBytes(entry.clone())).await {
                Ok(_) => return,
                Err(error) => match error.forward_to_leader() {
                    Some(forward) => {
                        if let (Some(leader), Some(member)) =
                            (forward.leader_id, &forward.leader_node)
                        {
                            let entry = entry.clone();
                            // Whether it worked shows in the tables.
                            let _ = self.network.propose(leader, member, entry, RETRY * 10).await;
                        }
                    }
                    None => return,
                },
            }
            tokio::time::sleep(RETRY).await;
            if is_there() {
                return;
            }
        }
    }

    /// Whether this node is a member, as far as it knows.
    pub fn is_member(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_node(&self.node).is_some()
    }
}
