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
        match open(view)? {
            Open::First => Some(self.local.profile().to_owned()),
            Open::Change(sealed) => {
                self.is_run_by_majority(sealed).await.then(|| sealed.to.clone())
            }
        }
    }

    /// Whether a majority of each voter set runs a build of the profile, and none of those is
    /// parked. The leader itself need not: it parks then, and hands leadership over.
    async fn is_run_by_majority(&self, sealed: &Sealed) -> bool {
        let membership = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            membership_from_raft(metrics.membership_config.membership())
        };
        let runs = |node: &NodeId| self.local.runs(*node, &sealed.to);
        let Some(running) = majority_that(&membership, runs) else { return false };
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

/// What of the engine profile is to be said in the log.
#[derive(Debug, PartialEq, Eq)]
enum Open<'a> {
    /// There is none yet.
    First,
    /// An engine change can be decided, once a majority runs the new build.
    Change(&'a Sealed),
}

fn open(view: &View) -> Option<Open<'_>> {
    if view.engine_profile.is_none() {
        return Some(Open::First);
    }
    let sealed = view.sealed.as_ref()?;
    // The exports that the new engine starts from must be the cluster's.
    view.checkpoints.get(&sealed.index)?.agreed?;
    Some(Open::Change(sealed))
}

/// The voters of which this holds, if they are a majority of each voter set.
fn majority_that(
    membership: &Membership,
    holds: impl Fn(&NodeId) -> bool,
) -> Option<BTreeSet<NodeId>> {
    let voters: BTreeSet<NodeId> = membership.voter_ids().into_iter().filter(holds).collect();
    membership.is_majority(&voters).then_some(voters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::CheckpointRecord;
    use crate::types::StateDigest;

    /// A log without a profile gets one. An engine change is decided once its exports were agreed
    /// on, and nothing is said otherwise.
    #[test]
    fn when_a_profile_is_to_be_said() {
        let sealed = Sealed { index: 9, to: "new".to_owned() };
        let agreed = CheckpointRecord { agreed: Some(StateDigest([1; 32])), ..Default::default() };
        let fresh = View::default();
        let settled = View { engine_profile: Some("old".to_owned()), ..View::default() };
        let begun = View { sealed: Some(sealed.clone()), ..settled.clone() };
        let other = View { checkpoints: [(8, agreed.clone())].into(), ..begun.clone() };
        let open_yet = View { checkpoints: [(9, Default::default())].into(), ..begun.clone() };
        let ready = View { checkpoints: [(9, agreed)].into(), ..begun.clone() };
        assert_eq!(open(&fresh), Some(Open::First));
        for view in [settled, begun, other, open_yet] {
            assert_eq!(open(&view), None, "{:?}", view.checkpoints);
        }
        assert_eq!(open(&ready), Some(Open::Change(&sealed)));
    }

    /// More than half of each voter set must run the new build; learners do not count.
    #[test]
    fn a_majority_of_each_set_decides() {
        let ids = |nodes: &[u64]| nodes.iter().copied().map(NodeId).collect::<BTreeSet<_>>();
        type Row = (&'static [&'static [u64]], &'static [u64], bool);
        let rows: [Row; 6] = [
            (&[&[1, 2, 3]], &[1, 2], true),
            (&[&[1, 2, 3]], &[1], false),
            (&[&[1, 2, 3]], &[1, 4, 5], false),
            (&[&[1, 2, 3, 4]], &[1, 2], false),
            (&[&[1, 2, 3], &[3, 4, 5]], &[1, 2, 3], false),
            (&[&[1, 2, 3], &[3, 4, 5]], &[2, 3, 4], true),
        ];
        for (voters, running, expected) in rows {
            let voters: Vec<_> = voters.iter().map(|set| ids(set)).collect();
            let membership = Membership { voters, members: Default::default() };
            let running = ids(running);
            let found = majority_that(&membership, |node| running.contains(node));
            assert_eq!(found.is_some(), expected, "{membership:?} of which {running:?}");
        }
    }
}
