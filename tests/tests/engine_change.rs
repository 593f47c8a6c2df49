//! A running cluster moves to a build of another engine profile, which counts other fuel: a seal, a
//! restart of each node, and nothing written in between.

use std::time::Duration;

use lockstep_client::{Consistency, reason};
use lockstep_proto::v1::StatusReply;
use lockstep_tests::cluster::{Cluster, Plan, SOON};
use lockstep_tests::engine::{self, Sealing};
use lockstep_tests::load::{self, Load};
use lockstep_tests::node::summary;
use lockstep_tests::wait::{throughout, until};
use lockstep_tests::{kv, program};

/// A sync of a snapshot that takes longer than any test.
const SNAPSHOTS_HANG: &str = "sync /snapshots/ delay 3600000";
/// The same of compiled code, which a node writes before its guests start.
const STARTS_HANG: &str = "sync /cache/ delay 3600000";

/// How long what should not happen is watched for: ten times the leader's looks.
const WATCHED: Duration = Duration::from_secs(2);

/// Expects the counter that every test here moves along.
async fn total(cluster: &Cluster, expected: &str) {
    let total = cluster.run(&["query", "--machine", "counter", "total"]).await.ok();
    assert_eq!(total, expected);
}

/// Three nodes with keys in `kv` and 42 in `counter`.
async fn filled(plan: Plan) -> Cluster {
    let cluster = plan.start().await;
    load::fill(&cluster.client(), "before", 500).await;
    cluster.create_machine("counter", &program::guest("counter")).await.ok();
    cluster.run(&["exec", "--machine", "counter", "42"]).await.ok();
    cluster
}

/// Expects that nothing was lost, that writes go on, and that these nodes are equal.
async fn check_whole(cluster: &Cluster, ids: &[u64]) {
    let client = cluster.client();
    assert_eq!(load::count(&client, "before", 500, Consistency::Linearizable).await, 500);
    total(cluster, "42").await;
    load::fill(&client, "after", 100).await;
    cluster.level(ids, SOON).await;
    for id in ids {
        let client = cluster.node(*id).client();
        assert_eq!(load::count(&client, "before", 500, Consistency::Stale).await, 500);
        assert_eq!(load::count(&client, "after", 100, Consistency::Stale).await, 100);
    }
    engine::check_states(cluster, ids).await;
}

/// Under load the nodes are restarted one by one with the next build. Once a majority runs it,
/// writes go on there; every write stands before the seal or after its end, at which the last
/// node of the build before stops applying until it is restarted too. Nothing is lost, all nodes
/// are equal, and the pause is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_cluster_changes_its_engine() {
    let mut cluster = filled(Plan::new(3)).await;
    let next = engine::next_profile().await;
    let mut load = Load::start(&cluster, "engine", 2);
    load.progress(50, SOON).await;
    let mut sealing = Sealing::start(&cluster);
    sealing.says("next: restart each node").await;
    let leader = cluster.leader().await;
    let sealed_at = cluster.node(leader).status().await.expect("it answers").sealed;
    let sealed_at = sealed_at.expect("it is sealed").index;
    load::write_is_refused(&cluster.client(), reason::SEALED).await;
    total(&cluster, "42").await;

    let followers: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    for id in &followers {
        engine::restart_with_next(&mut cluster, *id).await;
    }
    engine::run_on(&cluster, &followers, &next).await;
    load.progress(50, SOON).await;
    let before = engine::parked(&cluster, leader).await;
    assert!(before.parked.contains(&next) && before.parked.contains("lockstep repair"));
    let printed = sealing.ends().await;
    let left = format!("next: restart node {leader} with that build as well");
    program::assert_holds("the command", &printed, &["they were paused for", &left]);
    let decided_at = before.applied_index;
    assert!(decided_at > sealed_at);

    engine::restart_with_next(&mut cluster, leader).await;
    load.progress(50, SOON).await;
    let report = load.finish().await;
    report.check(&cluster.client()).await;
    report.check_equal(&cluster, &[1, 2, 3]).await;
    assert!(report.refused > 0, "nobody wrote while it was sealed");
    let between = report.indexes.range(sealed_at..=decided_at).next();
    assert_eq!(between, None, "a write stands between seal and end");
    check_whole(&cluster, &[1, 2, 3]).await;

    let again = engine::run_next(&cluster, &["cluster", "seal"]).await.ok();
    program::assert_holds("a second seal", &again, &["runs engine profile", "already"]);
    cluster.node_mut(1).stop().await;
    engine::start_with(&mut cluster, 1, false).await;
    assert!(engine::parked(&cluster, 1).await.parked.contains(&next));
}

/// All nodes are killed after the seal is applied and before any has its snapshot; after; as the
/// first starts from its exports; before the change is decided; and after, before any has a
/// snapshot of the new engine. Each time the cluster goes on where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_killed_at_every_step() {
    let mut cluster = filled(Plan::new(3).faulty()).await;
    let next = engine::next_profile().await;
    set_faults(&cluster, SNAPSHOTS_HANG);
    let sealed_at = engine::seal_entry(&mut cluster).await;
    for id in cluster.ids() {
        cluster.node(id).says("it is sealed", SOON, |said| said.sealed.clone()).await;
    }
    kill_all(&mut cluster).await;
    clear_faults(&cluster);

    // Without the snapshot of the seal the next build has nothing to start from.
    engine::start_with(&mut cluster, 1, true).await;
    let parked = engine::parked(&cluster, 1).await.parked;
    program::assert_holds("it says", &parked, &["run the build of that profile"]);
    cluster.node_mut(1).kill().await;
    for id in cluster.ids() {
        engine::start_with(&mut cluster, id, false).await;
    }
    agreed_on(&cluster, sealed_at).await;
    kill_all(&mut cluster).await;

    cluster.node(2).faults().set(STARTS_HANG);
    cluster.node_mut(2).program = program::lockstep_next();
    let before = cluster.node(2).log_text().len();
    cluster.node_mut(2).spawn();
    until("node 2 to start from its exports", SOON, async || {
        let log = cluster.node(2).log_text().split_off(before);
        if log.contains("starting from the exports") { Ok(()) } else { Err(log) }
    })
    .await;
    cluster.node_mut(2).kill().await;
    clear_faults(&cluster);

    // One of each build is a majority, but not of the next one.
    engine::start_with(&mut cluster, 2, true).await;
    engine::start_with(&mut cluster, 3, false).await;
    cluster.leader().await;
    total(&cluster, "42").await;
    load::write_is_refused(&cluster.client(), reason::SEALED).await;
    kill_all(&mut cluster).await;

    set_faults(&cluster, SNAPSHOTS_HANG);
    for id in [1, 2] {
        engine::start_with(&mut cluster, id, true).await;
    }
    engine::run_on(&cluster, &[1, 2], &next).await;
    let snapshots = [1, 2].map(|id| cluster.node(id).status());
    for status in futures::future::join_all(snapshots).await {
        assert_eq!(status.expect("it answers").snapshot_index, sealed_at);
    }
    kill_all(&mut cluster).await;
    clear_faults(&cluster);
    for id in cluster.ids() {
        engine::start_with(&mut cluster, id, true).await;
    }
    engine::run_on(&cluster, &[1, 2, 3], &next).await;
    for id in cluster.ids() {
        let newer = cluster.node(id).says("it has a snapshot of the new engine", SOON, |said| {
            (said.snapshot_index > sealed_at).then_some(())
        });
        newer.await;
    }
    check_whole(&cluster, &[1, 2, 3]).await;
}

fn set_faults(cluster: &Cluster, rule: &str) {
    cluster.nodes.iter().for_each(|node| node.faults().set(rule));
}

fn clear_faults(cluster: &Cluster) {
    for node in &cluster.nodes {
        node.faults().clear();
    }
}

async fn kill_all(cluster: &mut Cluster) {
    for node in &mut cluster.nodes {
        if node.runs() {
            node.kill().await;
        }
    }
}

/// Waits until all nodes reported the same state at the seal.
async fn agreed_on(cluster: &Cluster, sealed_at: u64) {
    let leader = cluster.leader().await;
    cluster
        .node(leader)
        .says("all agree", SOON, |status| {
            let found = status.checkpoints.iter().find(|found| found.index == sealed_at)?;
            (found.reports.len() == 3 && !found.agreed.is_empty()).then_some(())
        })
        .await;
}

/// A voter that is away stops the seal before anything has changed. Sealed without it, it gets the
/// snapshot of the seal when it comes back with the next build, and is one of the majority.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_starts_from_the_exports_of_a_peer() {
    let mut cluster = filled(Plan::new(3)).await;
    let next = engine::next_profile().await;
    cluster.node_mut(3).stop().await;
    cluster.leader().await;
    let refused = engine::run_next(&cluster, &["cluster", "seal"]).await;
    refused.refused(&["voter 3 would miss the change", "--without-absent"]);
    load::write(&cluster.client(), "k", "v").await;
    let seal = ["cluster", "seal", "--without-absent", "--no-wait"];
    engine::run_next(&cluster, &seal).await.ok();
    let sealed_at = cluster.node(cluster.leader().await).says("it has purged", SOON, |status| {
        let sealed = status.sealed.as_ref()?;
        (status.purged_index > 0).then_some(sealed.index)
    });
    let sealed_at = sealed_at.await;
    engine::start_with(&mut cluster, 3, true).await;
    let restored = cluster.node(3).says("it starts from the seal", SOON, |status| {
        (status.snapshot_index == sealed_at && status.parked.is_empty()).then_some(())
    });
    restored.await;
    engine::restart_with_next(&mut cluster, 1).await;
    engine::run_on(&cluster, &[1, 3], &next).await;
    engine::restart_with_next(&mut cluster, 2).await;
    check_whole(&cluster, &[1, 2, 3]).await;
}

/// A node that was away for the seal alone, and comes back with the next build, is parked and
/// counts for nothing; a repair brings it in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_missed_the_seal_is_repaired() {
    let mut cluster = filled(Plan::new(3)).await;
    let next = engine::next_profile().await;
    engine::check_states(&cluster, &[1, 2, 3]).await;
    cluster.node_mut(3).stop().await;
    cluster.leader().await;
    engine::seal_entry(&mut cluster).await;
    engine::start_with(&mut cluster, 3, true).await;
    let parked = engine::parked(&cluster, 3).await.parked;
    assert!(parked.contains("lockstep repair"), "{parked}");
    engine::restart_with_next(&mut cluster, 1).await;
    let leader = cluster.leader_other_than(3).await;
    let two_run_it = |status: &StatusReply| {
        let sealed = status.sealed.as_ref()?;
        (sealed.voters_ready == 2).then_some(())
    };
    cluster.node(leader).says("two run the next build", SOON, two_run_it).await;
    throughout("that two nodes of which one is parked decide nothing", WATCHED, async || {
        let status = cluster.node(leader).status().await?;
        two_run_it(&status).ok_or_else(|| summary(&status))
    })
    .await;
    engine::restart_with_next(&mut cluster, 2).await;
    engine::run_on(&cluster, &[1, 2], &next).await;

    cluster.node_mut(3).stop().await;
    let folder = cluster.node(3).data_dir.display().to_string();
    let repair = ["repair", "--data-dir", &folder];
    let healthy = cluster.node(1).data_dir.display().to_string();
    cluster.node_mut(1).stop().await;
    let refused = engine::run_next(&cluster, &["repair", "--data-dir", &healthy]).await;
    refused.refused(&["nothing to repair"]);
    engine::start_with(&mut cluster, 1, true).await;
    engine::run_next(&cluster, &repair).await.ok();
    engine::run_next(&cluster, &repair).await.refused(&["nothing to repair"]);
    engine::start_with(&mut cluster, 3, true).await;
    check_whole(&cluster, &[1, 2, 3]).await;
}

/// A seal is taken back: what was refused meanwhile did nothing, reads went on, and writes go on
/// with the build before; the node that ran the next one stops applying until it is restarted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seal_is_taken_back() {
    let mut cluster = filled(Plan::new(3)).await;
    let old = cluster.node(1).status().await.expect("it answers").engine_profile;
    let cancel = ["cluster", "seal", "--cancel"];
    cluster.run(&cancel).await.refused(&["not sealed"]);
    engine::run_next(&cluster, &["cluster", "seal", "--no-wait"]).await.ok();
    load::write_is_refused(&cluster.client(), reason::SEALED).await;
    cluster.create_machine("other", &program::guest("counter")).await.refused(&["sealed"]);
    cluster.run(&["snapshot"]).await.refused(&["sealed"]);
    engine::restart_with_next(&mut cluster, 1).await;
    let leader = cluster.leader().await;
    cluster
        .node(leader)
        .says("node 1 runs the next build", SOON, |status| {
            let sealed = status.sealed.as_ref()?;
            let alarm = "1 of 3 voters run that build";
            let alarmed = status.alarms.iter().any(|text| text.contains(alarm));
            (sealed.voters_ready == 1 && alarmed).then_some(())
        })
        .await;
    let stale = load::read(&cluster.node(1).client(), "before-1", Consistency::Stale).await;
    assert_eq!(stale.as_deref(), Some("before-1"), "it answers from its export");

    cluster.run(&cancel).await.ok();
    engine::run_on(&cluster, &[2, 3], &old).await;
    engine::parked(&cluster, 1).await;
    load::write(&cluster.client(), "k", "v").await;
    cluster.node_mut(1).stop().await;
    engine::start_with(&mut cluster, 1, false).await;
    check_whole(&cluster, &[1, 2, 3]).await;
}

/// A machine whose guest cannot export its state stops the seal before anything has changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_cannot_export_stops_the_seal() {
    let cluster = Plan::new(1).start().await;
    cluster.create_machine("hostile", &program::guest("hostile")).await.ok();
    cluster.client().execute("hostile", "flood at export").await.expect("it is yet to flood");
    let refused = engine::run_next(&cluster, &["cluster", "seal"]).await;
    refused.refused(&["no export of machine hostile", "mend or remove the machine"]);
    let written = cluster.client().execute(kv::MACHINE, kv::text("SET k v")).await;
    assert_eq!(written.expect("nothing is sealed").reply, "+OK\r\n");
}
