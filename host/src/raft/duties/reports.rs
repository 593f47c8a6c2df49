//! Reports, through the log, which state this node's snapshots of checkpoints hold.
//!
//! **Invariant:** what is reported is what was written to disk, never what a majority said.

use std::sync::Arc;

use crate::machine::{CheckpointReport, Directory, Proposal, View};
use crate::raft::duties::courier::Courier;
use crate::raft::store::snapshots::SharedSnapshots;

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

    /// What the log does not say yet. A parked node says nothing: its state is not the cluster's.
    fn missing(&self, view: &View) -> Vec<CheckpointReport> {
        if view.parked.is_some() || !self.courier.is_member() {
            return Vec::new();
        }
        let node = self.courier.node;
        let missing = view.checkpoints.iter().filter_map(|(index, record)| {
            let digest = self.snapshots.digest(*index)?;
            let reported = record.reports.get(&node) == Some(&digest);
            (!reported).then_some(CheckpointReport { index: *index, node, digest })
        });
        missing.collect()
    }
}
