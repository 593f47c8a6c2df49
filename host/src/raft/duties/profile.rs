//! Logs the engine profile of the cluster: that of the first leader, where the log has none, and
//! the one that ends an engine change, once a majority of the voters runs it. From such an entry
//! on a node of another profile is parked.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;

use crate::machine::{Directory, Proposal, Sealed, View};
use crate::raft::Raft;
use crate::raft::network::{Local, Network};
use crate::raft::store::convert::membership_from_raft;
use crate::raft::type_config::EntryBytes;
use crate::types::{Membership, NodeId};

/// Time between two looks at which build the voters run, while the cluster is sealed.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// A voter says within this time that it applies.
const ANSWERS_WITHIN: Duration = Duration::from_millis(500);

/// Watches whether this node leads a log whose profile is to be said.
pub struct ProfileTask {
    /// Where the entry goes.
    pub raft: Raft,
    /// What the log says.
    pub directory: Arc<Directory>,
    /// This node, its profile, and what it heard of others.
    pub local: Arc<Local>,
    /// The way to the voters.
    pub network: Network,
}

impl ProfileTask {
    /// Runs until openraft or the apply path is gone.
    pub async fn run(self) {
        let mut views = self.directory.watch();
        let mut metrics = self.raft.metrics();
        loop {
            let view = Arc::clone(&views.borrow_and_update());
            let leads = self.raft.is_leader() && view.parked.is_none();
            if leads && let Some(profile) = self.due(&view).await {
                let entry = Proposal::EngineProfile(profile).encode();
                // Refused means that another node leads by now, which will do it. What came of it
                // shows in the next view.
                let _ = self.raft.client_write(EntryBytes(entry)).await;
            }
            let goes_on = tokio::select! {
                changed = views.changed() => changed.is_ok(),
                changed = metrics.changed(), if view.engine_profile.is_none() => changed.is_ok(),
                () = tokio::time::sleep(LOOK_INTERVAL), if view.sealed.is_some() => true,
            };
            if !goes_on {
                return;
            }
        }
    }

    /// The profile that the log should say next.
    async fn due(&self, view: &View) -> Option<String> {
        if view.engine_profile.is_none() {
            return Some(self.local.profile().to_owned());
        }
        let sealed = view.sealed.as_ref()?;
        // The exports that the new engine starts from must be the cluster's.
        view.checkpoints.get(&sealed.index)?.agreed?;
        self.is_run_by_majority(sealed).await.then(|| sealed.to.clone())
    }

    /// Whether a majority of each voter set runs a build of the profile, and none of those is
    /// parked. The leader itself need not: it parks then, and hands leadership over.
    async fn is_run_by_majority(&self, sealed: &Sealed) -> bool {
        let membership = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            membership_from_raft(metrics.membership_config.membership())
        };
        let voters = membership.voter_ids();
        let runs = |node: &NodeId| self.local.runs(*node, &sealed.to);
        let running: BTreeSet<NodeId> = voters.into_iter().filter(runs).collect();
        if !membership.is_majority(&running) {
            return false;
        }
        let mut applying = BTreeSet::new();
        for node in running {
            if node == self.local.node_id() || self.applies(node, &membership).await {
                applying.insert(node);
            }
        }
        membership.is_majority(&applying)
    }

    async fn applies(&self, node: NodeId, membership: &Membership) -> bool {
        match membership.members.get(&node) {
            Some(member) => self.network.could_lead(node, member, ANSWERS_WITHIN).await.is_ok(),
            None => false,
        }
    }
}
