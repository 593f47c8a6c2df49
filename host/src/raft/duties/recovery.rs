//! When a restarted node may answer from its own state: the state is rebuilt from a snapshot and
//! the log, and until it has caught up, a stale read could go back behind one answered before the
//! restart.

use tokio::sync::watch;

use crate::raft::Raft;
use crate::types::LogIndex;

/// Says true once everything that this node may have applied before it started is applied again:
/// all of the log it started with, or, where a part of that was never committed, all that the
/// cluster has committed. `last_at_start` is the last entry of the log at start.
pub async fn watch_recovery(
    raft: Raft,
    last_at_start: Option<LogIndex>,
    recovered: watch::Sender<bool>,
) {
    let caught_up = |metrics: &openraft::RaftMetrics<crate::raft::TypeConfig>| {
        let applied = metrics.last_applied.as_ref().map(|id| id.index());
        let committed = metrics.cluster_committed.as_ref().map(|id| id.index());
        let replayed = applied >= last_at_start;
        let current =
            committed.is_some() && committed >= metrics.last_log_index && applied >= committed;
        replayed || current
    };
    if raft.wait(None).metrics(caught_up, "recovered").await.is_ok() {
        recovered.send_replace(true);
    }
    // The sender is kept so that those who look find the last word.
    recovered.closed().await;
}
