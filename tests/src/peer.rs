//! Speaks to a node as its peers do, for entries that no client can propose.

use std::fmt::Display;

use bytes::Bytes;
use lockstep_proto::peer::peer_client::PeerClient;
use lockstep_proto::peer::{Hello, ProposeRequest, StandingRequest};
use lockstep_proto::v1::StatusReply;

use crate::cluster::Cluster;

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

/// Proposes an entry through the leader, in the name of another node; returns once it is applied.
///
/// # Panics
/// When the leader refuses it.
pub async fn propose(cluster: &Cluster, leader: u64, entry: Bytes) {
    let (mut peer, hello) = ask(cluster, leader).await;
    let proposed = peer.propose(ProposeRequest { hello: Some(hello), entry }).await;
    proposed.unwrap_or_else(|status| panic!("the entry is refused: {}", said(&status)));
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

fn said(status: &tonic::Status) -> impl Display {
    status.message().to_owned()
}
