//! Processes that end or freeze under load, at any time: nothing that was acknowledged is lost,
//! and no reply is that of another command (`lockstep_tests::load` says how this is shown).

use std::time::Duration;

use lockstep_tests::cluster::{Plan, SOON};
use lockstep_tests::load::Load;

/// Writers of a load.
const WRITERS: u64 = 12;

/// The leader is killed with SIGKILL under load 20 times: every acknowledged write is readable
/// after, on every node, and each reply is that of its command.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_killed_20_times_under_load() {
    let mut cluster = Plan::new(3).config("checkpoint_log_entries = 500").start().await;
    let mut load = Load::start(&cluster, "leader", WRITERS);
    for _ in 0..20 {
        load.progress(cluster.random.u64(50..250), SOON).await;
        let leader = cluster.leader().await;
        cluster.node_mut(leader).kill().await;
        load.progress(10, SOON).await;
        cluster.node_mut(leader).start().await;
    }
    load.progress(50, SOON).await;
    let report = load.finish().await;
    report.check(&cluster.client()).await;
    report.check_equal(&cluster, &[1, 2, 3]).await;
}

/// All nodes are killed at once under load 5 times: the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_are_killed_5_times_under_load() {
    let mut cluster = Plan::new(3).config("checkpoint_log_entries = 500").start().await;
    let mut load = Load::start(&cluster, "all", WRITERS);
    for _ in 0..5 {
        load.progress(cluster.random.u64(100..400), SOON).await;
        cluster.crash_all().await;
        cluster.leader().await;
    }
    load.progress(50, SOON).await;
    let report = load.finish().await;
    report.check(&cluster.client()).await;
    report.check_equal(&cluster, &[1, 2, 3]).await;
}

/// A lone node is killed under load 5 times: the same, with nobody else to get the log from.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_node_is_killed_5_times_under_load() {
    let mut cluster = Plan::new(1).config("checkpoint_log_entries = 300").start().await;
    let mut load = Load::start(&cluster, "lone", WRITERS);
    for _ in 0..5 {
        load.progress(cluster.random.u64(100..500), SOON).await;
        cluster.crash_all().await;
    }
    load.progress(50, SOON).await;
    let report = load.finish().await;
    report.check(&cluster.client()).await;
}

/// Leaders that are frozen until another one leads, and then go on in the belief that they lead,
/// lose nothing either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_frozen_under_load() {
    let cluster = Plan::new(3).start().await;
    let mut load = Load::start(&cluster, "frozen", WRITERS);
    for _ in 0..4 {
        load.progress(100, SOON).await;
        let leader = cluster.leader().await;
        cluster.node(leader).pause().await;
        cluster.leader_other_than(leader).await;
        load.progress(20, SOON).await;
        cluster.node(leader).resume();
    }
    load.progress(50, SOON).await;
    let report = load.finish().await;
    report.check(&cluster.client()).await;
    report.check_equal(&cluster, &[1, 2, 3]).await;
}

/// Nodes that are stopped gracefully one after the other under load hand leadership over: no
/// write comes to an unknown outcome for longer than the client's own deadline, none is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_under_load_loses_nothing() {
    let mut cluster = Plan::new(3).start().await;
    let mut load = Load::start(&cluster, "rolling", WRITERS);
    for id in [1, 2, 3] {
        load.progress(100, SOON).await;
        cluster.node_mut(id).stop().await;
        load.progress(20, Duration::from_secs(10)).await;
        cluster.node_mut(id).start().await;
        cluster.leader().await;
    }
    let report = load.finish().await;
    report.check(&cluster.client()).await;
    report.check_equal(&cluster, &[1, 2, 3]).await;
}
