//! When checkpoints are logged, and when the log before them goes.
//!
//! The leader logs a `Checkpoint` once enough has been applied since the last, once the last is old
//! and anything has changed, and once the engine has changed; every node, when
//! the cluster agreed on its snapshot of one, tells openraft of it and purges the log up to the
//! agreed snapshot before. Nothing else makes snapshots or purges.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::FileConfig;
use crate::machine::Proposal;
use crate::raft::Raft;
use crate::raft::store::snapshots::SharedSnapshots;
use crate::raft::store::state_machine::Progress;
use crate::raft::type_config::EntryBytes;

/// Time between two looks of a node that does not lead.
const RETRY: Duration = Duration::from_secs(1);

/// Watches the apply path and the snapshots of this node.
pub struct CheckpointTask {
    raft: Raft,
    snapshots: SharedSnapshots,
    progress: watch::Receiver<Progress>,
    log_bytes: u64,
    log_entries: u64,
    interval: Duration,
    /// How many checkpoints this node has applied, and when the last one was.
    last: (u64, Instant),
    /// A checkpoint by time was tried at this time at the latest.
    tried: Instant,
}

impl CheckpointTask {
    /// A task for this node.
    pub fn new(
        raft: Raft,
        snapshots: SharedSnapshots,
        progress: watch::Receiver<Progress>,
        config: &FileConfig,
    ) -> Self {
        let interval = Duration::from_secs(config.checkpoint_interval_s);
        let age = snapshots.age().unwrap_or_default().min(interval);
        let now = Instant::now();
        Self {
            raft,
            snapshots,
            progress,
            log_bytes: config.checkpoint_log_bytes,
            log_entries: config.checkpoint_log_entries,
            interval,
            last: (0, now.checked_sub(age).unwrap_or(now)),
            tried: now,
        }
    }

    /// Runs until openraft stops or the apply path is gone.
    pub async fn run(mut self) {
        let mut newest = self.snapshots.watch();
        let mut agreed = self.snapshots.watch_agreed();
        agreed.mark_changed();
        loop {
            let (due, is_changed) = (self.due(), self.progress.borrow().is_changed);
            let goes_on = tokio::select! {
                changed = self.progress.changed() => match changed {
                    Ok(()) => self.log_checkpoint_if_due().await,
                    Err(_) => false,
                },
                () = tokio::time::sleep_until(due), if is_changed => {
                    self.tried = Instant::now();
                    self.log_checkpoint_if_due().await
                }
                changed = newest.changed() => changed.is_ok() && self.clean().await,
                changed = agreed.changed() => {
                    changed.is_ok() && self.purge().await && self.clean().await
                }
            };
            if !goes_on {
                return;
            }
        }
    }

    /// When a checkpoint is due by time. Whoever does not lead looks again later.
    fn due(&self) -> Instant {
        (self.last.1 + self.interval).max(self.tried + RETRY)
    }

    async fn log_checkpoint_if_due(&mut self) -> bool {
        let progress = *self.progress.borrow_and_update();
        if progress.checkpoints != self.last.0 {
            self.last = (progress.checkpoints, Instant::now());
        }
        let is_old = progress.is_changed && self.last.1.elapsed() >= self.interval;
        let due = progress.checkpoint_due
            || is_old
            || progress.bytes_since_checkpoint >= self.log_bytes
            || progress.entries_since_checkpoint >= self.log_entries;
        if !due || !self.raft.is_leader() {
            return true;
        }
        let checkpoint = EntryBytes(Proposal::Checkpoint.encode());
        // Refused means that another node leads by now, which will do it.
        match self.raft.client_write(checkpoint).await {
            Ok(_) => true,
            Err(error) => error.into_fatal().is_none(),
        }
    }

    /// Tells openraft of the newest snapshot that the cluster agreed on, and purges what only
    /// older ones needed.
    async fn purge(&self) -> bool {
        if self.snapshots.agreed().is_none() {
            return true;
        }
        if self.raft.trigger().snapshot().await.is_err() {
            return false;
        }
        let Some(upto) = self.snapshots.purgeable() else { return true };
        let known = self.raft.metrics().borrow_watched().purged.is_some_and(|p| p.index() >= upto);
        known || self.raft.trigger().purge_log(upto).await.is_ok()
    }

    /// Removes the files of snapshots that are no longer needed. What cannot be removed is tried
    /// again with the next.
    async fn clean(&self) -> bool {
        let snapshots = Arc::clone(&self.snapshots);
        match tokio::task::spawn_blocking(move || snapshots.clean()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "old snapshots cannot be removed"),
            Err(error) => tracing::error!(%error, "removing old snapshots panicked"),
        }
        true
    }
}
