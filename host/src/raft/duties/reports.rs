//! Reports, through the log, which state this node's snapshots of checkpoints hold.
//!
//! **Invariant:** what is reported is what was written to disk, never what a majority said.

use std::sync::Arc;

use crate::machine::{CheckpointReport, Directory, Proposal, View};
use crate::raft::duties::courier::Courier;
use crate::raft::store::snapshots::SharedSnapshots;
use crate::types::{LogIndex, NodeId, StateDigest};

/// Reports on each checkpoint whose snapshot is here, once and whenever the report is another.
pub struct ReportTask {
    /// Brings reports into the log.
    pub courier: Courier,
    /// What was reported so far.
    pub directory: Arc<Directory>,
    /// The snapshots of this node.
    pub snapshots: SharedSnapshots,
}

impl ReportTask {
    /// Runs until the apply path is gone.
    pub async fn run(self) {
        let mut newest = self.snapshots.watch();
        let mut views = self.directory.watch();
        loop {
            let view = Arc::clone(&views.borrow_and_update());
            for report in self.missing(&view) {
                let entry = Proposal::CheckpointReport(report.clone()).encode();
                let is_there = || !self.missing(&self.directory.view()).contains(&report);
                self.courier.bring(&entry, is_there).await;
            }
            let goes_on = tokio::select! {
                changed = newest.changed() => changed.is_ok(),
                changed = views.changed() => changed.is_ok(),
            };
            if !goes_on {
                return;
            }
        }
    }

    fn missing(&self, view: &View) -> Vec<CheckpointReport> {
        match self.courier.is_member() {
            true => missing(view, self.courier.node, |index| self.snapshots.digest(index)),
            false => Vec::new(),
        }
    }
}

/// What the log does not say yet of a node that has snapshots with these digests. A parked node
/// says nothing: its state is not the cluster's.
fn missing(
    view: &View,
    node: NodeId,
    digest: impl Fn(LogIndex) -> Option<StateDigest>,
) -> Vec<CheckpointReport> {
    if view.parked.is_some() {
        return Vec::new();
    }
    let missing = view.checkpoints.iter().filter_map(|(index, record)| {
        let digest = digest(*index)?;
        let reported = record.reports.get(&node) == Some(&digest);
        (!reported).then_some(CheckpointReport { index: *index, node, digest })
    });
    missing.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::CheckpointRecord;

    /// A node reports each checkpoint whose snapshot it has, once, and again when its snapshot is
    /// another; not what others said, and nothing while it is parked.
    #[test]
    fn what_is_to_be_reported() {
        let digest = |byte: u8| StateDigest([byte; 32]);
        let said = |node: u64, byte| CheckpointRecord {
            reports: [(NodeId(node), digest(byte))].into(),
            agreed: Some(digest(byte)),
        };
        let checkpoints = [
            (10, CheckpointRecord::default()),
            (20, said(1, 2)),
            (30, said(1, 9)),
            (40, said(2, 4)),
            (50, said(1, 5)),
        ];
        let view = View { checkpoints: checkpoints.into(), ..View::default() };
        let has = |index: LogIndex| match index {
            10 => Some(digest(1)),
            20 => Some(digest(2)),
            30 => Some(digest(3)),
            40 => Some(digest(4)),
            _ => None,
        };
        let report =
            |index, byte| CheckpointReport { index, node: NodeId(1), digest: digest(byte) };
        let expected = [report(10, 1), report(30, 3), report(40, 4)];
        assert_eq!(missing(&view, NodeId(1), has), expected);
        assert_eq!(missing(&view, NodeId(1), |_| None), []);
        let parked = View { parked: Some("why".into()), ..view };
        assert_eq!(missing(&parked, NodeId(1), has), []);
    }
}
