//! Callers of the peer port that are no nodes: one under a made-up id, and one that calls in the
//! name of a member, whose id and disk everybody can read in its status. And a node that lies when
//! it is to be added.

use std::path::PathBuf;

use bytes::{BufMut as _, Bytes, BytesMut};
use lockstep_host::machine::{CheckpointReport, Proposal};
use lockstep_host::types::{NodeId, StateDigest};
use lockstep_proto::peer::peer_client::PeerClient;
use lockstep_proto::peer::{
    AppendRequest, Hello, KnownLog, LastEntry, ProposeRequest, SnapshotOffsetRequest,
    StandingRequest, TransferLeaderRequest, VoteRequest,
};
use lockstep_proto::v1::StatusReply;
use lockstep_tests::cluster::{Cluster, Plan, SOON};
use lockstep_tests::wait::until;
use lockstep_tests::{load, peer};
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::hostility::equal_digests;

/// More elections than a cluster can have had.
const TERM_JUMP: u64 = (1 << 24) + 1_000;
/// The last term that there is.
const LAST_TERM: u64 = (1 << 62) - 1;

type Peer = PeerClient<Channel>;

/// Makes every call that brings a vote of this term in the name of node `from`.
async fn call_all(
    peer: &mut Peer,
    hello: &Hello,
    (term, from, to): (u64, u64, u64),
) -> Vec<Result<(), Status>> {
    let said = || Some(hello.clone());
    let (candidate, leader) = (peer::vote(term, from, false), peer::vote(term, from, true));
    let ask = |pre_vote| {
        let payload = peer::payload(&[&candidate, &[0], &[0]]);
        VoteRequest { hello: said(), payload, pre_vote }
    };
    let mut ended = Vec::new();
    for pre_vote in [true, false] {
        ended.push(peer.vote(ask(pre_vote)).await.map(drop));
    }
    // No entry before, none committed, no runs.
    let head = peer::payload(&[&leader, &[0], &[0], &[0; 4]]);
    let append = AppendRequest { hello: said(), head, entries: Vec::new() };
    ended.push(peer.append_one(append.clone()).await.map(drop));
    let first = AppendRequest { head: Bytes::new(), ..append.clone() };
    let later = AppendRequest { hello: None, ..append };
    ended.push(match peer.append(futures::stream::iter([first, later])).await {
        Ok(replies) => replies.into_inner().message().await.map(drop),
        Err(refused) => Err(refused),
    });
    let payload = peer::payload(&[&leader, &to.to_le_bytes(), &[0]]);
    let transfer = TransferLeaderRequest { hello: said(), payload };
    ended.push(peer.transfer_leader(transfer).await.map(drop));
    ended
}

/// What nobody may propose, and what node `from` may not.
fn proposals(from: u64) -> Vec<Bytes> {
    let report = |node| CheckpointReport { index: 1, node, digest: StateDigest([9; 32]) };
    let other = NodeId(from % 3 + 1);
    vec![
        Proposal::Tick { time_ms: u64::MAX }.encode(),
        Proposal::RemoveMachine { machine: lockstep_host::types::MachineId(1) }.encode(),
        Proposal::CheckpointReport(report(other)).encode(),
        Proposal::CheckpointReport(report(NodeId(77))).encode(),
        peer::entry(250),
        Bytes::from_static(b"no entry at all"),
        Bytes::from(vec![0; 60 << 10]),
    ]
}

fn propose(hello: &Hello, entry: Bytes) -> ProposeRequest {
    ProposeRequest { hello: Some(hello.clone()), entry }
}

fn refused(ended: Result<(), Status>, codes: &[Code], parts: &[&str]) {
    let status = ended.expect_err("it is refused");
    assert!(codes.contains(&status.code()), "{status}");
    assert!(parts.iter().all(|part| status.message().contains(part)), "{parts:?}: {status}");
}

/// A snapshot of another cluster, with a state of its own and a later log.
async fn foreign_snapshot() -> (Cluster, PathBuf) {
    let cluster = Plan::new(1).start().await;
    load::fill(&cluster.client(), "foreign", 500).await;
    cluster.run(&["snapshot"]).await.ok();
    let folder = cluster.node(1).data_dir.join("snapshots");
    let files = std::fs::read_dir(folder).expect("it can be listed");
    let mut files: Vec<_> = files.map(|file| file.expect("it can be listed").path()).collect();
    files.sort();
    let newest = files.pop().expect("it has a snapshot");
    (cluster, newest)
}

/// A caller under a made-up id is refused whatever it calls.
async fn stranger(cluster: &Cluster, to: u64) {
    let (mut peer, hello) = peer::claim(cluster, to % 3 + 1, to).await;
    let hello = Hello { from_node: 77, from_incarnation: vec![7; 16].into(), ..hello };
    let mut ended = call_all(&mut peer, &hello, (LAST_TERM, 77, to)).await;
    ended.extend(call_all(&mut peer, &hello, (1, 77, to)).await);
    // A connection that is refused often is closed.
    let (mut peer, _) = peer::claim(cluster, to % 3 + 1, to).await;
    let said = Some(hello.clone());
    ended.push(peer.standing(StandingRequest { hello: said.clone() }).await.map(drop));
    let snapshot = Bytes::from_static(b"any");
    let offset = SnapshotOffsetRequest { hello: said, snapshot };
    ended.push(peer.snapshot_offset(offset).await.map(drop));
    for entry in proposals(77) {
        ended.push(peer.propose(propose(&hello, entry)).await.map(drop));
    }
    for ended in ended {
        refused(ended, &[Code::FailedPrecondition], &["node 77 is no member"]);
    }
}

/// A caller in the name of a member: what a node cannot have sent is refused, and so is what would
/// end another node's part in the cluster.
async fn impostor(cluster: &Cluster, (from, to): (u64, u64), foreign: &std::path::Path) {
    let (mut peer, hello) = peer::claim(cluster, from, to).await;
    let term = cluster.node(to).status().await.expect("it answers").term;
    for jump in [term + TERM_JUMP, LAST_TERM] {
        for ended in call_all(&mut peer, &hello, (jump, from, to)).await {
            refused(ended, &[Code::FailedPrecondition], &["calls with term"]);
        }
    }
    let (mut peer, _) = peer::claim(cluster, from, to).await;
    for entry in proposals(from) {
        let ended = peer.propose(propose(&hello, entry)).await.map(drop);
        refused(ended, &[Code::InvalidArgument], &[]);
    }
    // A vote in yet another name, bytes that are no payload, a field too few.
    let other = peer::payload(&[&peer::vote(term + 1, 77, false), &[0], &[0]]);
    for payload in [other, Bytes::from_static(b"nonsense"), peer::payload(&[&[0]])] {
        let request = VoteRequest { hello: Some(hello.clone()), payload, pre_vote: false };
        refused(peer.vote(request).await.map(drop), &[Code::InvalidArgument], &[]);
    }
    let (mut peer, _) = peer::claim(cluster, from, to).await;
    let last = Some(LastEntry { term: LAST_TERM, node: from, index: 1 << 40 });
    let known = Some(KnownLog { term: LAST_TERM, last });
    let claims = Hello { known, ..hello.clone() };
    for ended in call_all(&mut peer, &claims, (term, from, to)).await {
        let codes = [Code::FailedPrecondition, Code::Internal];
        refused(ended, &codes, &[&format!("node {from}")]);
    }
    let leader = peer::vote(term + 1, from, true);
    let parts = peer::transfer(hello, &leader, foreign);
    let sent = peer.install_snapshot(futures::stream::iter(parts)).await;
    refused(sent.map(drop), &[Code::FailedPrecondition], &["what the cluster agreed on"]);
}

/// After all of it the same node leads in the same term, states are equal, the alarms say what was
/// tried and no node is out, and every node's writes go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_node_changes_nothing() {
    let (_other, foreign) = foreign_snapshot().await;
    let mut cluster = Plan::new(3).start().await;
    load::write(&cluster.client(), "k", "v").await;
    cluster.run(&["snapshot"]).await.ok();
    cluster.level(&cluster.ids(), SOON).await;
    let leader = cluster.leader().await;
    let standing = |status: StatusReply| (status.node_id, status.term, status.leader_id);
    let before: Vec<_> = cluster.statuses().await.into_iter().map(standing).collect();
    for to in cluster.ids() {
        stranger(&cluster, to).await;
        // In the name of a follower: the leader itself could say more of what it wants.
        let from = cluster.ids().into_iter().find(|id| *id != to && *id != leader);
        impostor(&cluster, (from.expect("there are three"), to), &foreign).await;
    }
    let now = cluster.statuses().await;
    for status in &now {
        let (node, alarms) = (status.node_id, status.alarms.join("\n"));
        assert!(!alarms.contains("out of the cluster"), "node {node}: {alarms}");
        assert!(alarms.contains("node 77 is refused"), "node {node}: {alarms}");
    }
    let now: Vec<_> = now.into_iter().map(standing).collect();
    assert_eq!(before, now);
    for id in cluster.ids() {
        let forwarded = cluster.node(id).client();
        load::write(&forwarded, "by", &id.to_string()).await;
    }
    equal_digests(&cluster).await;
    for id in cluster.ids() {
        assert!(cluster.node_mut(id).runs(), "node {id} runs on");
    }
}

/// A node that is removed brings nothing by a stream that it opened as a member.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_a_removed_node_brings_nothing() {
    let mut cluster = Plan::new(3).start().await;
    let id = cluster.start_another().await;
    cluster.add(id, &["--learner"]).await.ok();
    cluster.level(&cluster.ids(), SOON).await;
    let leader = cluster.leader().await;
    let mut streams = Vec::new();
    for to in [leader, leader % 3 + 1] {
        let (mut peer, hello) = peer::claim(&cluster, id, to).await;
        let (requests, body) = tokio::sync::mpsc::channel(4);
        let first = AppendRequest { hello: Some(hello), ..AppendRequest::default() };
        requests.send(first).await.expect("the stream is open");
        let body = futures::stream::unfold(body, async |mut body| Some((body.recv().await?, body)));
        let replies = peer.append(Box::pin(body)).await.expect("a member opens a stream");
        streams.push((to, requests, replies.into_inner()));
    }
    cluster.run(&["cluster", "remove", &id.to_string()]).await.ok();
    // A node refuses who was removed once it has applied that, not when its log has it.
    cluster.level(&[1, 2, 3], SOON).await;
    for (to, requests, mut replies) in streams {
        until("the node to know", SOON, async || {
            let nodes = cluster.node(to).status().await?.nodes;
            let is_member = nodes.iter().any(|node| node.node_id == id);
            if is_member { Err("it is a member".to_owned()) } else { Ok(()) }
        })
        .await;
        let term = cluster.node(to).status().await.expect("it answers").term;
        let head = peer::payload(&[&peer::vote(term + 1, id, true), &[0], &[0], &[0; 4]]);
        let late = AppendRequest { hello: None, head, entries: Vec::new() };
        requests.send(late).await.expect("the stream is open");
        let ended = replies.message().await.map(drop);
        refused(ended, &[Code::FailedPrecondition], &["was removed from this cluster"]);
    }
    load::write(&cluster.client(), "k", "v").await;
}

/// Answers every call with this status, and nothing else.
async fn liar(status: StatusReply) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("it has one").to_string();
    let mut message = BytesMut::from(&[0][..]);
    message.put_u32(u32::try_from(status.encoded_len()).expect("it is short"));
    status.encode(&mut message).expect("a buffer grows");
    let message = message.freeze();
    let mut server = JoinSet::new();
    server.spawn(async move {
        loop {
            let Ok((tcp, _)) = listener.accept().await else { return };
            let Ok(mut connection) = h2::server::handshake(tcp).await else { continue };
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let head = http::Response::builder().header("content-type", "application/grpc");
                let head = head.body(()).expect("it is one");
                let Ok(mut body) = respond.send_response(head, false) else { continue };
                let trailers = [("grpc-status", "0")].map(|(name, value)| {
                    (name.parse().expect("a name"), value.parse().expect("a value"))
                });
                // Whoever hangs up has seen enough.
                let _ = body.send_data(message.clone(), false);
                let _ = body.send_trailers(trailers.into_iter().collect());
            }
        }
    });
    (address, server)
}

/// A node that is to be added and lies about itself: none of it comes into the membership, and
/// writes go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lying_node_is_not_added() {
    let cluster = Plan::new(3).start().await;
    let honest = cluster.node(1).status().await.expect("it answers");
    let honest = StatusReply {
        node_id: 4,
        cluster_id: Bytes::new(),
        incarnation: vec![4; 16].into(),
        peer_addr: "127.0.0.1:9".to_owned(),
        client_addr: "127.0.0.1:9".to_owned(),
        engine_profile: honest.engine_profile,
        ..StatusReply::default()
    };
    let at = |peer_addr: &str| StatusReply { peer_addr: peer_addr.to_owned(), ..honest.clone() };
    let known_as = |node_id| StatusReply { node_id, ..honest.clone() };
    let rows = [
        (at(&format!("{}:9", "x".repeat(1_100_000))), "an address has"),
        (at("127.0.0.1:9\u{1b}[2J"), "no control characters"),
        (at("nowhere"), "host:port"),
        (at(""), "host:port"),
        (StatusReply { client_addr: "a b:1".to_owned(), ..honest.clone() }, "no spaces"),
        (known_as(0), "says that it is node 0"),
        (known_as(u64::MAX), "says that it is node 18446744073709551615"),
        (StatusReply { incarnation: vec![1; 5].into(), ..honest.clone() }, "which disk"),
    ];
    for (status, said) in rows {
        let (address, _server) = liar(status).await;
        let refused = cluster.run(&["cluster", "add", &address]).await.refused(&[said]);
        assert!(refused.len() < 2_000, "{} bytes", refused.len());
        assert!(!refused.contains('\u{1b}'), "{refused:?}");
        load::write(&cluster.client(), "k", "v").await;
    }
    for status in cluster.statuses().await {
        assert_eq!(status.nodes.len(), 3, "{:?}", status.nodes);
    }
}
