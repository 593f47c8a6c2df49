//! Nodes that come and go.

use std::time::Duration;

use lockstep_client::Consistency;
use lockstep_proto::v1::StatusReply;
use lockstep_proto::v1::status_reply::Role;
use lockstep_tests::cluster::{Cluster, Plan, SOON};
use lockstep_tests::load::{self, Load};
use lockstep_tests::wait::until;

/// A new node catches up by snapshot when the log it would need is purged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_node_catches_up_by_snapshot() {
    const KEYS: u64 = 3_000;
    let mut cluster = Plan::new(1).config("log_segment_bytes = 1048576").start().await;
    // Two checkpoints: the log is purged up to the one before the newest.
    for round in 0..3 {
        load::fill(&cluster.client(), &format!("round-{round}"), KEYS).await;
        cluster.run(&["snapshot"]).await.ok();
    }
    let says_purged = cluster.node(1).says("its log is purged", SOON, |status| {
        (status.purged_index > 0).then_some(status.purged_index)
    });
    let purged = says_purged.await;
    let id = cluster.start_another().await;
    cluster.add(id, &[]).await.ok();
    cluster.level(&[1, id], SOON).await;
    let status = cluster.node(id).status().await.expect("it answers");
    assert!(status.snapshot_index >= purged, "it came by a snapshot: {}", status.snapshot_index);
    let client = cluster.node(id).client();
    for round in 0..3 {
        let prefix = format!("round-{round}");
        assert_eq!(load::count(&client, &prefix, KEYS, Consistency::Stale).await, KEYS, "{prefix}");
    }
    // What it was given outlives a crash, as what it wrote itself would.
    cluster.node_mut(id).kill().await;
    cluster.node_mut(id).start().await;
    cluster.level(&[1, id], SOON).await;
    let client = cluster.node(id).client();
    assert_eq!(load::count(&client, "round-0", KEYS, Consistency::Stale).await, KEYS);
}

/// A learner is promoted and an old voter removed under load, and no acknowledged write is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_replaces_a_voter_under_load() {
    let mut cluster = Plan::new(3).start().await;
    let mut load = Load::start(&cluster, "m", 8);
    load.progress(100, SOON).await;

    let new = cluster.start_another().await;
    cluster.add(new, &["--learner"]).await.ok();
    let is_learner = |status: &StatusReply| (status.role() == Role::Learner).then_some(());
    cluster.node(new).says("it is a learner", SOON, is_learner).await;
    load.progress(50, SOON).await;
    cluster.run(&["cluster", "promote", &new.to_string()]).await.ok();
    cluster.run(&["cluster", "remove", "1"]).await.ok();
    load.progress(50, SOON).await;

    let voters = cluster.node(new).says("it votes and node 1 is gone", SOON, |status| {
        let voters: Vec<u64> =
            status.nodes.iter().filter(|node| node.voter).map(|node| node.node_id).collect();
        (!voters.contains(&1) && voters.contains(&new)).then_some(voters)
    });
    assert_eq!(voters.await, [2, 3, new]);
    cluster.node_mut(1).kill().await;
    load.progress(50, SOON).await;
    let report = load.finish().await;
    report.check(&cluster.client()).await;
    report.check_equal(&cluster, &[2, 3, new]).await;
}

/// The leader itself can be removed, under load: another one takes over, and nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_removed_under_load() {
    let cluster = Plan::new(3).start().await;
    let mut load = Load::start(&cluster, "r", 8);
    load.progress(50, SOON).await;
    let leader = cluster.leader().await;
    cluster.run(&["cluster", "remove", &leader.to_string()]).await.ok();
    cluster.leader_other_than(leader).await;
    load.progress(50, SOON).await;
    let report = load.finish().await;
    let left: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    report.check(&cluster.node(left[0]).client()).await;
    report.check_equal(&cluster, &left).await;
}

/// `status` and `cluster status` name the leader's id, for people and as JSON.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_names_the_leader() {
    let cluster = Plan::new(3).start().await;
    let leader = cluster.leader().await;
    for node in &cluster.nodes {
        let call = ["status", "--json", "--endpoint", &node.client_addr];
        let printed = lockstep_tests::program::run(call).await.ok();
        let json: serde_json::Value = serde_json::from_str(&printed).expect("it prints JSON");
        assert_eq!(json["leader_id"], leader, "{printed}");
        assert_eq!(json["node_id"], node.id, "{printed}");
    }
    let printed = cluster.run(&["cluster", "status"]).await.ok();
    lockstep_tests::program::assert_holds("cluster status", &printed, &[&leader.to_string()]);
}

/// A removal whose caller gives up, because a majority is frozen, shows in `status` and in an
/// alarm, and is finished by itself once the majority is back; removing again is refused in words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_outlives_its_caller() {
    let cluster = Plan::new(3).start().await;
    let leader = cluster.leader().await;
    let (second, third) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    cluster.node(second).pause().await;
    cluster.node(third).pause().await;
    let endpoint = cluster.node(leader).client_addr.clone();
    let remove = ["cluster", "remove", &third.to_string(), "--timeout", "1"].map(str::to_owned);
    let call = remove.iter().map(String::as_str).chain(["--endpoint", &endpoint]);
    let given_up = lockstep_tests::program::run(call.clone()).await;
    assert_eq!(given_up.code, Some(1), "{given_up:?}");
    let half_done = |status: &StatusReply| {
        let alarm = status.alarms.iter().any(|alarm| alarm.contains("the voters are changed from"));
        status.voter_change.is_some().then_some(alarm)
    };
    let alarm = cluster.node(leader).says("a change is half done", SOON, half_done).await;
    assert!(alarm, "it is in no alarm");

    cluster.node(second).resume();
    cluster.node(third).resume();
    finished(&cluster, &[leader, second], third).await;
    let again = lockstep_tests::program::run(call).await;
    again.refused(&["is not in the cluster", "removed before"]);
}

/// A leader that is killed in the middle of a removal leaves no joint configuration: the next one
/// finishes the change, or it was never made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_outlives_its_leader() {
    let mut cluster = Plan::new(4).start().await;
    let mut members = cluster.ids();
    for delay_ms in [6, 8, 10, 12, 15, 20] {
        let leader = cluster.leader().await;
        let gone = *members.iter().rev().find(|id| **id != leader).expect("there are four");
        let client = cluster.node(leader).client();
        let removal = tokio::spawn(async move { client.cluster_remove(gone).await });
        // The moment within the change is what this test is about.
        let moment = Duration::from_millis(delay_ms);
        let _ = tokio::time::timeout(moment, std::future::pending::<()>()).await;
        cluster.node_mut(leader).kill().await;
        removal.abort();
        cluster.node_mut(leader).start().await;
        members.retain(|id| *id != gone);
        if !uniform(&cluster, &members, gone).await {
            cluster.run(&["cluster", "remove", &gone.to_string()]).await.ok();
        }
        finished(&cluster, &members, gone).await;
        cluster.node_mut(gone).kill().await;
        cluster.leader().await;
        let new = cluster.start_another().await;
        cluster.add(new, &[]).await.ok();
        members.push(new);
    }
}

/// Waits until none of these nodes is in the middle of a change; tells whether `gone` is gone.
async fn uniform(cluster: &Cluster, nodes: &[u64], gone: u64) -> bool {
    until("the change to be over", SOON, async || {
        let mut members = Vec::new();
        for id in nodes {
            let status = cluster.node(*id).status().await?;
            if status.voter_change.is_some() || status.leader_id == 0 {
                return Err(lockstep_tests::node::summary(&status));
            }
            members.push(status.nodes.iter().any(|node| node.node_id == gone));
        }
        members.dedup();
        if let [is_there] = members[..] { Ok(!is_there) } else { Err("they differ".to_owned()) }
    })
    .await
}

/// Waits until a change is over on these nodes, and `gone` is no member.
async fn finished(cluster: &Cluster, nodes: &[u64], gone: u64) {
    for id in nodes {
        let over = |status: &StatusReply| {
            let is_there = status.nodes.iter().any(|node| node.node_id == gone);
            (status.voter_change.is_none() && !is_there).then_some(())
        };
        cluster.node(*id).says("the change is over", SOON, over).await;
    }
}
