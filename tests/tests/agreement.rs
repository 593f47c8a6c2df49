//! Checkpoints, leadership and partitions: what nodes agree on, and when.

use std::time::Duration;

use lockstep_client::{Consistency, Outcome};
use lockstep_proto::v1::status_reply::Role;
use lockstep_tests::cluster::{Plan, SOON};
use lockstep_tests::load::{self, Load};
use lockstep_tests::node::summary;
use lockstep_tests::wait::until;

/// A checkpoint is taken at the same index on every node: on request, and by the count of
/// entries, under load; and nothing else makes a snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkpoints_are_at_the_same_index_everywhere() {
    let cluster = Plan::new(3).config("checkpoint_log_entries = 300").start().await;
    for status in cluster.statuses().await {
        assert_eq!(status.snapshot_index, 0, "no snapshot before a checkpoint");
    }
    cluster.run(&["snapshot"]).await.ok();
    let first = equal_snapshots(&cluster, 1).await;
    let mut load = Load::start(&cluster, "c", 4);
    until("a checkpoint by count", SOON, async || {
        load.progress(50, SOON).await;
        let newest = cluster.node(1).status().await?.snapshot_index;
        if newest > first { Ok(()) } else { Err(format!("the newest is at {newest}")) }
    })
    .await;
    let report = load.finish().await;
    let second = equal_snapshots(&cluster, first + 1).await;
    assert!(second >= first + 300, "by count: {first}, then {second}");
    report.check(&cluster.client()).await;
}

/// Waits until every node holds a snapshot at the same index, from `from` on.
async fn equal_snapshots(cluster: &lockstep_tests::cluster::Cluster, from: u64) -> u64 {
    until("equal snapshots", SOON, async || {
        let statuses = cluster.statuses().await;
        let index = statuses[0].snapshot_index;
        let equal = statuses.len() == cluster.nodes.len()
            && statuses.iter().all(|status| status.snapshot_index == index);
        let said = || statuses.iter().map(summary).collect::<Vec<_>>().join("; ");
        if equal && index >= from { Ok(index) } else { Err(said()) }
    })
    .await
}

/// Leadership is transferred to the node named, under load, and no acknowledged write is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_transferred() {
    let cluster = Plan::new(3).start().await;
    let mut load = Load::start(&cluster, "t", 4);
    for _ in 0..4 {
        load.progress(30, SOON).await;
        let leader = cluster.leader().await;
        let next = leader % 3 + 1;
        cluster.run(&["cluster", "transfer", &next.to_string()]).await.ok();
        let said = cluster.node(next).says("it leads", SOON, |status| {
            (status.role() == Role::Leader).then_some(status.node_id)
        });
        assert_eq!(said.await, next);
    }
    let report = load.finish().await;
    report.check(&cluster.client()).await;
    report.check_equal(&cluster, &[1, 2, 3]).await;
}

/// Links that are cut and healed at random, in one direction or both, lose no acknowledged write,
/// and the cluster goes on by itself once they are healed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_lose_nothing() {
    let mut cluster = Plan::new(3).linked().start().await;
    let mut load = Load::start(&cluster, "p", 8);
    for _ in 0..8 {
        let node = cluster.random.u64(1..=3);
        match cluster.random.u8(0..3) {
            0 => cluster.isolate(node),
            1 => cluster.set_cut(true, |from, _| from == node),
            _ => cluster.set_cut(true, |from, to| from == node && to == node % 3 + 1),
        }
        // One link of three nodes may be cut without a majority noticing; a whole node as well.
        load.progress(20, SOON).await;
        cluster.heal();
        load.progress(20, SOON).await;
    }
    let report = load.finish().await;
    cluster.leader().await;
    report.check(&cluster.client()).await;
    report.check_equal(&cluster, &[1, 2, 3]).await;
}

/// A leader without its followers acknowledges nothing; what it was sent meanwhile is applied
/// at most once when the link is healed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partitioned_leader_acknowledges_nothing() {
    let cluster = Plan::new(3).linked().start().await;
    let old = cluster.leader().await;
    let at_old = cluster.node(old).client().with_timeout(Duration::from_secs(2));
    cluster.isolate(old);
    let command = lockstep_tests::kv::text("SET k lost GET");
    let error = at_old.execute("kv", command).await.expect_err("no quorum, no acknowledgement");
    assert_eq!(error.outcome, Outcome::Unknown, "{error}");
    let new = cluster.leader_other_than(old).await;
    load::write(&cluster.node(new).client(), "k", "kept").await;
    cluster.heal();
    cluster.leader().await;
    cluster.level(&[1, 2, 3], SOON).await;
    let value = load::read(&cluster.client(), "k", Consistency::Linearizable).await;
    assert_eq!(value.as_deref(), Some("kept"));
}
