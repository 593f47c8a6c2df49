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
use crate::raft::store::state_machine::{CheckpointSize, Progress};
use crate::raft::type_config::EntryBytes;

/// Time between two looks of a node that does not lead.
const RETRY: Duration = Duration::from_secs(1);

/// Watches the apply path and the snapshots of this node.
pub struct CheckpointTask {
    raft: Raft,
    snapshots: SharedSnapshots,
    progress: watch::Receiver<Progress>,
    schedule: Schedule,
}

/// How much may be applied between two checkpoints, as configured.
pub fn checkpoint_size(config: &FileConfig) -> CheckpointSize {
    CheckpointSize { bytes: config.checkpoint_log_bytes, entries: config.checkpoint_log_entries }
}

/// When the next checkpoint is due.
struct Schedule {
    size: CheckpointSize,
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
        let schedule = Schedule::new(config, snapshots.age(), Instant::now());
        Self { raft, snapshots, progress, schedule }
    }

    /// Runs until openraft stops or the apply path is gone.
    pub async fn run(mut self) {
        let mut newest = self.snapshots.watch();
        let mut agreed = self.snapshots.watch_agreed();
        agreed.mark_changed();
        loop {
            let (due, is_changed) = (self.schedule.next(), self.progress.borrow().is_changed);
            let goes_on = tokio::select! {
                changed = self.progress.changed() => match changed {
                    Ok(()) => self.log_checkpoint_if_due().await,
                    Err(_) => false,
                },
                () = tokio::time::sleep_until(due), if is_changed => {
                    self.schedule.tried = Instant::now();
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

    async fn log_checkpoint_if_due(&mut self) -> bool {
        let progress = *self.progress.borrow_and_update();
        if !self.schedule.is_due(&progress, Instant::now()) || !self.raft.is_leader() {
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

impl Schedule {
    /// As configured, where the newest snapshot is so old.
    fn new(config: &FileConfig, age: Option<Duration>, now: Instant) -> Self {
        let interval = Duration::from_secs(config.checkpoint_interval_s);
        let age = age.unwrap_or_default().min(interval);
        Self {
            size: checkpoint_size(config),
            interval,
            last: (0, now.checked_sub(age).unwrap_or(now)),
            tried: now,
        }
    }

    /// When one is due by time. Whoever does not lead looks again later.
    fn next(&self) -> Instant {
        (self.last.1 + self.interval).max(self.tried + RETRY)
    }

    /// Notes how far the apply path has come, and says whether one is due now.
    fn is_due(&mut self, progress: &Progress, now: Instant) -> bool {
        if progress.checkpoints != self.last.0 {
            self.last = (progress.checkpoints, now);
        }
        let is_old = progress.is_changed && now - self.last.1 >= self.interval;
        progress.checkpoint_due || is_old || progress.fills(&self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(600);

    fn schedule(age: Option<Duration>, now: Instant) -> Schedule {
        let config = FileConfig {
            checkpoint_log_bytes: 1000,
            checkpoint_log_entries: 10,
            checkpoint_interval_s: INTERVAL.as_secs(),
            ..FileConfig::default()
        };
        Schedule::new(&config, age, now)
    }

    /// A checkpoint is due by bytes, by entries, by time where something changed, and after an
    /// engine change.
    #[test]
    fn what_makes_one_due() {
        let none = Progress::default();
        let rows = [
            (none, 0, false),
            (Progress { bytes_since_checkpoint: 999, ..none }, 0, false),
            (Progress { bytes_since_checkpoint: 1000, ..none }, 0, true),
            (Progress { entries_since_checkpoint: 9, ..none }, 0, false),
            (Progress { entries_since_checkpoint: 10, ..none }, 0, true),
            (Progress { checkpoint_due: true, ..none }, 0, true),
            (none, 601, false),
            (Progress { is_changed: true, ..none }, 599, false),
            (Progress { is_changed: true, ..none }, 600, true),
        ];
        for (progress, after_s, expected) in rows {
            let start = Instant::now();
            let due = schedule(None, start).is_due(&progress, start + Duration::from_secs(after_s));
            assert_eq!(due, expected, "{progress:?} after {after_s} s");
        }
    }

    /// The time counts from the last checkpoint: of this run as it is applied, of the run before
    /// by the age of its snapshot, of which no more counts than the interval.
    #[test]
    fn time_counts_from_the_last_one() {
        let start = Instant::now() + INTERVAL * 3;
        let changed = Progress { is_changed: true, ..Progress::default() };
        let later = |s| start + Duration::from_secs(s);
        let mut after_restart = schedule(Some(INTERVAL / 2), start);
        assert_eq!(after_restart.next(), later(300));
        assert!(!after_restart.is_due(&changed, later(299)));
        assert!(after_restart.is_due(&changed, later(300)));
        let applied = Progress { checkpoints: 1, ..changed };
        assert!(!after_restart.is_due(&applied, later(300)), "this one begins the time anew");
        assert_eq!(after_restart.next(), later(900));
        assert_eq!(schedule(Some(INTERVAL * 2), start).next(), start + RETRY);
    }

    /// A node that tried and did not lead looks again after a while, not at once.
    #[test]
    fn a_vain_try_is_not_repeated_at_once() {
        let start = Instant::now() + INTERVAL;
        let mut schedule = schedule(Some(INTERVAL), start);
        schedule.tried = start + Duration::from_secs(5);
        assert_eq!(schedule.next(), start + Duration::from_secs(5) + RETRY);
    }
}
