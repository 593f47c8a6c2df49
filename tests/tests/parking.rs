//! Nodes that are parked: they keep the log, and neither apply nor lead.

use std::time::Duration;

use lockstep_client::{Consistency, reason};
use lockstep_tests::cluster::{Plan, SOON};
use lockstep_tests::wait::throughout;
use lockstep_tests::{kv, load, peer};

/// Of a kind that no version of Lockstep knows.
const UNKNOWN_KIND: u8 = 250;

/// An entry of a later version parks the nodes that meet it, also over a restart: they go on
/// to acknowledge the log, apply nothing, refuse to lead, stand in no election, and say why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_of_a_later_version_parks() {
    let mut cluster = Plan::new(3).start().await;
    load::write(&cluster.client(), "k", "v").await;
    let leader = cluster.leader().await;
    peer::propose(&cluster, leader, peer::entry(UNKNOWN_KIND)).await;
    let mut applied = 0;
    for id in 1..=3 {
        let parked = cluster.node(id).says("it is parked", SOON, |status| {
            (!status.parked.is_empty()).then(|| status.clone())
        });
        let parked = parked.await;
        assert!(parked.parked.contains("kind 250"), "{}", parked.parked);
        applied = parked.applied_index;
    }
    let query = cluster.node(leader).client();
    let stale = query.query(kv::MACHINE, kv::text("GET k"), Consistency::Stale).await;
    let error = stale.expect_err("a parked node answers with the reason");
    assert_eq!(error.reason, reason::PARKED, "{error}");
    let error = query.execute(kv::MACHINE, kv::text("SET k w")).await.expect_err("it is parked");
    assert_eq!(error.reason, reason::PARKED, "{error}");

    // The log goes on: an entry more is committed by all, and applied by none.
    let last = cluster.node(leader).status().await.expect("it answers").last_log_index;
    peer::propose(&cluster, leader, peer::entry(UNKNOWN_KIND)).await;
    for id in 1..=3 {
        let kept = cluster.node(id).says("it keeps the log", SOON, |status| {
            (status.committed_index > last).then_some(status.applied_index)
        });
        assert_eq!(kept.await, applied, "node {id} has applied something");
        assert!(peer::standing(&cluster, id).await.contains("kind 250"));
    }

    let term = cluster.node(leader).status().await.expect("it answers").term;
    cluster.node_mut(leader).kill().await;
    let restarted = leader % 3 + 1;
    cluster.node_mut(restarted).kill().await;
    cluster.node_mut(restarted).start().await;
    let left: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    throughout("that nobody stands", Duration::from_secs(3), async || {
        for id in &left {
            let status = cluster.node(*id).status().await?;
            if status.term != term || status.parked.is_empty() {
                return Err(lockstep_tests::node::summary(&status));
            }
        }
        Ok(())
    })
    .await;
}
