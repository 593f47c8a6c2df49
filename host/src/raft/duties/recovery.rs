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
    let caught_up = |metrics: &Metrics| at_start.is_caught_up(metrics);
    let is_alone = |metrics: &Metrics| !local.is_led() && at_start.is_as_committed(metrics);
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

impl AtStart {
    /// Whether all that this node may have applied before is applied again.
    fn is_caught_up(&self, metrics: &Metrics) -> bool {
        let committed = metrics.cluster_committed.as_ref().map(|id| id.index());
        let replayed = applied(metrics) >= self.last;
        let current = committed.is_some()
            && committed >= metrics.last_log_index
            && applied(metrics) >= committed;
        replayed || current
    }

    /// Whether all is applied again that this node knew to be committed.
    fn is_as_committed(&self, metrics: &Metrics) -> bool {
        applied(metrics) >= self.committed
    }
}

fn applied(metrics: &Metrics) -> Option<LogIndex> {
    metrics.last_applied.as_ref().map(|id| id.index())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::store::convert::log_id_to_raft;
    use crate::types::{LogId, NodeId};

    fn metrics(
        last: Option<LogIndex>,
        committed: Option<LogIndex>,
        applied: Option<LogIndex>,
    ) -> Metrics {
        let id = |index| log_id_to_raft(LogId { term: 1, node: NodeId(1), index });
        let (cluster_committed, last_applied) = (committed.map(id), applied.map(id));
        let last_log_index = last;
        Metrics {
            last_log_index,
            cluster_committed,
            last_applied,
            ..Metrics::new_initial(NodeId(1))
        }
    }

    /// A node answers for itself once its whole log is applied again, or all that the cluster has
    /// committed, where nothing behind that is in its log.
    #[test]
    fn when_a_node_has_caught_up() {
        let at_start = AtStart { last: Some(10), committed: Some(8) };
        let rows = [
            (Some(10), None, Some(9), false),
            (Some(10), None, Some(10), true),
            (Some(12), Some(12), Some(11), true),
            (Some(10), Some(9), Some(9), false),
            (Some(9), Some(9), Some(8), false),
            (Some(9), Some(9), Some(9), true),
        ];
        for (last, committed, applied, expected) in rows {
            let found = at_start.is_caught_up(&metrics(last, committed, applied));
            assert_eq!(found, expected, "last {last:?}, committed {committed:?}, {applied:?}");
        }
        let fresh = AtStart { last: None, committed: None };
        assert!(fresh.is_caught_up(&metrics(None, None, None)), "there was nothing before");
    }

    /// A node that finds no leader goes on from what it knew to be committed, and from no less.
    #[test]
    fn when_a_lone_node_goes_on() {
        let at_start = AtStart { last: Some(10), committed: Some(8) };
        let knows = |applied| at_start.is_as_committed(&metrics(Some(10), None, applied));
        assert!(!knows(None) && !knows(Some(7)) && knows(Some(8)));
    }
}
