//! Leaders that are no use: nodes say so, and where a majority is better off another one leads.

use std::time::{Duration, Instant};

use lockstep_client::reason;
use lockstep_proto::v1::StatusReply;
use lockstep_tests::cluster::{Cluster, Plan, SOON};
use lockstep_tests::frozen::FrozenThread;
use lockstep_tests::kv;
use lockstep_tests::load::Load;
use lockstep_tests::wait::until;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// Within this time a leader that is no use has given up leadership.
const GIVEN_UP: Duration = Duration::from_secs(2);

fn alarmed(status: &StatusReply, words: &str) -> Option<()> {
    status.alarms.iter().any(|alarm| alarm.contains(words)).then_some(())
}

/// What is left of a majority that was killed names no leader, says so in an alarm, is not
/// healthy, and refuses commands as NO_LEADER.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_left_names_no_leader() {
    let mut cluster = Plan::new(3).start().await;
    let leader = cluster.leader().await;
    let (second, left) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    cluster.node_mut(leader).kill().await;
    cluster.node_mut(second).kill().await;
    let names_none = |status: &StatusReply| {
        alarmed(status, "no leader has been heard").filter(|()| status.leader_id == 0)
    };
    cluster.node(left).says("no leader is known", SOON, names_none).await;

    let endpoint = Endpoint::from_shared(format!("http://{}", cluster.node(left).client_addr));
    let channel = endpoint.expect("an address is an endpoint").connect().await;
    let mut health = HealthClient::new(channel.expect("it is there"));
    let asked = health.check(HealthCheckRequest::default()).await.expect("it answers");
    assert_eq!(asked.into_inner().status(), ServingStatus::NotServing);
    let client = cluster.node(left).client().with_timeout(Duration::from_secs(1));
    let refused = client.execute(kv::MACHINE, kv::text("SET k v")).await.expect_err("nobody leads");
    assert_eq!(refused.reason, reason::NO_LEADER, "{refused}");

    cluster.node_mut(second).start().await;
    cluster.leader().await;
    let is_led = |status: &StatusReply| {
        let silent = alarmed(status, "no leader has been heard").is_none();
        (silent && status.leader_id != 0).then_some(())
    };
    cluster.node(left).says("a leader is known", SOON, is_led).await;
}

/// A leader whose disk hangs, or is so slow that each sync takes seconds, says so after a second,
/// and has given up leadership after two: writes go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_hangs_gives_up() {
    for delay_ms in [120_000, 3_000] {
        let mut cluster = Plan::new(3).faulty().start().await;
        let mut load = Load::start(&cluster, "hangs", 8);
        load.progress(50, SOON).await;
        let leader = cluster.leader().await;
        let started = Instant::now();
        cluster.node(leader).faults().set(&format!("sync /log/ delay {delay_ms}"));
        another_leads(&cluster, leader).await;
        let taken = started.elapsed();
        assert!(taken < GIVEN_UP, "it took {taken:?} at {delay_ms} ms a sync");
        let says = |status: &StatusReply| alarmed(status, "the disk has not finished a write");
        cluster.node(leader).says("its disk hangs", SOON, says).await;
        load.progress(50, SOON).await;
        cluster.node_mut(leader).kill().await;
        cluster.node(leader).faults().clear();
        cluster.node_mut(leader).start().await;
        let report = load.finish().await;
        report.check(&cluster.client()).await;
        report.check_equal(&cluster, &[1, 2, 3]).await;
    }
}

/// A leader whose guest does not come back from a command that the others have applied says so, and
/// has given up leadership within two seconds: writes go on, and the guest takes up where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_guest_hangs_gives_up() {
    let cluster = Plan::new(3).start().await;
    let mut load = Load::start(&cluster, "stands", 8);
    load.progress(50, SOON).await;
    let leader = cluster.leader().await;
    let started = Instant::now();
    let frozen = FrozenThread::new(cluster.directory(), cluster.node(leader).thread("guest-kv"));
    another_leads(&cluster, leader).await;
    let taken = started.elapsed();
    assert!(taken < GIVEN_UP, "it took {taken:?}");
    let says = |status: &StatusReply| alarmed(status, "the machines have not come back");
    cluster.node(leader).says("its guest hangs", SOON, says).await;
    load.progress(50, SOON).await;
    drop(frozen);
    let report = load.finish().await;
    report.check(&cluster.client()).await;
    report.check_equal(&cluster, &[1, 2, 3]).await;
}

/// A leader that can send but not receive, or the reverse, has given up leadership within two
/// seconds: it falls silent once no majority answers it, or is not heard at all. It says that it
/// leads by name only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_half_cut_off_gives_up() {
    for receives in [false, true] {
        let cluster = Plan::new(3).linked().start().await;
        let mut load = Load::start(&cluster, "half", 8);
        load.progress(50, SOON).await;
        let leader = cluster.leader().await;
        let started = Instant::now();
        for other in cluster.ids().into_iter().filter(|id| *id != leader) {
            let (from, to) = if receives { (leader, other) } else { (other, leader) };
            cluster.cut_one_way(from, to);
        }
        another_leads(&cluster, leader).await;
        let taken = started.elapsed();
        assert!(taken < GIVEN_UP, "it took {taken:?} where the leader receives: {receives}");
        let names_none = |status: &StatusReply| (status.leader_id != leader).then_some(());
        cluster.node(leader).says("it leads no more", SOON, names_none).await;
        load.progress(50, SOON).await;
        cluster.heal();
        let report = load.finish().await;
        report.check(&cluster.client()).await;
        report.check_equal(&cluster, &[1, 2, 3]).await;
    }
}

/// Waits until the nodes beside `old` follow one of them.
async fn another_leads(cluster: &Cluster, old: u64) {
    until("another node to lead", SOON, async || {
        let others = cluster.nodes.iter().filter(|node| node.id != old);
        for node in others {
            let status = node.status().await?;
            if status.leader_id == 0 || status.leader_id == old {
                return Err(lockstep_tests::node::summary(&status));
            }
        }
        Ok(())
    })
    .await;
}
