//! When a restarted node may answer from its own state: the state is rebuilt from a snapshot and
//! the log, and until it has caught up, a stale read could go back behind one answered before the
//! restart.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::raft::network::Local;
use crate::raft::{Raft, TypeConfig};
use crate::types::LogIndex;

/// A node that has heard of no leader for so long is alone.
const ALONE: Duration = Duration::from_secs(3);

type Metrics = openraft::RaftMetrics<TypeConfig>;

/// Where the log stood when the node started.
#[derive(Clone, Copy, Debug)]
pub struct AtStart {
    /// Its last entry.
    pub last: Option<LogIndex>,
    /// The last entry that was known to be committed.
    pub committed: Option<LogIndex>,
}

/// Says true once everything that this node may have applied before it started is applied again:
/// all of the log it started with, or, where a part of that was never committed, all that the
/// cluster has committed.
///
/// A node that finds no leader cannot learn what was committed. It goes on from what its log knows
/// to be committed, which was written 50 ms after the last entry at the latest: of what it applied
/// just before it was killed, something may be missing until a leader is back.
pub async fn watch_recovery(
    raft: Raft,
    local: Arc<Local>,
    at_start: AtStart,
    recovered: watch::Sender<bool>,
) {
    let applied = |metrics: &Metrics| metrics.last_applied.as_ref().map(|id| id.index());
    let caught_up = |metrics: &Metrics| {
        let committed = metrics.cluster_committed.as_ref().map(|id| id.index());
        let replayed = applied(metrics) >= at_start.last;
        let current = committed.is_some()
            && committed >= metrics.last_log_index
            && applied(metrics) >= committed;
        replayed || current
    };
    let is_alone = |metrics: &Metrics| !local.is_led() && applied(metrics) >= at_start.committed;
    let alone = async {
        tokio::time::sleep(ALONE).await;
        raft.wait(None).metrics(is_alone, "alone, and as far as it knows").await
    };
    let replayed = raft.wait(None);
    let is_recovered = tokio::select! {
        waited = replayed.metrics(caught_up, "recovered") => waited.is_ok(),
        waited = alone => waited.is_ok(),
    };
    if is_recovered {
        recovered.send_replace(true);
    }
    // The sender is kept so that those who look find the last word.
    recovered.closed().await;
}
