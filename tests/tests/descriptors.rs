//! Nodes without file descriptors: what is only needed for a snapshot is tried again, and no node
//! ends for it.

use lockstep_proto::v1::StatusReply;
use lockstep_tests::cluster::{Cluster, Plan, SOON};
use lockstep_tests::wait::until;
use lockstep_tests::{diverge, load};

/// Error of Linux of a process that may open no file more.
const EMFILE: u32 = 24;

async fn alarm(cluster: &Cluster, text: &str) {
    let raised = |status: &StatusReply| status.alarms.iter().any(|alarm| alarm.contains(text));
    let raised = |status: &StatusReply| raised(status).then_some(());
    cluster.node(1).says(&format!("{text:?} is an alarm"), SOON, raised).await;
}

async fn no_alarm(cluster: &Cluster) {
    let quiet = |status: &StatusReply| status.alarms.is_empty().then_some(());
    cluster.node(1).says("there is no alarm", SOON, quiet).await;
}

/// Each file that is opened for a snapshot, and for the next one of the log, is tried again by
/// itself while no descriptor is left for it, with an alarm. The node lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_file_is_tried_again() {
    let mut cluster = Plan::new(1).faulty().config("log_segment_bytes = 1048576").start().await;
    load::write(&cluster.client(), "k", "v").await;
    let rows = [
        ("/snapshots/temporary-", "no file for a snapshot can be opened"),
        ("/modules/", "a snapshot waits: cannot read module"),
    ];
    for (part, said) in rows {
        let client = cluster.client().with_timeout(SOON);
        cluster.node(1).faults().set(&format!("open {part} refuse {EMFILE}"));
        let asked = tokio::spawn(async move { client.snapshot().await });
        alarm(&cluster, said).await;
        cluster.node(1).faults().clear();
        asked.await.expect("it does not panic").expect("it is taken");
        no_alarm(&cluster).await;
        assert!(cluster.node_mut(1).runs(), "{part}: it lives");
    }
    cluster.node(1).faults().set(&format!("open /log/temporary- refuse {EMFILE}"));
    let value = "x".repeat(50_000);
    // The next file is there already: it is used up, and the one after cannot be prepared.
    for _ in 0..25 {
        load::write(&cluster.client(), "k", &value).await;
    }
    alarm(&cluster, "prepare the next file of the log").await;
    assert!(cluster.node_mut(1).runs(), "it lives");
    cluster.node(1).faults().clear();
    no_alarm(&cluster).await;
}

/// However many descriptors are left when a snapshot begins, the node lives, and the snapshot is
/// made once there are more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_number_of_descriptors_ends_a_node() {
    let mut cluster = Plan::new(1).config("checkpoint_log_entries = 5").start().await;
    let client = cluster.client();
    // On the connection that is there.
    let says = async |what: &str, is_so: &dyn Fn(&StatusReply) -> bool| {
        until(what, SOON, async || {
            let status = client.status().await.map_err(|error| error.to_string())?;
            if is_so(&status) { Ok(()) } else { Err(format!("{:?}", status.alarms)) }
        })
        .await;
    };
    for spare in 0..8 {
        let at = client.status().await.expect("it answers").snapshot_index;
        let before = cluster.node(1).spare_files(spare);
        for _ in 0..6 {
            load::write(&client, "k", "v").await;
        }
        let is_begun = |said: &StatusReply| said.snapshot_index > at || !said.alarms.is_empty();
        says("a snapshot, or why there is none", &is_begun).await;
        load::write(&client, "k", "w").await;
        cluster.node(1).allow_files(before);
        let is_made = |said: &StatusReply| said.snapshot_index > at && said.alarms.is_empty();
        says(&format!("a snapshot where {spare} were left"), &is_made).await;
        assert!(cluster.node_mut(1).runs(), "{spare} were left");
    }
}

/// A node whose state differs is parked at once. The mark comes to its disk as soon as a file can
/// be opened for it, and the node lives meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quarantine_is_marked_later() {
    const DIVERGENT: u64 = 3;
    let (right, wrong) = ("the-right-value", "the-wrong-value");
    let mut cluster = Plan::new(3).faulty().start().await;
    load::write(&cluster.client(), "k", right).await;
    let index = cluster.client().snapshot().await.expect("it is taken");
    let node = cluster.node(DIVERGENT);
    let taken = |status: &StatusReply| (status.snapshot_index == index).then_some(());
    node.says("its snapshot is there", SOON, taken).await;
    cluster.node_mut(DIVERGENT).stop().await;
    diverge::replace_in_memory(cluster.node(DIVERGENT), right.as_bytes(), wrong.as_bytes());
    cluster.node_mut(DIVERGENT).start().await;
    cluster.leader().await;
    cluster.level(&cluster.ids(), SOON).await;
    let node = cluster.node(DIVERGENT);
    node.faults().set(&format!("open node-3/temporary- refuse {EMFILE}"));
    cluster.client().snapshot().await.expect("it is taken");
    let parked = |status: &StatusReply| status.parked.contains("quarantined").then_some(());
    node.says("it is parked", SOON, parked).await;
    load::write(&cluster.client(), "k", "w").await;
    let mark = node.data_dir.join("quarantine");
    assert!(!mark.exists());
    node.faults().clear();
    until("the mark to be there", SOON, async || {
        load::write(&cluster.client(), "k", "w").await;
        if mark.exists() { Ok(()) } else { Err("it is not".to_owned()) }
    })
    .await;
    assert!(cluster.node_mut(DIVERGENT).runs());
}
