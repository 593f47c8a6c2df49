//! Transfers of snapshots: whole, cut, resumed, refused.

use std::sync::Arc;

use lockstep_proto::peer;
use lockstep_proto::peer::install_snapshot_request::{Chunk, Header, Part};
use lockstep_proto::peer::peer_client::PeerClient;
use openraft::RaftNetworkFactory as _;
use openraft::errors::{ReplicationClosed, StreamingError};
use openraft::network::{RPCOption, RaftNetworkV2 as _};
use openraft::type_config::alias::SnapshotOf;
use tonic::Code;
use tonic::transport::Channel;

use super::node::{CLUSTER, DEADLINE, Node, local, member};
use crate::machine::snapshot::content::Piece;
use crate::machine::{CheckpointRecord, ContentDigest, Directory, View};
use crate::raft::network::{Network, payload};
use crate::raft::store::convert::{log_id_to_raft, membership_to_raft, vote_to_raft};
use crate::raft::store::snapshots::chunks::CHUNK_BYTES;
use crate::raft::store::snapshots::content::digest_of;
use crate::raft::type_config::{RaftSnapshotMeta, RaftStoredMembership, TypeConfig};
use crate::storage::snapshot::{Snapshot, SnapshotDir};
use crate::types::{LogId, Membership, NodeId, StateDigest, Vote};

/// The whole chunks of the files below; the rest is a part of another.
const CHUNKS: usize = 4;

/// A snapshot of node 1, the leader in term 1, up to `index`, that no compressor makes smaller.
pub(super) fn build(dir: &SnapshotDir, index: u64) -> SnapshotOf<TypeConfig, Snapshot> {
    let last = LogId { term: 1, node: NodeId(1), index };
    let mut writer = dir.begin(Some(last), b"meta").unwrap();
    let mut digest = ContentDigest::default();
    digest.add(&Piece::Begin(1));
    writer.section(1).unwrap();
    let mut random = index;
    for _ in 0..CHUNKS {
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            random.to_be_bytes()[0]
        })
        .take(CHUNK_BYTES)
        .collect();
        writer.chunk(&noise).unwrap();
        digest.add(&Piece::Chunk(noise));
    }
    writer.section(128).unwrap();
    writer.chunk(&digest.finish().0).unwrap();
    let snapshot = writer.finish().unwrap();
    let members = [1, 2].map(|id| (NodeId(id), member(id, "127.0.0.1:9".parse().unwrap())));
    let membership = Membership {
        voters: vec![[NodeId(1), NodeId(2)].into()],
        members: members.into_iter().collect(),
    };
    let stored = LogId { index: 1, ..last };
    let meta = RaftSnapshotMeta {
        last_log_id: Some(log_id_to_raft(last)),
        last_membership: RaftStoredMembership::new(
            Some(log_id_to_raft(stored)),
            membership_to_raft(membership).unwrap(),
        ),
    };
    SnapshotOf::<TypeConfig, Snapshot> { meta, snapshot }
}

fn bytes(snapshot: &Snapshot) -> Vec<u8> {
    snapshot.raw_chunk(0, usize::MAX).unwrap().into()
}

pub(super) fn leader_vote() -> crate::raft::type_config::RaftVote {
    vote_to_raft(Vote { term: 1, node: NodeId(1), committed: true })
}

fn hello(to: &Node) -> Option<peer::Hello> {
    let (caller, _) = local(1, Some(CLUSTER));
    caller.hello(NodeId(2), &member(2, to.address))
}

async fn connect(node: &Node) -> PeerClient<Channel> {
    PeerClient::connect(format!("http://{}", node.address)).await.unwrap()
}

fn header(node: &Node, snapshot: &SnapshotOf<TypeConfig, Snapshot>, offset: u64) -> Part {
    header_in(1, node, snapshot, offset)
}

/// The header that node 1 sends as the leader in a term.
fn header_in(
    term: u64,
    node: &Node,
    snapshot: &SnapshotOf<TypeConfig, Snapshot>,
    offset: u64,
) -> Part {
    let vote = vote_to_raft(Vote { term, node: NodeId(1), committed: true });
    let id = *snapshot.snapshot.id();
    let head = payload::SnapshotHead { vote, id, meta: snapshot.meta.clone() };
    let head = payload::encode_snapshot_head(&head);
    Part::Header(Header { hello: hello(node), head, offset })
}

fn chunk(data: &[u8]) -> Part {
    Part::Chunk(Chunk { crc32c: crc32c::crc32c(data), data: data.to_vec().into() })
}

async fn send_parts(
    node: &Node,
    parts: Vec<Part>,
) -> Result<peer::InstallSnapshotReply, tonic::Status> {
    let requests = parts.into_iter().map(|part| peer::InstallSnapshotRequest { part: Some(part) });
    let requests: Vec<_> = requests.collect();
    let reply = connect(node).await.install_snapshot(futures::stream::iter(requests)).await;
    reply.map(tonic::Response::into_inner)
}

async fn offset(node: &Node, snapshot: &Snapshot) -> u64 {
    let snapshot = payload::encode_snapshot_id(snapshot.id());
    let request = peer::SnapshotOffsetRequest { hello: hello(node), snapshot };
    connect(node).await.snapshot_offset(request).await.unwrap().into_inner().offset
}

/// What is sent by the client as openraft drives it.
async fn send(node: &Node, snapshot: SnapshotOf<TypeConfig, Snapshot>) {
    let (caller, _) = local(1, Some(CLUSTER));
    let mut network = Network::new(caller, &Default::default());
    let mut client = network.new_snapshot_client(NodeId(2), &member(2, node.address)).await;
    let never = std::future::pending();
    let option = RPCOption::new(DEADLINE);
    let response = client.full_snapshot(leader_vote(), snapshot, never, option).await.unwrap();
    assert_eq!(response.vote, leader_vote());
}

/// Wherever a transfer is cut, the next one goes on there, and what is installed in the end is
/// the file, byte for byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_resumes_after_a_cut_at_each_chunk() {
    let folder = tempfile::tempdir().unwrap();
    let leader = SnapshotDir::open(folder.path()).unwrap();
    let node = Node::start(2, Some(CLUSTER)).await;
    for cut in 0..=CHUNKS {
        let index = 100 + u64::try_from(cut).unwrap();
        let snapshot = build(&leader, index);
        let file = bytes(&snapshot.snapshot);
        assert!(file.len() > CHUNKS * CHUNK_BYTES);
        let mut parts = vec![header(&node, &snapshot, 0)];
        parts.extend(file.chunks(CHUNK_BYTES).take(cut).map(chunk));
        let error = send_parts(&node, parts).await.unwrap_err();
        assert!(error.message().contains("ends early"), "{error}");
        let arrived = u64::try_from(cut * CHUNK_BYTES).unwrap();
        assert_eq!(offset(&node, &snapshot.snapshot).await, arrived);

        let meta = snapshot.meta.clone();
        send(&node, snapshot.clone()).await;
        node.wait_applied(index).await;
        let installed = node.machine.locked().installed.clone().unwrap();
        assert_eq!(installed.0, meta);
        assert_eq!(bytes(&installed.1), file);
        // Sent again, as after a lost reply, it is there already.
        assert_eq!(offset(&node, &snapshot.snapshot).await, snapshot.snapshot.id().length);
        send(&node, snapshot).await;
    }
}

/// Chunks that do not belong are refused, and what arrived before them stays good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_chunks_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let leader = SnapshotDir::open(folder.path()).unwrap();
    let node = Node::start(2, Some(CLUSTER)).await;
    let snapshot = build(&leader, 100);
    let file = bytes(&snapshot.snapshot);
    let good = chunk(&file[..CHUNK_BYTES]);
    let damaged = Part::Chunk(Chunk { data: file[..10].to_vec().into(), crc32c: 1 });
    let at = |offset| header(&node, &snapshot, offset);
    let reached = u64::try_from(CHUNK_BYTES).unwrap();
    let cases = [
        (vec![at(0), good.clone(), damaged], "checksum of a chunk"),
        (vec![at(0), good.clone()], "goes on at byte 262144, not at 0"),
        (vec![at(reached), chunk(&[])], "an empty chunk"),
        (vec![at(reached), at(reached)], "a chunk was expected"),
        (vec![chunk(&[1])], "a header was expected"),
        (vec![good], "the message has 262158 bytes, the limit is 131072"),
        (vec![], "an empty stream"),
        (vec![at(reached), chunk(&vec![0; file.len()])], "bytes arrived for a snapshot of"),
    ];
    for (parts, expected) in cases {
        let error = send_parts(&node, parts).await.unwrap_err();
        assert!(error.message().contains(expected), "{error}");
    }
    send(&node, snapshot).await;
    node.wait_applied(100).await;
    assert_eq!(bytes(&node.machine.locked().installed.clone().unwrap().1), file);
}

/// Bytes that are whole and not the snapshot that was announced are never installed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_file_than_the_announced_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let leader = SnapshotDir::open(folder.path()).unwrap();
    let node = Node::start(2, Some(CLUSTER)).await;
    let snapshot = build(&leader, 100);
    let mut file = bytes(&snapshot.snapshot);
    let middle = file.len() / 2;
    file[middle] ^= 1;
    let mut parts = vec![header(&node, &snapshot, 0)];
    parts.extend(file.chunks(CHUNK_BYTES).map(chunk));
    let error = send_parts(&node, parts).await.unwrap_err();
    assert!(error.message().contains("damaged"), "{error}");
    assert!(node.machine.locked().installed.is_none());
    assert!(node.snapshots.newest().is_none());
    assert_eq!(offset(&node, &snapshot.snapshot).await, 0);
}

/// A leader of an earlier term gets the higher vote at once, and no byte of it is stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_leader_is_told_the_higher_vote() {
    let folder = tempfile::tempdir().unwrap();
    let leader = SnapshotDir::open(folder.path()).unwrap();
    let node = Node::start(2, Some(CLUSTER)).await;
    let higher = vote_to_raft(Vote { term: 2, node: NodeId(3), committed: false });
    let request = openraft::raft::VoteRequest::new(higher, None);
    node.raft.vote(request).await.unwrap();
    let wait = node.raft.wait(Some(DEADLINE));
    wait.metrics(|metrics| metrics.vote == higher, "the vote is kept").await.unwrap();
    let snapshot = build(&leader, 100);
    let reply = send_parts(&node, vec![header(&node, &snapshot, 0)]).await.unwrap();
    assert_eq!(payload::decode_vote(&reply.vote).unwrap(), higher);
    assert!(node.snapshots.newest().is_none());
}

/// Cancelling a transfer ends it, and the part that arrived can be gone on from.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_is_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let leader = SnapshotDir::open(folder.path()).unwrap();
    let node = Node::start(2, Some(CLUSTER)).await;
    let snapshot = build(&leader, 100);
    let (caller, _) = local(1, Some(CLUSTER));
    let mut network = Network::new(caller, &Default::default());
    let mut client = network.new_snapshot_client(NodeId(2), &member(2, node.address)).await;
    let cancelled = async { ReplicationClosed::new("cancelled by the test") };
    let option = RPCOption::new(DEADLINE);
    let sent = client.full_snapshot(leader_vote(), snapshot.clone(), cancelled, option).await;
    assert!(matches!(sent, Err(StreamingError::Closed(_))), "{sent:?}");
    send(&node, snapshot).await;
    node.wait_applied(100).await;
}

/// A snapshot is refused like everything else when the hello is wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_without_a_hello_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let leader = SnapshotDir::open(folder.path()).unwrap();
    let node = Node::start(2, Some(CLUSTER)).await;
    let Part::Header(mut header) = header(&node, &build(&leader, 100), 0) else { unreachable!() };
    header.hello = None;
    let error = send_parts(&node, vec![Part::Header(header)]).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
}

/// Nothing of a damaged snapshot goes to a peer, and it is marked, so that an older one takes its
/// place. openraft is told to try later: an error of storage would end this node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_is_not_sent() {
    let folder = tempfile::tempdir().unwrap();
    let leader = SnapshotDir::open(folder.path()).unwrap();
    let node = Node::start(2, Some(CLUSTER)).await;
    let snapshot = build(&leader, 100);
    let file = std::fs::OpenOptions::new().write(true).open(snapshot.snapshot.path()).unwrap();
    file.set_len(10).unwrap();
    let (caller, _) = local(1, Some(CLUSTER));
    let mut network = Network::new(caller, &Default::default());
    let mut client = network.new_snapshot_client(NodeId(2), &member(2, node.address)).await;
    let (never, option) = (std::future::pending(), RPCOption::new(DEADLINE));
    let sent = client.full_snapshot(leader_vote(), snapshot.clone(), never, option).await;
    let Err(StreamingError::Unreachable(error)) = &sent else { panic!("{sent:?}") };
    assert!(error.to_string().contains("is damaged at byte 0"), "{error}");
    assert!(snapshot.snapshot.damage().is_some(), "no other peer is offered it");
    assert!(node.machine.locked().installed.is_none());
    assert_eq!(offset(&node, &snapshot.snapshot).await, 0);
}

/// What a node shows that knows what was agreed on at checkpoint 200.
fn knowing(digest: StateDigest) -> Arc<Directory> {
    let record = CheckpointRecord { agreed: Some(digest), ..CheckpointRecord::default() };
    let view = View { checkpoints: [(200, record)].into(), ..View::default() };
    Arc::new(Directory::showing(view))
}

/// A member takes only a snapshot that the cluster agreed on, as far as its own tables or another
/// member can tell; what is refused leaves nothing behind that a start could find.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_was_not_agreed_on_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let leader = SnapshotDir::open(folder.path()).unwrap();
    let snapshot = build(&leader, 200);
    let agreed = digest_of(&snapshot.snapshot).unwrap();
    let other = StateDigest([9; 32]);
    let nowhere = "127.0.0.1:9".parse().unwrap();
    let nothing = || Arc::new(Directory::default());
    let past = Arc::new(Directory::default().at(201));
    for (own, third, expected) in [
        (knowing(other), Some(nothing()), Some("this node's log says 0909")),
        (nothing(), Some(knowing(other)), Some("node 3 says 0909")),
        (nothing(), Some(past), Some("node 3 has come past it, and knows of no agreement")),
        (nothing(), Some(nothing()), Some("no other member has come so far")),
        (knowing(agreed), Some(knowing(other)), None),
        (nothing(), Some(knowing(agreed)), None),
        (nothing(), None, None),
    ] {
        let node = Node::start_showing(2, Some(CLUSTER), own).await;
        let third = match third {
            Some(shown) => Some(Node::start_showing(3, Some(CLUSTER), shown).await),
            None => None,
        };
        let third_at = third.as_ref().map_or(nowhere, |third| third.address);
        let members = [(1, nowhere), (2, node.address), (3, third_at)];
        for member in [&node].into_iter().chain(&third) {
            member.knows(&members).await;
        }
        let file = bytes(&snapshot.snapshot);
        let mut parts = vec![header_in(2, &node, &snapshot, 0)];
        parts.extend(file.chunks(CHUNK_BYTES).map(chunk));
        let sent = send_parts(&node, parts).await;
        match expected {
            Some(expected) => {
                let refused = sent.unwrap_err();
                assert_eq!(refused.code(), Code::FailedPrecondition);
                assert!(refused.message().contains(expected), "{refused}");
                assert!(node.snapshots.newest().is_none());
                assert_eq!(offset(&node, &snapshot.snapshot).await, 0);
            }
            None => {
                sent.unwrap();
                node.wait_applied(200).await;
            }
        }
    }
}

/// Asking how much of a snapshot has arrived is a read: what has arrived of another one stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asking_for_the_offset_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let leader = SnapshotDir::open(folder.path()).unwrap();
    let node = Node::start(2, Some(CLUSTER)).await;
    let (under_way, asked) = (build(&leader, 100), build(&leader, 101));
    let file = bytes(&under_way.snapshot);
    let parts = vec![header(&node, &under_way, 0), chunk(&file[..CHUNK_BYTES])];
    send_parts(&node, parts).await.unwrap_err();
    assert_eq!(offset(&node, &asked.snapshot).await, 0);
    let arrived = u64::try_from(CHUNK_BYTES).unwrap();
    assert_eq!(offset(&node, &under_way.snapshot).await, arrived);
}
