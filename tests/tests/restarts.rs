//! What survives the end of processes.

use std::time::{Duration, Instant};

use lockstep_client::Consistency;
use lockstep_proto::v1::status_reply::Role;
use lockstep_tests::cluster::{Plan, SOON};
use lockstep_tests::wait::throughout;
use lockstep_tests::{load, program};

/// A cluster starts with an empty state: a fresh node knows no cluster and has no log, and the
/// first entry after `init` is the membership, which every later index counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_starts_with_an_empty_state() {
    let cluster = Plan::new(1).start_bare().await;
    let node = cluster.node(1);
    let fresh = node.status().await.expect("it answers");
    assert_eq!(fresh.role(), Role::Uninitialized);
    assert!(fresh.cluster_id.is_empty() && fresh.nodes.is_empty() && fresh.machines.is_empty());
    assert_eq!((fresh.term, fresh.last_log_index, fresh.applied_index), (0, 0, 0));

    cluster.run(&["cluster", "init"]).await.ok();
    cluster.leader().await;
    let ready = node.says("its first entries are applied", SOON, |status| {
        (status.applied_index > 0 && status.applied_index == status.last_log_index)
            .then(|| status.clone())
    });
    let ready = ready.await;
    let members: Vec<u64> = ready.nodes.iter().map(|member| member.node_id).collect();
    assert_eq!(members, [1], "the membership is the first thing in the log");
    assert!(ready.machines.is_empty(), "there is no machine before one is created");
    cluster.kv("GET k").await.refused(&["kv"]);
}

/// Term and vote are preserved over a restart: nodes that come back alone, where nobody can be
/// elected, say the term they were in; and no term ever has two leaders.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn term_and_vote_are_preserved() {
    let mut cluster = Plan::new(3).start().await;
    let mut leaders = std::collections::BTreeMap::new();
    for _ in 0..3 {
        let leader = cluster.leader().await;
        cluster.node_mut(leader).kill().await;
        let next = cluster.leader_other_than(leader).await;
        cluster.node_mut(leader).start().await;
        for status in cluster.statuses().await {
            if status.role() == Role::Leader {
                let other = leaders.insert(status.term, status.node_id);
                let same = other.is_none_or(|other| other == status.node_id);
                assert!(same, "term {} has two leaders", status.term);
            }
        }
        assert_ne!(next, leader);
    }
    cluster.level(&[1, 2, 3], SOON).await;
    let before = cluster.statuses().await;
    // Whoever sees that the leader has ended would stand for election.
    for node in &cluster.nodes {
        node.pause().await;
    }
    for node in &mut cluster.nodes {
        node.kill().await;
    }
    for was in before {
        let node = cluster.node_mut(was.node_id);
        node.start().await;
        let is = node.status().await.expect("it answers");
        assert_eq!(is.term, was.term, "the term of node {}", was.node_id);
        assert_eq!(is.last_log_index, was.last_log_index, "the log of node {}", was.node_id);
        node.kill().await;
    }
    cluster.start_all().await;
    cluster.leader().await;
}

/// A log without any snapshot is replayed after a crash: state, index and membership are there
/// again, and the next write goes on from them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_replayed_after_a_restart() {
    let mut cluster = Plan::new(1).start().await;
    load::fill(&cluster.client(), "key", 500).await;
    let before = cluster.node(1).status().await.expect("it answers");
    assert_eq!(before.snapshot_index, 0, "no snapshot was taken yet");
    cluster.crash_all().await;
    cluster.leader().await;
    let found = load::count(&cluster.client(), "key", 500, Consistency::Linearizable).await;
    assert_eq!(found, 500);
    let index = load::write(&cluster.client(), "key-0", "again").await;
    assert!(index > before.last_log_index, "{index} goes on from {}", before.last_log_index);
}

/// A node restarts with its state from a snapshot and the log after it, and serves it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_restarts_from_snapshot_and_log() {
    let mut cluster = Plan::new(1).start().await;
    load::fill(&cluster.client(), "early", 300).await;
    let index: u64 = snapshot_index(&cluster.run(&["snapshot"]).await.ok());
    load::fill(&cluster.client(), "late", 300).await;
    cluster.crash_all().await;
    cluster.leader().await;
    let status = cluster.node(1).status().await.expect("it answers");
    assert_eq!(status.snapshot_index, index, "the snapshot is there");
    let client = cluster.client();
    for prefix in ["early", "late"] {
        assert_eq!(load::count(&client, prefix, 300, Consistency::Linearizable).await, 300);
    }
}

/// The number in what `lockstep snapshot` prints.
fn snapshot_index(printed: &str) -> u64 {
    let digits =
        printed.split(|letter: char| !letter.is_ascii_digit()).find(|part| !part.is_empty());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("no index: {printed}"))
}

/// Writes add up across many restarts, of a cluster as of a lone node, by SIGTERM and SIGKILL in
/// turn, with checkpoints in between: after each one everything written before is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_add_up_across_many_restarts() {
    for (nodes, rounds) in [(1, 12), (3, 6)] {
        let mut cluster = Plan::new(nodes).config("checkpoint_log_entries = 40").start().await;
        for round in 0..rounds {
            load::fill(&cluster.client(), &format!("round-{round}"), 50).await;
            if round % 2 == 0 {
                cluster.crash_all().await;
            } else {
                for node in &mut cluster.nodes {
                    node.stop().await;
                }
                cluster.start_all().await;
            }
            cluster.leader().await;
            let client = cluster.client();
            for earlier in 0..=round {
                let prefix = format!("round-{earlier}");
                let found = load::count(&client, &prefix, 50, Consistency::Linearizable).await;
                assert_eq!(found, 50, "{prefix} after restart {round} of {nodes} nodes");
            }
        }
    }
}

/// A full cluster with 200,000 keys restarts, and every key is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_cluster_with_200_000_keys_restarts() {
    const KEYS: u64 = 200_000;
    let mut cluster = Plan::new(3).start().await;
    load::fill(&cluster.client(), "key", KEYS).await;
    cluster.level(&[1, 2, 3], SOON).await;
    cluster.crash_all().await;
    cluster.leader().await;
    assert_eq!(load::count(&cluster.client(), "key", KEYS, Consistency::Linearizable).await, KEYS);
    cluster.level(&[1, 2, 3], SOON).await;
    for id in cluster.ids() {
        let client = cluster.node(id).client();
        let found = load::count(&client, "key", KEYS, Consistency::Stale).await;
        assert_eq!(found, KEYS, "on node {id}");
    }
}

/// The membership survives a restart, and a restarted node rejoins by itself and catches up with
/// what was written while it was away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_node_rejoins_by_itself() {
    let mut cluster = Plan::new(3).start().await;
    let before = cluster.statuses().await.pop().expect("nodes answer").nodes;
    let leader = cluster.leader().await;
    let away = cluster.ids().into_iter().find(|id| *id != leader).expect("two follow");
    cluster.node_mut(away).kill().await;
    load::fill(&cluster.client(), "meanwhile", 100).await;
    cluster.node_mut(away).start().await;
    cluster.level(&[1, 2, 3], SOON).await;
    let after = cluster.node(away).status().await.expect("it answers").nodes;
    let members = |nodes: &[lockstep_proto::v1::Node]| -> Vec<(u64, bool, String)> {
        nodes.iter().map(|n| (n.node_id, n.voter, n.peer_addr.clone())).collect()
    };
    assert_eq!(members(&after), members(&before));
    let client = cluster.node(away).client();
    assert_eq!(load::count(&client, "meanwhile", 100, Consistency::Stale).await, 100);
}

/// A node that was never initialised waits, says so, and never forms a cluster by itself: not
/// after a restart, and not beside others that wait too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uninitialised_node_waits() {
    let mut cluster = Plan::new(2).start_bare().await;
    cluster.crash_all().await;
    let nodes = &cluster.nodes;
    throughout("both wait", Duration::from_secs(3), async || {
        for node in nodes {
            let status = node.status().await?;
            if status.role() != Role::Uninitialized || status.leader_id != 0 {
                return Err(lockstep_tests::node::summary(&status));
            }
        }
        Ok(())
    })
    .await;
    let log = nodes[0].log_text();
    program::assert_holds("its log", &log, &["cluster init"]);
    let started = Instant::now();
    let call = ["kv", "--endpoint", &nodes[0].client_addr, "GET", "k"];
    program::run(call).await.refused(&["init"]);
    assert!(started.elapsed() < Duration::from_secs(20), "it says so without a long wait");
}
