//! A node whose state is another than the cluster's: found at the next checkpoint, quarantined,
//! repaired.

use lockstep_client::{Consistency, Outcome, reason};
use lockstep_proto::v1::CheckpointReport;
use lockstep_tests::cluster::{Cluster, Plan, SOON};
use lockstep_tests::load::{self, Load};
use lockstep_tests::node::summary;
use lockstep_tests::wait::until;
use lockstep_tests::{diverge, kv, program};

/// What a key holds, and what it holds on the divergent node.
const RIGHT: &str = "the-right-value";
const WRONG: &str = "the-wrong-value";

/// Nodes with the same history, of which the last one restored another state and leads.
async fn led_by_a_divergent_node(nodes: u64) -> Cluster {
    let mut cluster = Plan::new(nodes).start().await;
    load::write(&cluster.client(), "k", RIGHT).await;
    let index: u64 = snapshot(&cluster).await;
    for id in 1..=nodes {
        let node = cluster.node(id);
        node.says("its snapshot is there", SOON, |said| {
            (said.snapshot_index == index).then_some(())
        })
        .await;
    }
    cluster.node_mut(nodes).stop().await;
    diverge::replace_in_memory(cluster.node(nodes), RIGHT.as_bytes(), WRONG.as_bytes());
    cluster.node_mut(nodes).start().await;
    cluster.leader().await;
    cluster.level(&cluster.ids(), SOON).await;
    let stale = load::read(&cluster.node(nodes).client(), "k", Consistency::Stale).await;
    assert_eq!(stale.as_deref(), Some(WRONG), "nobody has noticed");
    cluster.run(&["cluster", "transfer", &nodes.to_string()]).await.ok();
    cluster
}

/// Takes a checkpoint; its index.
async fn snapshot(cluster: &Cluster) -> u64 {
    let said = cluster.run(&["snapshot"]).await.ok();
    let digits = said.split(' ').find_map(|word| word.parse().ok());
    digits.unwrap_or_else(|| panic!("no index in {said:?}"))
}

/// Two voters that differ: nobody knows who is right. Writes stop on both, reads, membership and
/// checkpoints go on, and removing one lets the writes go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_stop_without_a_majority() {
    let cluster = led_by_a_divergent_node(2).await;
    let index = snapshot(&cluster).await;
    for id in 1..=2 {
        let halted = cluster.node(id).says("writes have stopped", SOON, |status| {
            (!status.halted.is_empty()).then(|| status.halted.clone())
        });
        let (halted, checkpoint) = (halted.await, format!("checkpoint {index}"));
        program::assert_holds("it says", &halted, &[&checkpoint, "node 1", "node 2"]);
    }
    let client = cluster.client();
    let write = client.execute(kv::MACHINE, kv::text("SET k w")).await;
    let error = write.expect_err("writes have stopped");
    assert_eq!((error.reason.as_str(), error.outcome), (reason::HALTED, Outcome::NotApplied));
    let created = cluster.create_machine("other", &program::guest("guest-kv")).await;
    created.refused(&["writes have stopped"]);
    let value = load::read(&client, "k", Consistency::Linearizable).await;
    assert_eq!(value.as_deref(), Some(WRONG), "the divergent node leads, and reads go on");

    assert!(snapshot(&cluster).await > index);
    cluster.run(&["cluster", "remove", "2"]).await.ok();
    let lone = cluster.node(1);
    lone.says("it leads alone", SOON, |status| {
        (status.leader_id == 1 && status.nodes.len() == 1).then_some(())
    })
    .await;
    load::write(&lone.client(), "k", "mended").await;
    // The removed node runs on here, and where it calls, an alarm says so (decision 0011).
    let calls = "node 2 is refused: node 2 was removed from this cluster";
    lone.says("the rest agrees", SOON, |status| {
        status.alarms.iter().all(|alarm| alarm == calls).then_some(())
    })
    .await;
}

/// The node of three whose state is made another.
const DIVERGENT: u64 = 3;

/// A divergent node is found at the next checkpoint, also while it leads, under load: it applies
/// and leads no more, keeps the evidence over a restart, and every node names it; the others go
/// on, and nothing that they acknowledged is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_divergent_leader_is_quarantined() {
    let mut cluster = led_by_a_divergent_node(DIVERGENT).await;
    let mut load = Load::start(&cluster, "d", 4);
    load.progress(50, SOON).await;
    let index = snapshot(&cluster).await;
    quarantined(&cluster, index).await;
    let leader = cluster.leader_other_than(DIVERGENT).await;
    load.progress(50, SOON).await;

    let divergent = cluster.node(DIVERGENT).client();
    let stale = divergent.query(kv::MACHINE, kv::text("GET k"), Consistency::Stale).await;
    assert_eq!(stale.expect_err("it answers with the reason").reason, reason::PARKED);
    let refused = cluster.run(&["cluster", "transfer", &DIVERGENT.to_string()]).await;
    refused.refused(&["cannot lead", "quarantined"]);
    assert_eq!(cluster.leader().await, leader);

    cluster.node_mut(DIVERGENT).kill().await;
    cluster.node_mut(DIVERGENT).start().await;
    quarantined(&cluster, index).await;
    load.progress(50, SOON).await;
    repaired(&mut cluster, index).await;
    load.progress(50, SOON).await;
    let report = load.finish().await;
    report.check(&cluster.client()).await;
    report.check_equal(&cluster, &[1, 2, 3]).await;
    let value = load::read(&cluster.node(DIVERGENT).client(), "k", Consistency::Stale).await;
    assert_eq!(value.as_deref(), Some(RIGHT));
}

/// Repairs the divergent node, and waits until it is equal at the checkpoint after.
async fn repaired(cluster: &mut Cluster, index: u64) {
    let folder = cluster.node(DIVERGENT).data_dir.clone();
    let healthy = format!("{},{}", cluster.node(1).client_addr, cluster.node(2).client_addr);
    let repair = async |folder: &std::path::Path, from: &str| {
        let folder = folder.display().to_string();
        program::run(["repair", "--data-dir", &folder, "--endpoint", from]).await
    };
    repair(&folder, &healthy).await.refused(&["in use"]);
    let sick = cluster.node(DIVERGENT).client_addr.clone();
    cluster.node_mut(1).stop().await;
    let other = cluster.node(1).data_dir.clone();
    repair(&other, &healthy).await.refused(&["not quarantined"]);
    cluster.node_mut(1).start().await;
    cluster.node_mut(DIVERGENT).stop().await;
    repair(&folder, &sick).await.refused(&["nothing was changed"]);
    assert!(folder.join("quarantine").is_file());

    repair(&folder, &healthy).await.ok();
    assert!(!folder.join("quarantine").exists());
    let evidence = folder.join(format!("evidence/checkpoint-{index}"));
    assert!(evidence.join("quarantine").is_file());
    assert!(evidence.read_dir().expect("it is there").count() >= 2, "the mark and a snapshot");
    repair(&folder, &healthy).await.refused(&["not quarantined"]);
    cluster.node_mut(DIVERGENT).start().await;
    let after = snapshot(cluster).await;
    for id in cluster.ids() {
        let node = cluster.node(id);
        node.says("all came to the same state", SOON, |status| {
            let checkpoint = status.checkpoints.iter().find(|found| found.index == after)?;
            let equal = |report: &CheckpointReport| report.digest == checkpoint.agreed;
            let all = checkpoint.reports.len() == 3 && checkpoint.reports.iter().all(equal);
            let healthy = status.alarms.is_empty() && status.parked.is_empty();
            (all && healthy).then_some(())
        })
        .await;
    }
}

/// Waits until the divergent node says that it is quarantined, with both digests of the
/// checkpoint, and the others name it.
async fn quarantined(cluster: &Cluster, index: u64) {
    let said = cluster.node(DIVERGENT).says("it is quarantined", SOON, |status| {
        (!status.parked.is_empty()).then(|| status.parked.clone())
    });
    let said = said.await;
    let digests = said.split(|c: char| !c.is_ascii_hexdigit()).filter(|word| word.len() == 64);
    assert_eq!(digests.count(), 2, "{said}");
    program::assert_holds("it says", &said, &[&format!("checkpoint {index}")]);
    assert!(cluster.node(DIVERGENT).data_dir.join("quarantine").is_file());
    for id in cluster.ids().into_iter().filter(|id| *id != DIVERGENT) {
        until("the others to name it", SOON, async || {
            let status = cluster.node(id).status().await?;
            let named = status.alarms.iter().any(|alarm| alarm.contains("node 3"));
            if named { Ok(()) } else { Err(summary(&status)) }
        })
        .await;
    }
}
