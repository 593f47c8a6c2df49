//! A stop hurts nobody: what is under way is answered, what comes after is told to go elsewhere,
//! and the process ends within five seconds whatever hangs.

use std::time::{Duration, Instant};

use lockstep_client::Client;
use lockstep_proto::v1::client_client::ClientClient;
use lockstep_proto::v1::{ExecuteRequest, ExecuteStreamRequest};
use lockstep_tests::cluster::{Cluster, Plan, SOON};
use lockstep_tests::load::{self, Load};
use lockstep_tests::wait::until;
use lockstep_tests::{kv, program};
use rustix::process::Signal;

use crate::undisturbed::costly_module;

/// A node ends so long after it was asked to, whatever hangs.
const STOP_MAX: Duration = Duration::from_secs(5);
/// Writers of a load.
const WRITERS: u64 = 24;

/// The leader and followers of three nodes are stopped under load, one after the other: no write
/// has an unknown outcome, and all goes on in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_leaves_nothing_unknown() {
    let mut cluster = Plan::new(3).start().await;
    let mut load = Load::start(&cluster, "stops", WRITERS);
    for is_leader in [true, false, true, false] {
        load.progress(200, SOON).await;
        let leader = cluster.leader().await;
        let id = if is_leader { leader } else { leader % 3 + 1 };
        cluster.node_mut(id).stop_by(Signal::TERM, STOP_MAX).await;
        load.progress(200, SOON).await;
        cluster.node_mut(id).start().await;
    }
    let report = load.finish().await;
    assert_eq!(report.unknown, 0, "{:?}", report.unknown_because);
    report.check(&cluster.client()).await;
}

/// A lone node that stops under load answers what is under way, and refuses the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_node_answers_what_is_under_way() {
    let mut cluster = Plan::new(1).start().await;
    let mut load = Load::start(&cluster, "lone", WRITERS);
    load.progress(500, SOON).await;
    cluster.node_mut(1).stop_by(Signal::TERM, STOP_MAX).await;
    cluster.node_mut(1).start().await;
    load.progress(100, SOON).await;
    let report = load.finish().await;
    assert_eq!(report.unknown, 0, "{:?}", report.unknown_because);
    report.check(&cluster.client()).await;
}

/// Asks a node to stop, and expects that it ends in time, well or not.
async fn ends_in_time(cluster: &mut Cluster, what: &str) {
    let started = Instant::now();
    cluster.node(1).signal(Signal::TERM);
    cluster.node_mut(1).ends(STOP_MAX + Duration::from_millis(500)).await;
    let took = started.elapsed();
    assert!(took < STOP_MAX, "with {what} it took {took:?}");
}

/// A stop is bounded while a guest loops, for a minute by its fuel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_looping_guest_holds_up_no_stop() {
    let mut cluster = Plan::new(1).start().await;
    let guest = program::guest("hostile").display().to_string();
    let fuel = ["--fuel-per-command", "100000000000"];
    let create = [&["machine", "create", "hostile", &guest], &fuel[..]].concat();
    cluster.run(&create).await.ok();
    let client = cluster.client();
    let spinning = tokio::spawn(async move { client.execute("hostile", "spin").await });
    let under_way = |status: &lockstep_proto::v1::StatusReply| {
        (status.committed_index > status.applied_index).then_some(())
    };
    cluster.node(1).says("the command is under way", SOON, under_way).await;
    ends_in_time(&mut cluster, "a guest that loops").await;
    spinning.await.expect("no panic").expect_err("it was never through");
}

/// A stop is bounded while a client reads none of its many long replies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unread_stream_holds_up_no_stop() {
    let mut cluster = Plan::new(1).start().await;
    load::write(&cluster.client(), "long", &"x".repeat(1 << 19)).await;
    let address = format!("http://{}", cluster.node(1).client_addr);
    let mut service = ClientClient::connect(address).await.expect("it answers");
    let requests = (0..200).map(|id| {
        let command = kv::text("GET long");
        let request = ExecuteRequest { machine: kv::MACHINE.into(), command, session: None };
        ExecuteStreamRequest { id, request: Some(request), timeout_ms: 60_000 }
    });
    let requests = futures::stream::iter(requests);
    let unread = service.execute_stream(requests).await.expect("it begins");
    let applied = |status: &lockstep_proto::v1::StatusReply| {
        (status.applied_index == status.committed_index).then_some(())
    };
    cluster.node(1).says("what was read is applied", SOON, applied).await;
    ends_in_time(&mut cluster, "a stream that nobody reads").await;
    drop(unread);
}

/// A stop is bounded while a module is compiled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compilation_holds_up_no_stop() {
    let mut cluster = Plan::new(1).start().await;
    let client: Client = cluster.client().with_timeout(SOON);
    let before = cluster.node(1).resident_bytes();
    let uploading = tokio::spawn(async move { client.upload_module(costly_module()).await });
    until("the module to be compiled", SOON, async || {
        let now = cluster.node(1).resident_bytes();
        if now > before + (24 << 20) { Ok(()) } else { Err(format!("{now} bytes, not more")) }
    })
    .await;
    ends_in_time(&mut cluster, "a module that is compiled").await;
    uploading.abort();
}

/// A stop is bounded while the disk does not answer a sync of the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_disk_holds_up_no_stop() {
    let mut cluster = Plan::new(1).faulty().start().await;
    cluster.node(1).faults().set("sync /log/ delay 120000");
    let client = cluster.client();
    let writing =
        tokio::spawn(async move { client.execute(kv::MACHINE, kv::text("SET k v")).await });
    let appended = |status: &lockstep_proto::v1::StatusReply| {
        (status.last_log_index > status.committed_index).then_some(())
    };
    cluster.node(1).says("an entry waits for the disk", SOON, appended).await;
    ends_in_time(&mut cluster, "a disk that hangs").await;
    writing.abort();
}

/// A disk that is slow, and does answer, is waited for: the stop is a good one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_disk_is_waited_for() {
    let mut cluster = Plan::new(1).faulty().start().await;
    cluster.node(1).faults().set("sync /log/ delay 1200");
    load::write(&cluster.client(), "k", "v").await;
    cluster.node_mut(1).stop_by(Signal::TERM, STOP_MAX).await;
}
