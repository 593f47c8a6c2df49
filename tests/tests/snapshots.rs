//! Snapshots that rot under a running node, lie under another's name, or are damaged when a node
//! starts; and checkpoints by time.

use std::time::Duration;

use lockstep_client::Consistency;
use lockstep_proto::v1::StatusReply;
use lockstep_tests::cluster::{Cluster, Plan, SOON};
use lockstep_tests::wait::throughout;
use lockstep_tests::{files, load};

async fn alarm(cluster: &Cluster, id: u64, parts: &[&str]) {
    let raised = |status: &StatusReply| {
        let mut alarms = status.alarms.iter();
        alarms.any(|alarm| parts.iter().all(|part| alarm.contains(part))).then_some(())
    };
    cluster.node(id).says(&format!("{parts:?} is an alarm"), SOON, raised).await;
}

/// A lone node with two snapshots, and entries after each.
async fn with_snapshots(config: &str) -> Cluster {
    let cluster = Plan::new(1).config(config).start().await;
    for _ in 0..3 {
        load::fill(&cluster.client(), "key", 100).await;
        cluster.run(&["snapshot"]).await.ok();
    }
    load::fill(&cluster.client(), "key", 100).await;
    cluster
}

fn snapshots(cluster: &Cluster) -> Vec<std::path::PathBuf> {
    files::list(&cluster.node(1).data_dir.join("snapshots"))
}

fn name(file: &std::path::Path) -> String {
    file.file_name().expect("a file has a name").to_string_lossy().into_owned()
}

/// The newest snapshot rots under a running leader, and a new node joins: it is sent the older one,
/// and never the damaged one. The leader's alarm names file and offset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_rots_is_not_sent() {
    let mut cluster = with_snapshots("").await;
    let newest = snapshots(&cluster).pop().expect("there are snapshots");
    files::flip_bit(&newest, files::length(&newest) / 2);
    let id = cluster.prepare_another().await;
    cluster.node_mut(id).start().await;
    cluster.add(id, &[]).await.ok();
    cluster.level(&[1, id], SOON).await;
    alarm(&cluster, 1, &[&name(&newest), "is damaged at byte", "an older one"]).await;
    let client = cluster.node(id).client();
    assert_eq!(load::count(&client, "key", 100, Consistency::Stale).await, 100);
    let log = cluster.node(1).log_text();
    let sent = log.lines().filter(|line| line.contains("sending a snapshot")).count();
    assert!(sent < 5, "it is sent {sent} times");
}

/// Old snapshots are checked while a node runs: one that rots, one that is gone, and one in whose
/// place another lies are alarms. A node starts with a damaged old one, and says that removing it
/// is enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_are_checked_in_the_background() {
    let mut cluster = with_snapshots("snapshot_check_interval_s = 1").await;
    let all = snapshots(&cluster);
    let (older, newest) = (&all[all.len() - 2], &all[all.len() - 1]);
    files::flip_bit(older, files::length(older) / 2);
    let enough = format!("removing {} is enough", older.display());
    alarm(&cluster, 1, &[&name(older), "is damaged at byte", &enough]).await;
    std::fs::copy(newest, older).expect("a file can be copied");
    cluster.node_mut(1).stop().await;
    cluster.node_mut(1).start().await;
    cluster.leader().await;
    alarm(&cluster, 1, &[&name(older), "under another name", &enough]).await;
    std::fs::remove_file(newest).expect("a file can be removed");
    alarm(&cluster, 1, &[&name(newest), "the file is gone"]).await;
}

/// A snapshot under a later one's name is refused at a start, with the name that it should have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_under_another_name_is_refused() {
    let mut cluster = with_snapshots("").await;
    cluster.node_mut(1).stop().await;
    let newest = snapshots(&cluster).pop().expect("there are snapshots");
    let other = newest.with_file_name("00000000000000999999-1-1.snapshot");
    std::fs::copy(&newest, &other).expect("a file can be copied");
    let own = name(&newest);
    let parts =
        [&*name(&other), "it is the snapshot", &own, "under another name", "Repair: remove"];
    cluster.node_mut(1).refuses_to_start(&parts).await;
    std::fs::remove_file(other).expect("a file can be removed");
    cluster.node_mut(1).start().await;
}

/// A checkpoint is taken by time, when anything has changed, and no other while nothing does. Its
/// age is shown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_is_taken_by_time() {
    let cluster = Plan::new(1).config("checkpoint_interval_s = 1").start().await;
    let index = load::write(&cluster.client(), "k", "v").await;
    let taken = |status: &StatusReply| {
        (status.snapshot_index > index && status.snapshot_age_s.is_some())
            .then_some(status.snapshot_index)
    };
    let taken = cluster.node(1).says("a checkpoint was taken", SOON, taken).await;
    throughout("no other is taken", Duration::from_secs(4), async || {
        let status = cluster.node(1).status().await?;
        let is_same = status.snapshot_index == taken;
        if is_same { Ok(()) } else { Err(format!("now {}", status.snapshot_index)) }
    })
    .await;
    load::write(&cluster.client(), "k", "w").await;
    let again = |status: &StatusReply| (status.snapshot_index > taken).then_some(());
    cluster.node(1).says("another was taken", SOON, again).await;
}
