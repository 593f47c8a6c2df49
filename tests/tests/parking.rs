//! Nodes that are parked: they keep the log, and neither apply nor lead.

use std::time::Duration;

use lockstep_client::{Consistency, reason};
use lockstep_proto::v1::status_reply::Role;
use lockstep_tests::cluster::{Plan, SOON};
use lockstep_tests::node::summary;
use lockstep_tests::wait::throughout;
use lockstep_tests::{kv, load, peer};

/// Of a kind that no version of Lockstep knows.
const UNKNOWN_KIND: u8 = 250;

/// An entry of a later version parks the nodes that meet it, also over a restart: they go on
/// to acknowledge the log, apply nothing, refuse to lead, stand in no election, and say why. The
/// only voter has nobody to hand leadership to, so that the log goes on meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_of_a_later_version_parks() {
    let mut cluster = Plan::new(1).start().await;
    for _ in 0..2 {
        let id = cluster.start_another().await;
        cluster.add(id, &["--learner"]).await.ok();
    }
    load::write(&cluster.client(), "k", "v").await;
    cluster.level(&[1, 2, 3], SOON).await;
    let before = cluster.node(1).status().await.expect("it answers");
    cluster.node_mut(1).kill().await;
    let unknown = peer::entry(UNKNOWN_KIND);
    peer::append(&[cluster.node(1)], &[unknown.clone(), unknown]);
    cluster.node_mut(1).start().await;
    let mut applied = 0;
    for id in 1..=3 {
        let parked = cluster.node(id).says("it is parked", SOON, |status| {
            (!status.parked.is_empty()).then(|| status.clone())
        });
        let parked = parked.await;
        assert!(parked.parked.contains("kind 250"), "{}", parked.parked);
        applied = parked.applied_index;
    }
    let voter = cluster.node(1).client();
    let stale = voter.query(kv::MACHINE, kv::text("GET k"), Consistency::Stale).await;
    let error = stale.expect_err("a parked node answers with the reason");
    assert_eq!(error.reason, reason::PARKED, "{error}");
    let error = voter.execute(kv::MACHINE, kv::text("SET k w")).await.expect_err("it is parked");
    assert_eq!(error.reason, reason::PARKED, "{error}");

    // The log goes on: an entry more is committed by all, and applied by none.
    for id in 1..=3 {
        let kept = cluster.node(id).says("it keeps the log", SOON, |status| {
            (status.committed_index > before.last_log_index + 1).then_some(status.applied_index)
        });
        assert_eq!(kept.await, applied, "node {id} has applied something");
        assert!(peer::standing(&cluster, id).await.contains("kind 250"));
    }

    // Alone it would need nobody else's vote.
    let before = cluster.node(1).status().await.expect("it answers");
    cluster.node_mut(1).stop().await;
    cluster.node_mut(1).start().await;
    throughout("that it does not stand", Duration::from_secs(3), async || {
        let status = cluster.node(1).status().await?;
        let stands = status.term != before.term || status.role() == Role::Leader;
        if stands || status.parked.is_empty() { Err(summary(&status)) } else { Ok(()) }
    })
    .await;
    // The way out: every node skips the entries, and the cluster goes on.
    let skip = format!("skip_entries = [{}, {}]", applied + 1, applied + 2);
    cluster.reconfigure(&skip);
    for id in 1..=3 {
        cluster.node_mut(id).kill().await;
    }
    cluster.start_all().await;
    cluster.leader().await;
    load::write(&cluster.client(), "k", "w").await;
    cluster.level(&[1, 2, 3], SOON).await;
    for status in cluster.statuses().await {
        assert!(status.parked.is_empty(), "{}", summary(&status));
    }
}
