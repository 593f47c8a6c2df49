//! How openraft runs here, and what follows from it in time.
//!
//! A follower of openraft grants no vote while the *lease* of its leader lasts. Each heartbeat
//! renews the lease, which is as long as openraft's `election_timeout_max`. Only after it a
//! follower waits for a random time, between `election_timeout_min` and `election_timeout_max`.
//! So two halves make the wait that an operator sets.

use std::time::Duration;

use openraft::SnapshotPolicy;

use crate::config::FileConfig;

/// openraft's settings: snapshots and purges are ours alone (`checkpoints`), pre-vote keeps a node
/// that was cut off from disturbing the leader, and a restarted leader is elected again rather
/// than trusted. `FitnessTask` lets a node stand in elections once it knows that it may.
///
/// A leader that no majority answers falls silent once its lease is over, so that followers that
/// hear it, but cannot answer, elect another.
pub fn raft_config(file: &FileConfig) -> openraft::Config {
    let lease_ms = file.election_timeout_ms / 2;
    openraft::Config {
        cluster_name: "lockstep".to_owned(),
        election_timeout_min: lease_ms / 2,
        election_timeout_max: lease_ms,
        heartbeat_interval: file.heartbeat_interval_ms,
        quorum_loss_probe_interval: Some(2 * lease_ms),
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        enable_elect: false,
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        ..openraft::Config::default()
    }
}

/// The longest silence after which a node takes its leader to be gone.
pub(in crate::raft) fn patience(config: &openraft::Config) -> Duration {
    Duration::from_millis(2 * config.election_timeout_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the configuration allows, openraft does too, and it waits no longer than was set.
    #[test]
    fn waits_are_what_was_set() {
        for (heartbeat_interval_ms, election_timeout_ms) in [(100, 1000), (1, 8), (200, 1000)] {
            let file =
                FileConfig { heartbeat_interval_ms, election_timeout_ms, ..FileConfig::default() };
            file.check().expect("it is allowed");
            let config = raft_config(&file).validate().expect("openraft allows it");
            let waits = config.election_timeout_min + config.election_timeout_max
                ..=2 * config.election_timeout_max;
            assert!(*waits.end() <= election_timeout_ms, "{waits:?}");
            assert!(*waits.start() >= election_timeout_ms / 2, "{waits:?}");
            assert_eq!(patience(&config), Duration::from_millis(*waits.end()));
        }
    }
}
