//! Clients that mean harm, one kind for each thing that others could make a node grow or hold, at
//! full speed beside a client that means none.
//!
//! [`run`] judges what every row must keep: resident memory stays under its bound, all nodes run
//! on, and everything is back soon after. Who leads, and how long the good client had to wait, is
//! told.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream::{self, FuturesUnordered};
use lockstep_client::{Client, Consistency};
use lockstep_proto::peer::peer_client::PeerClient;
use lockstep_proto::peer::{Hello, StandingRequest};
use lockstep_proto::v1::client_client::ClientClient;
use lockstep_proto::v1::{ExecuteRequest, ExecuteStreamRequest, QueryRequest, StatusReply};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

use crate::cluster::{Cluster, Plan, SOON};
use crate::wait::{throughout, until};
use crate::{kv, load, peer, program};

/// What a node may hold beside its guests by default, in bytes (docs/operations.md).
pub const MEMORY_BUDGET_BYTES: u64 = 1 << 30;
/// Memory of a guest, its image and a fork.
const GUEST_COPIES: u64 = 3;
/// Everything is as before so long after an attack.
const BACK_WITHIN: Duration = Duration::from_secs(10);
/// Length of a value that fits a command and a reply.
const LONG: usize = (1 << 20) - 100;
/// Commands of a stream that is not read.
const UNREAD: u64 = 16_384;
/// Time between two commands of a good client.
const PACE: Duration = Duration::from_millis(10);
/// Good clients.
const GOOD: usize = 4;

/// What is done to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// Streams of commands with long replies that nobody reads, on few connections.
    Replies,
    /// The same on many connections, which are dropped and replaced.
    SlowReaders,
    /// Messages that are begun and never ended.
    Partial,
    /// The same at the port for peers.
    PartialPeers,
    /// Queries with long replies whose callers vanish.
    Vanished,
    /// Many callers of `Snapshot`.
    Snapshots,
    /// Many different modules at once.
    Modules,
    /// Connections that say nothing, at both ports.
    Connections,
    /// Names of machines as long as a message can be.
    Names,
    /// Connections that have shown that their replies are short, and ask for long ones then.
    Taught,
    /// Streams that are not of commands, full of short requests, whose replies nobody reads.
    Reflections,
    /// Calls under made-up ids at the port for peers.
    Strangers,
}

/// What a run came to.
#[derive(Clone, Copy, Debug)]
pub struct Verdict {
    /// Commands and queries of the good clients that were answered.
    pub answered: usize,
    /// Those that were not.
    pub failed: usize,
    /// 99 of 100 of them took no longer.
    pub p99: Duration,
    /// The same node led in the same term all the time.
    pub same_leader: bool,
    /// The most that a node held beyond what it held before, guests not counted, in bytes.
    pub grown_max: u64,
}

/// Where a hostile client finds its victims.
#[derive(Clone)]
struct Target {
    leader: String,
    leader_peer: String,
    /// A follower's hello to the leader.
    hello: Hello,
    client: Client,
}

impl Row {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Replies,
        Self::SlowReaders,
        Self::Partial,
        Self::PartialPeers,
        Self::Vanished,
        Self::Snapshots,
        Self::Modules,
        Self::Connections,
        Self::Names,
        Self::Taught,
        Self::Reflections,
        Self::Strangers,
    ];

    async fn attack(self, target: Target) {
        loop {
            match self {
                Self::Replies => unread(&target, 4, 2).await,
                Self::SlowReaders => unread(&target, 20, 10).await,
                Self::Partial => partial(&target.leader, "/lockstep.v1.Client/Execute").await,
                Self::PartialPeers => {
                    partial(&target.leader_peer, "/lockstep.peer.v1.Peer/Append").await;
                }
                Self::Vanished => vanish(&target).await,
                Self::Snapshots => {
                    join_all((0..30).map(|_| target.client.snapshot())).await;
                }
                Self::Modules => {
                    let uploads = (0..60).map(|_| target.client.upload_module(unique_module()));
                    join_all(uploads).await;
                }
                Self::Connections => silent(&target).await,
                Self::Names => names(&target).await,
                Self::Taught => taught(&target).await,
                Self::Reflections => reflections(&target).await,
                Self::Strangers => strangers(&target).await,
            }
            // One that is refused at once would only measure how fast it can be refused.
            tokio::task::yield_now().await;
        }
    }
}

async fn channel(address: &str) -> Option<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    timeout(Duration::from_secs(2), endpoint.connect()).await.ok()?.ok()
}

/// Keeps what it has for a second.
async fn linger() {
    throughout("an attack", Duration::from_secs(1), async || Ok(())).await;
}

/// Asks for long replies on many streams, reads none, and goes away after a second.
async fn unread(target: &Target, connections: usize, streams: usize) {
    let mut kept = Vec::new();
    for _ in 0..connections {
        let Some(channel) = channel(&target.leader).await else { continue };
        for _ in 0..streams {
            let mut service = ClientClient::new(channel.clone());
            let requests = (0..UNREAD).map(|id| {
                let command = kv::text("GET long");
                let request =
                    ExecuteRequest { machine: kv::MACHINE.into(), command, session: None };
                ExecuteStreamRequest { id, request: Some(request), timeout_ms: 60_000 }
            });
            let opened = service.execute_stream(stream::iter(requests));
            kept.push(timeout(Duration::from_secs(1), opened).await);
        }
    }
    linger().await;
}

/// Begins as many of the longest messages as one connection lets it, and ends none.
async fn partial(address: &str, path: &str) {
    static ZEROS: [u8; 1 << 20] = [0; 1 << 20];
    let Ok(tcp) = TcpStream::connect(address).await else { return };
    let Ok((mut send, connection)) = h2::client::handshake(tcp).await else { return };
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let mut kept = Vec::new();
    let begun = async {
        for _ in 0..2_000 {
            let request = http::Request::post(format!("http://{address}{path}"))
                .header("content-type", "application/grpc")
                .header("te", "trailers");
            let request = request.body(()).expect("it is one");
            let Ok(ready) = send.ready().await else { return };
            send = ready;
            let Ok((response, mut body)) = send.send_request(request, false) else { return };
            let prefix = Bytes::from_static(&[0, 0, 0x0f, 0xff, 0xff]);
            let sent = body.send_data(prefix, false);
            let sent = sent.and_then(|()| body.send_data(Bytes::from_static(&ZEROS[1..]), false));
            kept.push((response, body, sent));
        }
    };
    let _ = timeout(Duration::from_secs(3), begun).await;
    linger().await;
}

/// Asks for long answers, and is gone before they come.
async fn vanish(target: &Target) {
    let Some(channel) = channel(&target.leader).await else { return };
    let calls: FuturesUnordered<_> = (0..500)
        .map(|number| {
            let mut service = ClientClient::new(channel.clone());
            let query = kv::text("GET long");
            let request =
                QueryRequest { machine: kv::MACHINE.into(), query, consistency: number % 2 };
            async move { service.query(request).await }
        })
        .collect();
    let _ = timeout(Duration::from_millis(30), calls.collect::<Vec<_>>()).await;
}

/// Opens connections and says nothing.
async fn silent(target: &Target) {
    let dial = |address: &str| {
        let address = address.to_owned();
        async move { timeout(Duration::from_secs(1), TcpStream::connect(address)).await }
    };
    let mut kept = Vec::new();
    for address in [&target.leader, &target.leader_peer] {
        kept.extend(join_all((0..400).map(|_| dial(address))).await);
    }
    linger().await;
}

async fn names(target: &Target) {
    let Some(channel) = channel(&target.leader).await else { return };
    let calls = (0..16).map(|_| {
        let mut service = ClientClient::new(channel.clone());
        let (machine, command) = ("x".repeat(1 << 20), kv::text("GET long"));
        async move { service.execute(ExecuteRequest { machine, command, session: None }).await }
    });
    for refused in join_all(calls).await {
        let refused = refused.expect_err("there can be no such machine");
        assert!(refused.message().len() < 1_000, "{} bytes are echoed", refused.message().len());
    }
}

/// Asks for many short replies, then for as many long ones at once, and takes all of them.
async fn taught(target: &Target) {
    let Some(channel) = channel(&target.leader).await else { return };
    for (command, count) in [(kv::text("GET short"), 1_000), (kv::text("GET long"), 512)] {
        let mut service = ClientClient::new(channel.clone());
        let requests = (0..count).map(move |id| {
            let (machine, command) = (kv::MACHINE.into(), command.clone());
            let request = ExecuteRequest { machine, command, session: None };
            ExecuteStreamRequest { id, request: Some(request), timeout_ms: 60_000 }
        });
        let opened =
            timeout(Duration::from_secs(1), service.execute_stream(stream::iter(requests)));
        let Ok(Ok(replies)) = opened.await else { return };
        let mut replies = replies.into_inner();
        // The node may close the connection meanwhile.
        let taken = async { while let Ok(Some(_)) = replies.message().await {} };
        let _ = timeout(Duration::from_secs(3), taken).await;
    }
}

/// Opens streams of the service that describes the others, sends much on them and reads nothing.
async fn reflections(target: &Target) {
    let mut kept = Vec::new();
    for _ in 0..20 {
        let Some(channel) = channel(&target.leader).await else { continue };
        for _ in 0..50 {
            let mut service = ServerReflectionClient::new(channel.clone());
            let message = MessageRequest::FileContainingSymbol("lockstep.v1.Client".to_owned());
            let request =
                ServerReflectionRequest { host: String::new(), message_request: Some(message) };
            let requests = stream::iter(std::iter::repeat_n(request, 20_000));
            let opened = service.server_reflection_info(requests);
            let Ok(opened) = timeout(Duration::from_millis(100), opened).await else { break };
            kept.push(opened);
        }
    }
    linger().await;
}

/// Says hello under many ids, on many connections, as fast as it is refused.
async fn strangers(target: &Target) {
    let calls = (0..32).map(|_| stranger(target.leader_peer.clone(), target.hello.clone()));
    join_all(calls).await;
}

async fn stranger(address: String, hello: Hello) {
    let Some(channel) = channel(&address).await else { return };
    let mut peer = PeerClient::new(channel);
    for _ in 0..200 {
        let hello = Hello { from_node: fastrand::u64(100..), ..hello.clone() };
        let asked = peer.standing(StandingRequest { hello: Some(hello) });
        let asked = timeout(Duration::from_secs(1), asked).await;
        assert!(!matches!(asked, Ok(Ok(_))), "a stranger is answered");
    }
}

/// The counter, with a section of its own that says nothing.
///
/// # Panics
/// When the guests are not built.
pub fn unique_module() -> Vec<u8> {
    let mut module = std::fs::read(program::guest("counter")).expect("it can be read");
    module.extend_from_slice(&[0, 18, 1, b'n']);
    module.extend_from_slice(&fastrand::u128(..).to_le_bytes());
    module
}

/// Clients that write and read little, and note how long each command and query takes.
struct Good(JoinSet<Vec<(Duration, bool)>>);

impl Good {
    fn start(cluster: &Cluster, end: Instant) -> Self {
        let mut writers = JoinSet::new();
        for number in 0..GOOD {
            let client = cluster.client();
            writers.spawn(async move {
                let (mut taken, mut pace) = (Vec::new(), interval(PACE));
                while Instant::now() < end {
                    pace.tick().await;
                    let (key, started) = (format!("good-{number}"), Instant::now());
                    let line = kv::text(&format!("SET {key} v"));
                    let written = client.execute(kv::MACHINE, line).await.is_ok();
                    taken.push((started.elapsed(), written));
                    let (line, started) = (kv::text(&format!("GET {key}")), Instant::now());
                    let read = client.query(kv::MACHINE, line, Consistency::Linearizable).await;
                    taken.push((started.elapsed(), read.is_ok()));
                }
                taken
            });
        }
        Self(writers)
    }

    async fn finish(self) -> (usize, usize, Duration) {
        let mut taken: Vec<_> = self.0.join_all().await.into_iter().flatten().collect();
        taken.sort_unstable();
        let failed = taken.iter().filter(|(_, answered)| !answered).count();
        let p99 = taken.get(taken.len() * 99 / 100).map_or(Duration::MAX, |(took, _)| *took);
        (taken.len() - failed, failed, p99)
    }
}

/// Threads of the attackers' own: the good clients wait for the cluster, not for them.
fn attackers() -> Runtime {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(1).enable_all().build().expect("a thread can be started")
}

/// What a node holds, and what of it is its guests'.
fn held(cluster: &Cluster, status: &StatusReply) -> (u64, u64) {
    let guests = status.machines.iter().map(|machine| machine.memory_bytes).sum();
    (cluster.node(status.node_id).resident_bytes(), guests)
}

/// Attacks a cluster of three for so long.
///
/// # Panics
/// When a bound is broken, a node has ended, or not everything is back in time.
pub async fn run(row: Row, duration: Duration) -> Verdict {
    let mut cluster = Plan::new(3).start().await;
    load::write(&cluster.client(), "long", &"x".repeat(LONG)).await;
    load::write(&cluster.client(), "short", "x").await;
    cluster.level(&cluster.ids(), SOON).await;
    let leader = cluster.leader().await;
    let before = cluster.statuses().await;
    let at_first: Vec<_> = before.iter().map(|status| held(&cluster, status)).collect();
    let good = Good::start(&cluster, Instant::now() + duration);
    let victim = cluster.node(leader);
    let (address, leader_peer) = (victim.client_addr.clone(), victim.peer_addr.clone());
    let (_, hello) = peer::claim(&cluster, leader % 3 + 1, leader).await;
    let attackers = attackers();
    let client = {
        let _theirs = attackers.enter();
        cluster.client()
    };
    let target = Target { leader: address, leader_peer, hello, client };
    let attack = attackers.spawn(row.attack(target));
    let (mut grown_max, mut guests_max) = (0, 0);
    throughout("the attack", duration, async || {
        assert!(!attack.is_finished(), "the attack has ended");
        for (first, was) in at_first.iter().zip(&before) {
            let now = cluster.node(was.node_id).resident_bytes();
            grown_max = grown_max.max(now.saturating_sub(first.0));
        }
        // A guest that grows says so once its call has ended; it never shrinks.
        let guests = cluster.node(leader).status().await.map_or(0, |s| held(&cluster, &s).1);
        guests_max = guests_max.max(guests);
        Ok(())
    })
    .await;
    attack.abort();
    attackers.shutdown_background();
    until("everything to be back", BACK_WITHIN, async || {
        let client = cluster.client().with_timeout(Duration::from_secs(2));
        let said = |error: lockstep_client::Error| error.to_string();
        client.execute(kv::MACHINE, kv::text("SET back v")).await.map_err(said)?;
        let asked = client.query(kv::MACHINE, kv::text("GET back"), Consistency::Linearizable);
        asked.await.map(drop).map_err(said)
    })
    .await;
    let now = cluster.statuses().await;
    let guests = now.iter().map(|status| held(&cluster, status).1).fold(guests_max, u64::max);
    let bound = MEMORY_BUDGET_BYTES + GUEST_COPIES * guests;
    assert!(grown_max <= bound, "{row:?}: a node grew by {grown_max} bytes, not {bound}");
    let (answered, failed, p99) = good.finish().await;
    let led = |status: &StatusReply| (status.node_id, status.term, status.leader_id);
    let same_leader = before.iter().map(led).eq(now.iter().map(led));
    for id in cluster.ids() {
        assert!(cluster.node_mut(id).runs(), "node {id} runs on");
    }
    Verdict { answered, failed, p99, same_leader, grown_max }
}
