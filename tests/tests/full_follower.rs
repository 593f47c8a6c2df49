//! A follower whose disk is nearly full pushes back: it refuses what the leader sends, and lives.

use std::time::Duration;

use lockstep_tests::cluster::{Cluster, Plan, SOON};
use lockstep_tests::disk;
use lockstep_tests::load::{self, Load};

/// Writers of a load.
const WRITERS: u64 = 8;
/// Size of a node's disk, in bytes.
const DISK_BYTES: u64 = 128 << 20;
/// The reserve, in bytes. Clients are refused below it, the leader below half of it.
const RESERVE_BYTES: u64 = 32 << 20;

/// A follower below its reserve goes on as a follower, with an alarm of its own; below half of it
/// it refuses entries, so the leader sees it lag and names it in an alarm, and the others go on. It
/// neither crashes nor calls an election, and with room again it catches up by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_with_a_full_disk_pushes_back() {
    if !disk::available() {
        return;
    }
    let plan = Plan::new(3).disks(DISK_BYTES).config("log_segment_bytes = 1048576");
    let plan = plan.config(&format!("disk_reserve_bytes = {RESERVE_BYTES}"));
    let mut cluster = plan.start().await;
    let mut load = Load::start(&cluster, "full", WRITERS);
    load.progress(50, SOON).await;
    let leader = cluster.leader().await;
    let full = leader % 3 + 1;
    let term = cluster.node(leader).status().await.expect("it answers").term;

    leave_free(&cluster, full, RESERVE_BYTES * 3 / 4);
    alarms(&cluster, full, "the disk is nearly full").await;
    load.progress(50, SOON).await;
    let index = load::write(&cluster.client(), "k", "low").await;
    let follows = |status: &lockstep_proto::v1::StatusReply| status.applied_index >= index;
    let follows = |status: &_| follows(status).then_some(());
    cluster.node(full).says("it takes entries", SOON, follows).await;

    leave_free(&cluster, full, RESERVE_BYTES / 4);
    let named = format!("node {full} falls behind: its disk is nearly full");
    alarms(&cluster, leader, &named).await;
    let stuck = cluster.node(full).status().await.expect("it answers").last_log_index;
    load.progress(200, SOON).await;
    cluster.run(&["snapshot"]).await.ok();
    load.progress(50, SOON).await;
    assert!(cluster.node_mut(full).runs(), "it lives");
    let status = cluster.node(full).status().await.expect("it answers");
    assert_eq!(status.last_log_index, stuck, "it takes no entries");
    let status = cluster.node(leader).status().await.expect("it answers");
    assert_eq!((status.leader_id, status.term), (leader, term), "nobody was disturbed");

    std::fs::remove_file(hog(&cluster, full)).expect("the file can be removed");
    let report = load.finish().await;
    report.check(&cluster.client()).await;
    report.check_equal(&cluster, &[1, 2, 3]).await;
    let quiet = |status: &lockstep_proto::v1::StatusReply| status.alarms.is_empty().then_some(());
    for id in [leader, full] {
        cluster.node(id).says("there is no alarm", SOON, quiet).await;
    }
}

/// Waits for an alarm of a node.
async fn alarms(cluster: &Cluster, id: u64, text: &str) {
    let limit = Duration::from_secs(10);
    let what = format!("{text:?} is an alarm");
    let raised = cluster.node(id).says(&what, limit, |status| {
        status.alarms.iter().any(|alarm| alarm.contains(text)).then_some(())
    });
    raised.await;
}

fn hog(cluster: &Cluster, id: u64) -> std::path::PathBuf {
    cluster.disk(id).folder().join("hog")
}

/// Has another file take all but so many bytes of a node's disk.
fn leave_free(cluster: &Cluster, id: u64, bytes: u64) {
    let file = std::fs::File::options().create(true).append(true).open(hog(cluster, id));
    let file = file.expect("the file can be made");
    let disk = rustix::fs::statvfs(cluster.disk(id).folder()).expect("the disk can be asked");
    let more = disk.f_bavail * disk.f_frsize - bytes;
    let length = file.metadata().expect("an open file has a length").len();
    let flags = rustix::fs::FallocateFlags::empty();
    rustix::fs::fallocate(&file, flags, length, more).expect("the disk reserves room");
}
