//! What hostile clients can't do: one row for each thing that others could make a node grow or
//! hold. `cargo xtask soak hostile` does each for a minute, and looks at the times of the good
//! client as well.

use std::time::Duration;

use futures::future::join_all;
use lockstep_tests::cluster::{Plan, SOON};
use lockstep_tests::hostile::{self, Row};
use lockstep_tests::load;
use lockstep_tests::wait::until;
use tokio::net::TcpStream;

/// How long each attack goes on.
const ATTACK: Duration = Duration::from_secs(4);

/// Resident memory stays under its bound, nobody else leads, and everything is back soon after.
async fn holds(row: Row) {
    let verdict = hostile::run(row, ATTACK).await;
    assert!(verdict.answered > 0, "{verdict:?}");
    assert!(verdict.same_leader, "{verdict:?}");
}

macro_rules! rows {
    ($($name:ident: $row:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                holds(Row::$row).await;
            }
        )*

        /// Every row has its test.
        #[test]
        fn every_row_is_tested() {
            assert_eq!(Row::ALL, [$(Row::$row),*]);
        }
    };
}

rows! {
    replies_that_nobody_reads: Replies,
    many_slow_readers: SlowReaders,
    messages_that_do_not_end: Partial,
    messages_of_strangers_at_the_peer_port: PartialPeers,
    queries_of_callers_that_vanish: Vanished,
    many_callers_of_snapshot: Snapshots,
    many_modules_at_once: Modules,
    connections_that_say_nothing: Connections,
    names_as_long_as_messages: Names,
    long_replies_after_short_ones: Taught,
    streams_of_requests_that_nobody_reads: Reflections,
    hellos_of_strangers: Strangers,
}

/// A node with few descriptors keeps those that it needs, however many connections come: it takes
/// a checkpoint, and serves who asks for something.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_leave_files_for_a_checkpoint() {
    let mut cluster = Plan::new(1).start().await;
    cluster.node_mut(1).stop().await;
    cluster.node_mut(1).spawn_under("ulimit -n 600; exec \"$@\"");
    cluster.node_mut(1).answers().await;
    cluster.leader().await;
    let node = cluster.node(1);
    let dials = [&node.client_addr, &node.peer_addr]
        .map(|address| join_all((0..350).map(|_| TcpStream::connect(address.clone()))));
    let kept = join_all(dials).await;
    cluster.run(&["snapshot"]).await.ok();
    load::write(&cluster.client(), "k", "v").await;
    drop(kept);
    assert!(cluster.node_mut(1).runs());
}

/// A snapshot that finds no descriptor for its file is tried again by itself, with an alarm
/// meanwhile: no other checkpoint is needed, and the node runs on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_without_a_descriptor_is_tried_again() {
    let mut cluster = Plan::new(1).start().await;
    let client = cluster.client();
    load::write(&client, "k", "v").await;
    let before = client.status().await.expect("it answers").snapshot_index;
    let files = cluster.node(1).allow_files(8);
    let asking = client.with_timeout(SOON);
    let asked = tokio::spawn(async move { asking.snapshot().await });
    until("the alarm", SOON, async || {
        let alarms = client.status().await.map_err(|error| error.to_string())?.alarms;
        let found = alarms.iter().any(|a| a.contains("no file for a snapshot can be opened"));
        if found { Ok(()) } else { Err(format!("{alarms:?}")) }
    })
    .await;
    cluster.node(1).allow_files(files);
    let taken = asked.await.expect("it does not panic").expect("it is taken");
    assert!(taken > before);
    until("the alarm to end", SOON, async || {
        let alarms = client.status().await.map_err(|error| error.to_string())?.alarms;
        if alarms.is_empty() { Ok(()) } else { Err(format!("{alarms:?}")) }
    })
    .await;
    let status = client.status().await.expect("it answers");
    assert_eq!(status.checkpoints.last().map(|last| last.index), Some(taken), "there is no other");
    load::write(&client, "k", "w").await;
    assert!(cluster.node_mut(1).runs());
}

/// Modules that no machine runs go from the disk of every node, two checkpoints later; the one that
/// a machine runs stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modules_that_nothing_needs_go() {
    let cluster = Plan::new(3).start().await;
    for _ in 0..4 {
        let module = hostile::unique_module();
        cluster.client().upload_module(module).await.expect("it is a guest");
    }
    let kept = |id: u64| {
        let folder = cluster.node(id).data_dir.join("modules");
        std::fs::read_dir(folder).expect("it can be listed").count()
    };
    assert!(cluster.ids().into_iter().all(|id| kept(id) == 5));
    for _ in 0..2 {
        cluster.run(&["snapshot"]).await.ok();
    }
    for id in cluster.ids() {
        until("the others to go", SOON, async || match kept(id) {
            1 => Ok(()),
            count => Err(format!("node {id} keeps {count}")),
        })
        .await;
    }
    load::write(&cluster.client(), "k", "v").await;
}
