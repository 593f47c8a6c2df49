//! Speaks to a node as its peers do, and writes into its log what nobody can propose.

use bytes::Bytes;
use lockstep_host::config::FileConfig;
use lockstep_host::storage::snapshot::Snapshot;
use lockstep_host::storage::{DataDir, Log, LogConfig, Payload};
use lockstep_host::types::LogId;
use lockstep_proto::peer::install_snapshot_request::{Chunk, Header, Part};
use lockstep_proto::peer::peer_client::PeerClient;
use lockstep_proto::peer::{Hello, InstallSnapshotRequest, StandingRequest};
use lockstep_proto::v1::StatusReply;
use tonic::transport::Channel;

use crate::cluster::Cluster;
use crate::node::Node;

/// What the log calls the payload of an entry that was proposed (docs/formats.md).
const PROPOSAL: u8 = 1;

/// Bytes of a log entry's envelope, of which the last four are the checksum of all others.
const ENVELOPE_BYTES: usize = 12;

/// An intact log entry without a body, of this kind.
pub fn entry(kind: u8) -> Bytes {
    let mut bytes = vec![b'L', b'S', 1, kind, 0, 0, 0, 0];
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    assert_eq!(bytes.len(), ENVELOPE_BYTES);
    bytes.into()
}

/// The hello of one node to another.
fn hello(from: &StatusReply, to: &StatusReply) -> Hello {
    Hello {
        cluster_id: from.cluster_id.clone(),
        from_node: from.node_id,
        from_incarnation: from.incarnation.clone(),
        to_node: to.node_id,
        to_incarnation: to.incarnation.clone(),
        protocol_version: 1,
        engine_profile: from.engine_profile.clone(),
        known: None,
    }
}

/// Calls node `to` in the name of node `from`, as whoever reads both statuses can: the way there,
/// and the hello.
///
/// # Panics
/// When one of them does not answer.
pub async fn claim(cluster: &Cluster, from: u64, to: u64) -> (PeerClient<Channel>, Hello) {
    let from = cluster.node(from).status().await.expect("it answers");
    let hello = hello(&from, &cluster.node(to).status().await.expect("it answers"));
    let address = format!("http://{}", cluster.node(to).peer_addr);
    (PeerClient::connect(address).await.expect("it listens"), hello)
}

/// A payload of these fields (docs/formats.md, "Peer messages").
pub fn payload(fields: &[&[u8]]) -> Bytes {
    let mut bytes = [&[1][..], &fields.concat()].concat();
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    bytes.into()
}

/// A vote, as a field.
pub fn vote(term: u64, node: u64, committed: bool) -> Vec<u8> {
    [&term.to_le_bytes()[..], &node.to_le_bytes(), &[committed.into()]].concat()
}

/// Sends a snapshot file, in a leader's name, as that of its last log id.
///
/// # Panics
/// When the file can't be read.
pub fn transfer(hello: Hello, vote: &[u8], file: &std::path::Path) -> Vec<InstallSnapshotRequest> {
    let snapshot = Snapshot::open_file(file).expect("it is a snapshot");
    let id = snapshot.id();
    let last = id.last.expect("it is of a log");
    // A membership of node 1 alone, without addresses.
    let membership = [&[1, 1, 1, 1, 1, 0, 0][..], &[0; 16]].concat();
    let fields = [
        vote,
        &[1],
        &last.term.to_le_bytes(),
        &last.node.0.to_le_bytes(),
        &last.index.to_le_bytes(),
        &id.file_crc32c.to_le_bytes(),
        &id.length.to_le_bytes(),
        &[0],
        &membership,
    ];
    let header = Header { hello: Some(hello), head: payload(&fields), offset: 0 };
    let bytes = std::fs::read(file).expect("it can be read");
    let chunk = |data: &[u8]| {
        let (data, crc32c) = (Bytes::copy_from_slice(data), crc32c::crc32c(data));
        Part::Chunk(Chunk { data, crc32c })
    };
    let parts = std::iter::once(Part::Header(header)).chain(bytes.chunks(256 << 10).map(chunk));
    parts.map(|part| InstallSnapshotRequest { part: Some(part) }).collect()
}

/// Writes entries behind the logs of nodes that do not run, as their leader did the last one: no
/// node takes such entries from a client or a peer. A log that is behind is given what it lacks.
///
/// # Panics
/// When a log is empty or cannot be written.
pub fn append(nodes: &[&Node], entries: &[Bytes]) {
    let open = |node: &&Node| {
        let folder = DataDir::open_existing(&node.data_dir).expect("the node does not run");
        let log = Log::open(&folder.log(), &LogConfig::from(&FileConfig::default()));
        let log = log.expect("the log can be opened");
        let last = log.state().expect("the log has a state").last.expect("the log has entries");
        (last, log)
    };
    let logs: Vec<(LogId, Log)> = nodes.iter().map(open).collect();
    let (newest, longest) = logs.iter().max_by_key(|(last, _)| *last).expect("there are nodes");
    let entry = |(index, bytes): (u64, &Bytes)| {
        (LogId { index, ..*newest }, Payload { kind: PROPOSAL, bytes: bytes.clone() })
    };
    for (last, log) in &logs {
        let missing = longest.read(last.index + 1..newest.index + 1).expect("the log can be read");
        let new = (newest.index + 1..).zip(entries).map(entry);
        log.append(missing.into_iter().chain(new), Box::new(drop)).expect("it takes entries");
        log.sync().expect("the log can be synced");
    }
}

/// Why a node says that it must not lead; empty when it could.
///
/// # Panics
/// When it does not say.
pub async fn standing(cluster: &Cluster, node: u64) -> String {
    let other = cluster.ids().into_iter().find(|id| *id != node).expect("more than one node");
    let (mut peer, hello) = claim(cluster, other, node).await;
    let asked = peer.standing(StandingRequest { hello: Some(hello) }).await;
    asked.expect("it answers").into_inner().parked
}
