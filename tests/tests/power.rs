//! Power cuts: the file system under a node is gone at one moment, and with it everything that was
//! not synced. What was acknowledged is there afterwards, and nodes come back by themselves.

use std::time::Duration;

use lockstep_client::Consistency;
use lockstep_tests::cluster::{Plan, SOON};
use lockstep_tests::disk::{self, Cut};
use lockstep_tests::load::{self, Load};
use lockstep_tests::wait::until;

/// Writers of a load.
const WRITERS: u64 = 8;
/// Size of a node's disk, in bytes. The image takes what is used of it.
const DISK_BYTES: u64 = 512 << 20;

/// The power of the leader's disk is cut under load, then that of all disks at once, losing more or
/// less of the file system's journal: every acknowledged write is readable after, on every node,
/// each reply is that of its command, and all nodes rejoin by themselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_is_cut_under_load() {
    if !disk::available() {
        return;
    }
    let plan = Plan::new(3).disks(DISK_BYTES).config("checkpoint_log_entries = 300");
    let mut cluster = plan.start().await;
    let mut load = Load::start(&cluster, "power", WRITERS);
    for cut in [Cut::Nothing, Cut::Journal] {
        load.progress(cluster.random.u64(50..250), SOON).await;
        let leader = cluster.leader().await;
        cluster.cut_power(&[leader], cut).await;
        load.progress(20, SOON).await;
        cluster.node_mut(leader).start().await;
        load.progress(cluster.random.u64(50..250), SOON).await;
        cluster.cut_power(&[1, 2, 3], cut).await;
        cluster.start_all().await;
        cluster.leader().await;
    }
    load.progress(50, SOON).await;
    let report = load.finish().await;
    report.check(&cluster.client()).await;
    report.check_equal(&cluster, &[1, 2, 3]).await;
}

/// A node whose disk goes away, with all that was written, ends by itself with exit code 1, and
/// what it acknowledged is there when the disk is back: with nobody else to get it from.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_disk_ends() {
    if !disk::available() {
        return;
    }
    let mut cluster = Plan::new(1).disks(DISK_BYTES).start().await;
    let mut load = Load::start(&cluster, "lone", WRITERS);
    load.progress(100, SOON).await;
    cluster.disk(1).cut_power(Cut::Everything);
    let status = cluster.node_mut(1).ends(SOON).await;
    assert_eq!(status.code(), Some(1), "{status}");
    cluster.cut_power(&[1], Cut::Everything).await;
    cluster.node_mut(1).start().await;
    load.progress(50, SOON).await;
    load.finish().await.check(&cluster.client()).await;
}

/// The cut is a real one: a disk that reports syncs it has not done loses what was acknowledged.
/// It shows that the tests above can fail, and what operations.md says of such disks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_lies_about_syncs_loses_writes() {
    if !disk::available() {
        return;
    }
    let mut cluster = Plan::new(1).disks(DISK_BYTES).faulty().start().await;
    load::write(&cluster.client(), "k", "synced").await;
    cluster.node(1).faults().set("sync /log/ skip 0");
    load::write(&cluster.client(), "k", "lost").await;
    cluster.cut_power(&[1], Cut::Nothing).await;
    cluster.node(1).faults().clear();
    cluster.node_mut(1).start().await;
    cluster.leader().await;
    let client = cluster.client();
    let value = load::read(&client, "k", Consistency::Linearizable).await;
    assert_eq!(value.as_deref(), Some("synced"), "what was synced is there, and nothing else");
    until("writes to go on", Duration::from_secs(10), async || {
        load::write(&client, "k", "again").await;
        Ok(())
    })
    .await;
}
