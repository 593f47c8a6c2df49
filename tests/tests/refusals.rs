//! What a cluster refuses, with the reason and the repair, and without changing anything.

use lockstep_tests::cluster::{Cluster, Plan, SOON};
use lockstep_tests::{load, program};

/// `cluster init` twice is refused: by the node itself, and by any member of the cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_init_is_refused() {
    let cluster = Plan::new(2).start().await;
    let before = membership(&cluster).await;
    for node in &cluster.nodes {
        let call = ["cluster", "init", "--endpoint", &node.client_addr];
        program::run(call).await.refused(&["already", "cluster"]);
    }
    assert_eq!(membership(&cluster).await, before);
}

/// A member whose disk was wiped is in no cluster as far as it knows. `cluster init` there is
/// refused when another endpoint is in a cluster, by name and with the repair; with no other
/// endpoint nobody can tell, and it says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_member_forms_no_second_cluster() {
    let mut cluster = Plan::new(3).start().await;
    let wiped = 1;
    cluster.node_mut(wiped).kill().await;
    std::fs::remove_dir_all(&cluster.node(wiped).data_dir).expect("the folder can be removed");
    cluster.node_mut(wiped).start().await;
    cluster.leader_other_than(wiped).await;

    let other = cluster.node(2).client_addr.clone();
    cluster.run(&["cluster", "init"]).await.refused(&["already", &other, "cluster add", "wiped"]);
    // One of the others is enough, also where not all answer.
    cluster.node_mut(2).kill().await;
    let other = cluster.node(3).client_addr.clone();
    cluster.run(&["cluster", "init"]).await.refused(&["already", &other]);
    let status = cluster.node(wiped).status().await.expect("it answers");
    assert!(status.cluster_id.is_empty(), "nothing was formed");

    let alone = ["cluster", "init", "--endpoint", &cluster.node(wiped).client_addr];
    let ran = program::run(alone).await;
    program::assert_holds("init", &ran.err, &["warning", "nobody can tell"]);
    ran.ok();
}

/// Adding a node of another cluster is refused, and so is an address at which nobody answers;
/// adding a member again changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_do_not_belong_are_not_added() {
    let mut cluster = Plan::new(2).start().await;
    let before = membership(&cluster).await;

    let other = cluster.start_another().await;
    let foreign = cluster.node(other).client_addr.clone();
    program::run(["cluster", "init", "--endpoint", &foreign]).await.ok();
    cluster.add(other, &[]).await.refused(&["another cluster"]);

    let leader = cluster.leader().await;
    let member = cluster.node(3 - leader).client_addr.clone();
    let endpoint = cluster.node(leader).client_addr.clone();
    let add = async |address: &str| {
        program::run(["cluster", "add", address, "--endpoint", &endpoint]).await
    };
    add(&member).await.ok();
    add(&endpoint).await.refused(&["is this node"]);
    let nobody = lockstep_tests::ports::address();
    add(&nobody).await.refused(&[&nobody]);

    assert_eq!(membership(&cluster).await, before);
    load::write(&cluster.node(leader).client(), "k", "v").await;
}

/// A wiped disk under an old id is refused: the node that comes back empty votes and acknowledges
/// nothing, status says why, and the repair that is named works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_disk_under_an_old_id_is_refused() {
    let mut cluster = Plan::new(3).start().await;
    load::fill(&cluster.client(), "key", 50).await;
    let leader = cluster.leader().await;
    let wiped = leader % 3 + 1;
    cluster.node_mut(wiped).kill().await;
    std::fs::remove_dir_all(&cluster.node(wiped).data_dir).expect("the folder can be removed");
    cluster.node_mut(wiped).start().await;

    cluster
        .node(leader)
        .says("the disk was replaced", SOON, |status| {
            let said = status.alarms.join(" ").to_lowercase();
            (said.contains("wiped") && said.contains("remove")).then_some(())
        })
        .await;
    load::fill(&cluster.client(), "more", 50).await;
    let status = cluster.node(wiped).status().await.expect("it answers");
    assert_eq!((status.last_log_index, status.applied_index), (0, 0), "it took nothing");
    // Adding it back under the id that its lost disk had is refused as well.
    cluster.add(wiped, &[]).await.refused(&["remove"]);

    // The repair: remove it, start it with a new id on an empty folder, add it.
    cluster.run(&["cluster", "remove", &wiped.to_string()]).await.ok();
    cluster.node_mut(wiped).stop().await;
    let new = cluster.start_another().await;
    cluster.add(new, &[]).await.ok();
    cluster.level(&[leader, new], SOON).await;
}

/// A removed node stays out: it does not disturb the others, and is told so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_does_not_disturb() {
    let mut cluster = Plan::new(3).start().await;
    let leader = cluster.leader().await;
    let removed = leader % 3 + 1;
    cluster.run(&["cluster", "remove", &removed.to_string()]).await.ok();
    let term = cluster.node(leader).status().await.expect("it answers").term;
    cluster.node_mut(removed).kill().await;
    cluster.node_mut(removed).start().await;
    let leads_on = cluster.node(leader);
    lockstep_tests::wait::throughout(
        "the leader leads on in its term",
        std::time::Duration::from_secs(4),
        async || {
            let status = leads_on.status().await?;
            let same = status.term == term && status.leader_id == leader;
            if same { Ok(()) } else { Err(lockstep_tests::node::summary(&status)) }
        },
    )
    .await;
}

/// A node that was removed while it was stopped says so when it comes back, and names no leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_says_so() {
    let mut cluster = Plan::new(3).start().await;
    let leader = cluster.leader().await;
    let removed = leader % 3 + 1;
    cluster.node_mut(removed).kill().await;
    cluster.run(&["cluster", "remove", &removed.to_string()]).await.ok();
    cluster.node_mut(removed).start().await;
    let says_so = |status: &lockstep_proto::v1::StatusReply| {
        let words = "this node was removed from the cluster";
        let said = status.alarms.iter().any(|alarm| alarm.contains(words));
        (said && status.leader_id == 0).then_some(())
    };
    cluster.node(removed).says("it was removed", SOON, says_so).await;
}

/// Members of the cluster as the leader's side knows them.
async fn membership(cluster: &Cluster) -> Vec<(u64, bool)> {
    let status = cluster.node(1).status().await.expect("it answers");
    status.nodes.iter().map(|node| (node.node_id, node.voter)).collect()
}
