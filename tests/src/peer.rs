//! Speaks to a node as its peers do, and writes into its log what nobody can propose.

use bytes::Bytes;
use lockstep_host::config::FileConfig;
use lockstep_host::storage::{DataDir, Log, LogConfig, Payload};
use lockstep_host::types::LogId;
use lockstep_proto::peer::peer_client::PeerClient;
use lockstep_proto::peer::{Hello, StandingRequest};
use lockstep_proto::v1::StatusReply;

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

/// Asks a node, in the name of another one.
async fn ask(cluster: &Cluster, to: u64) -> (PeerClient<tonic::transport::Channel>, Hello) {
    let other = cluster.ids().into_iter().find(|id| *id != to).expect("more than one node");
    let from = cluster.node(other).status().await.expect("it answers");
    let hello = hello(&from, &cluster.node(to).status().await.expect("it answers"));
    let address = format!("http://{}", cluster.node(to).peer_addr);
    (PeerClient::connect(address).await.expect("it listens"), hello)
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
    let (mut peer, hello) = ask(cluster, node).await;
    let asked = peer.standing(StandingRequest { hello: Some(hello) }).await;
    asked.expect("it answers").into_inner().parked
}
