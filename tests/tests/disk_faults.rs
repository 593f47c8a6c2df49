//! Disks that fail or are slow under running nodes. A node that could not write stops: it
//! acknowledges nothing after, and the others go on. A slow one slows down only itself.

use std::time::{Duration, Instant};

use lockstep_tests::cluster::{Cluster, Plan, SOON};
use lockstep_tests::load::{self, Load};
use lockstep_tests::node::summary;
use lockstep_tests::program;
use lockstep_tests::wait::throughout;

/// Writers of a load.
const WRITERS: u64 = 8;

/// A write or a sync of the log, of a snapshot or of a module fails once with EIO, on the leader or
/// on a follower, under load: that node stops with exit code 1 and the cause in its log, the others
/// go on, a restart recovers it, and nothing acknowledged is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_disk_stops_the_node() {
    let counter = program::guest("counter").display().to_string();
    let snapshot: &[&str] = &["snapshot", "--timeout", "3"];
    let create: &[&str] = &["machine", "create", "counter", &counter, "--timeout", "3"];
    let nothing: &[&str] = &[];
    // What fails, on which file, whether on the leader, and the call that makes the node use it.
    let rows = [
        ("sync", "/log/", true, nothing),
        ("write", "/log/", true, nothing),
        ("sync", "/log/", false, nothing),
        ("write", "/snapshots/", true, snapshot),
        ("sync", "/snapshots/", false, snapshot),
        ("sync", "/modules/", false, create),
    ];
    let mut cluster = Plan::new(3).faulty().start().await;
    let mut load = Load::start(&cluster, "failing", WRITERS);
    for (call, part, on_leader, provoke) in rows {
        load.progress(30, SOON).await;
        let leader = cluster.leader().await;
        let faulty = if on_leader { leader } else { leader % 3 + 1 };
        stops(&mut cluster, faulty, call, part, provoke).await;
        load.progress(30, SOON).await;
        cluster.node_mut(faulty).start().await;
        cluster.leader().await;
    }
    load.progress(30, SOON).await;
    let report = load.finish().await;
    report.check(&cluster.client()).await;
    report.check_equal(&cluster, &[1, 2, 3]).await;
}

/// A vote that cannot be written is not cast: the node stops, and takes part again, with what it
/// held, after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vote_that_cannot_be_written_stops_the_node() {
    let mut cluster = Plan::new(3).faulty().start().await;
    load::write(&cluster.client(), "k", "v").await;
    cluster.level(&[1, 2, 3], SOON).await;
    let leader = cluster.leader().await;
    let [faulty, next] = [leader % 3 + 1, (leader + 1) % 3 + 1];
    // Nobody writes, so what it writes next is its vote for another.
    let to = next.to_string();
    stops(&mut cluster, faulty, "sync", "/log/", &["cluster", "transfer", &to]).await;
    cluster.leader_other_than(faulty).await;
    load::write(&cluster.client(), "k", "w").await;
    cluster.node_mut(faulty).start().await;
    cluster.level(&[1, 2, 3], SOON).await;
}

/// Lets one call of a node on a file fail, and expects that the node ends for that reason.
async fn stops(cluster: &mut Cluster, id: u64, call: &str, part: &str, provoke: &[&str]) {
    let what = format!("node {id} after a failed {call} of {part}");
    let before = cluster.node(id).log_text().len();
    cluster.node(id).faults().fail(call, part);
    // What it comes to is open: the node that should do it may be the one that stops.
    let endpoints = cluster.endpoints();
    let provoke = provoke.iter().copied().chain(["--endpoint", &endpoints]);
    let provoked = async {
        if provoke.clone().count() > 2 {
            program::run(provoke).await;
        }
    };
    let (status, ()) = tokio::join!(cluster.node_mut(id).ends(SOON), provoked);
    assert_eq!(status.code(), Some(1), "{what}: {status}");
    assert!(!cluster.node(id).faults().clear(), "{what}: the fault was never met");
    let said = cluster.node(id).log_text().split_off(before);
    let reason = said.lines().find(|line| line.starts_with("error: the node stops: "));
    let reason = reason.unwrap_or_else(|| panic!("{what}: it ended without a reason: {said}"));
    program::assert_holds(&what, reason, &["Input/output error"]);
}

/// A follower whose syncs take 200 ms keeps up in the end and delays nobody: writes made one after
/// the other take far less than that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_follower_delays_nobody() {
    const WRITES: u32 = 40;
    let sync = Duration::from_millis(200);
    let cluster = Plan::new(3).faulty().start().await;
    let slow = cluster.leader().await % 3 + 1;
    cluster.node(slow).faults().set("sync /log/ delay 200");
    let client = cluster.client();
    let started = Instant::now();
    for number in 0..WRITES {
        load::write(&client, "k", &number.to_string()).await;
    }
    let taken = started.elapsed();
    assert!(taken < sync * WRITES / 2, "{WRITES} writes took {taken:?}");
    cluster.level(&[1, 2, 3], SOON).await;
    assert!(cluster.node(slow).faults().clear(), "it was slow all the time");
}

/// A leader whose syncs are slow, but take less than a second, goes on leading: its heartbeats
/// don't wait for its disk, and a majority without it is enough to commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_leader_goes_on_leading() {
    let cluster = Plan::new(3).faulty().start().await;
    let mut load = Load::start(&cluster, "slow", WRITERS);
    let leader = cluster.leader().await;
    let term = cluster.node(leader).status().await.expect("it answers").term;
    for delay in [200, 800] {
        cluster.node(leader).faults().set(&format!("sync /log/ delay {delay}"));
        leads_throughout(&cluster, leader, term).await;
        load.progress(10, SOON).await;
    }
    cluster.node(leader).faults().clear();
    let report = load.finish().await;
    report.check(&cluster.client()).await;
    report.check_equal(&cluster, &[1, 2, 3]).await;
}

/// A follower that is frozen for several election timeouts rejoins as it goes on, and disturbs
/// nobody: the leader and its term stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_follower_rejoins() {
    let cluster = Plan::new(3).start().await;
    let mut load = Load::start(&cluster, "frozen-follower", WRITERS);
    let leader = cluster.leader().await;
    let term = cluster.node(leader).status().await.expect("it answers").term;
    let frozen = leader % 3 + 1;
    for _ in 0..2 {
        cluster.node(frozen).pause().await;
        leads_throughout(&cluster, leader, term).await;
        load.progress(30, SOON).await;
        cluster.node(frozen).resume();
        leads_throughout(&cluster, leader, term).await;
    }
    let said = cluster.node(frozen).log_text();
    program::assert_holds("the frozen node", &said, &["heartbeats were late", "late_ms="]);
    let report = load.finish().await;
    report.check(&cluster.client()).await;
    report.check_equal(&cluster, &[1, 2, 3]).await;
}

/// Expects that a leader leads in the same term for three of the longest election timeouts.
async fn leads_throughout(cluster: &Cluster, leader: u64, term: u64) {
    throughout("the leader and its term", Duration::from_secs(3), async || {
        let status = cluster.node(leader).status().await?;
        let leads = (status.leader_id, status.term) == (leader, term);
        if leads { Ok(()) } else { Err(summary(&status)) }
    })
    .await;
}
