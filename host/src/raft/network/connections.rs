//! `Network`: the connections to all peers, and a client on them for whoever asks.
//!
//! **Invariant:** at most one connection per peer and [`Lane`], however many clients there are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use lockstep_proto::peer;
use lockstep_proto::peer::peer_client::PeerClient;
use openraft::RaftNetworkFactory;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::client::{Client, Peer};
use super::hello::Local;
use super::known::Known;
use super::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MESSAGE_BYTES_MAX, Rejected, WINDOW_BYTES};
use crate::raft::type_config::TypeConfig;
use crate::types::{Incarnation, LogId, LogIndex, Member, NodeId, StateDigest, TimeMs};

/// A peer that takes longer to accept a connection is not reachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// So many times a node is asked whether it leads, while the connection breaks.
const LEADS_ASKED_MAX: usize = 3;

/// What a connection is for. Each has its own, since on a shared one the small and urgent waits
/// behind the big.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lane {
    /// The stream of log entries.
    Log,
    /// Heartbeats, votes, transfers of leadership, proposals.
    Control,
    /// Snapshots.
    Snapshot,
}

/// A connection that dials when it is first used, and again whenever it was lost; or why there
/// cannot be one.
pub(super) type Link = Result<PeerClient<Channel>, String>;

struct Dialed {
    address: String,
    link: Link,
}

/// This node's way to its peers: the network factory of openraft. Clones share the connections.
#[derive(Clone)]
pub struct Network {
    local: Arc<Local>,
    reach: Arc<BTreeMap<NodeId, String>>,
    dialed: Arc<Mutex<BTreeMap<(NodeId, Lane), Dialed>>>,
}

impl Network {
    /// `reach` holds other addresses than the membership's, by node id, as in
    /// `FileConfig::peer_reach`; keys that are no node ids are ignored, the configuration has
    /// refused them.
    pub fn new(local: Arc<Local>, reach: &BTreeMap<String, String>) -> Self {
        let reach = reach.iter().filter_map(|(node, address)| {
            node.parse().ok().map(|node| (NodeId(node), address.clone()))
        });
        Self { local, reach: Arc::new(reach.collect()), dialed: Arc::default() }
    }

    /// Hands an encoded internal proposal to the leader; returns when it is committed and the
    /// leader has applied it.
    ///
    /// # Errors
    /// `NotLeader` when `leader` no longer leads. After any other the entry may be committed
    /// still, so it must be one that does no harm twice.
    pub async fn propose(
        &self,
        leader: NodeId,
        member: &Member,
        entry: Bytes,
        timeout: Duration,
    ) -> Result<(), Rejected> {
        let peer = self.peer(leader, member);
        let hello = peer.hello().ok_or_else(|| Rejected::Failed(peer.no_cluster()))?;
        let mut control = self.link(leader, member, Lane::Control).map_err(Rejected::Failed)?;
        let request = peer::ProposeRequest { hello: Some(hello), entry };
        match tokio::time::timeout(timeout, control.propose(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) if status.code() == Code::Aborted => Err(Rejected::NotLeader),
            Ok(Err(status)) => Err(Rejected::Failed(describe(&status))),
            Err(_) => Err(Rejected::Failed(format!("node {leader} did not answer in time"))),
        }
    }

    /// Asks whether a node could lead.
    ///
    /// # Errors
    /// `Parked` and `Stalled` say why it must not; any other, why it did not say.
    pub async fn could_lead(
        &self,
        node: NodeId,
        member: &Member,
        timeout: Duration,
    ) -> Result<(), Rejected> {
        let said = self.standing(node, member, timeout).await?;
        match (said.parked, said.stalled) {
            (parked, _) if !parked.is_empty() => Err(Rejected::Parked(parked)),
            (_, stalled) if !stalled.is_empty() => Err(Rejected::Stalled(stalled)),
            _ => Ok(()),
        }
    }

    /// Asks a node whether it leads.
    pub async fn leads(&self, node: NodeId, member: &Member, timeout: Duration) -> Leads {
        let deadline = tokio::time::Instant::now() + timeout;
        let hello = self.peer(node, member).hello();
        let (Some(hello), Ok(mut control)) = (hello, self.link(node, member, Lane::Control)) else {
            return Leads::Unknown;
        };
        // A call on a connection that breaks meanwhile says nothing of the node: it fails, in one
        // of three ways by what it was doing, and the next one dials.
        for _ in 0..LEADS_ASKED_MAX {
            let request = peer::StandingRequest { hello: Some(hello.clone()) };
            match tokio::time::timeout_at(deadline, control.standing(request)).await {
                Ok(Ok(reply)) if reply.get_ref().leads => return Leads::Yes,
                Ok(Ok(_)) => return Leads::No,
                Ok(Err(status)) if status.code() == Code::Unavailable => return Leads::Gone,
                Ok(Err(status)) if is_broken(&status) => {}
                Ok(Err(_)) | Err(_) => return Leads::Unknown,
            }
        }
        Leads::Gone
    }

    /// Asks a node what time it is.
    ///
    /// # Errors
    /// Why it did not say.
    pub async fn times(
        &self,
        node: NodeId,
        member: &Member,
        timeout: Duration,
    ) -> Result<Times, Rejected> {
        Ok(self.standing(node, member, timeout).await?.times)
    }

    /// Asks a node what it knows of itself, of the cluster, and of this node.
    ///
    /// # Errors
    /// Why it did not say.
    pub(in crate::raft) async fn standing(
        &self,
        node: NodeId,
        member: &Member,
        timeout: Duration,
    ) -> Result<Said, Rejected> {
        let peer = self.peer(node, member);
        let hello = peer.hello().ok_or_else(|| Rejected::Failed(peer.no_cluster()))?;
        let mut control = self.link(node, member, Lane::Control).map_err(Rejected::Failed)?;
        let asked = control.standing(peer::StandingRequest { hello: Some(hello) });
        match tokio::time::timeout(timeout, asked).await {
            Ok(Ok(reply)) => Ok(Said::from(reply.into_inner())),
            Ok(Err(status)) => Err(Rejected::Failed(describe(&status))),
            Err(_) => Err(Rejected::Failed("it did not answer in time".to_owned())),
        }
    }

    fn peer(&self, target: NodeId, member: &Member) -> Arc<Peer> {
        Arc::new(Peer { local: self.local.clone(), target, member: member.clone() })
    }

    fn client(&self, target: NodeId, member: &Member, heartbeat: bool) -> Client {
        Client {
            peer: self.peer(target, member),
            log: self.link(target, member, Lane::Log),
            control: self.link(target, member, Lane::Control),
            snapshot: self.link(target, member, Lane::Snapshot),
            heartbeat,
        }
    }

    /// The connection for a lane, dialed anew when the peer's address has changed.
    fn link(&self, target: NodeId, member: &Member, lane: Lane) -> Link {
        let address = self.reach.get(&target).unwrap_or(&member.peer_addr);
        let mut dialed = self.dialed.lock().expect("nothing panics while it holds the lock");
        match dialed.get(&(target, lane)) {
            Some(known) if known.address == *address => known.link.clone(),
            _ => {
                let link = dial(address);
                let entry = Dialed { address: address.clone(), link: link.clone() };
                dialed.insert((target, lane), entry);
                link
            }
        }
    }
}

/// What a node is, as far as the question whether it leads tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leads {
    /// It says that it leads.
    Yes,
    /// It says that it does not.
    No,
    /// Nobody listens there, or whoever does ends the connection: the process has ended.
    Gone,
    /// It did not answer, or would not.
    Unknown,
}

/// What a node says of itself and of the cluster.
#[derive(Clone, Debug, Default)]
pub(in crate::raft) struct Said {
    /// Why it must not lead; empty when it could.
    pub(in crate::raft) parked: String,
    /// What it waits for in vain, and so should not lead; empty when for nothing.
    pub(in crate::raft) stalled: String,
    /// What its machines have applied.
    pub(in crate::raft) applied: LogIndex,
    /// The members that its log names.
    pub(super) members: Vec<(NodeId, Incarnation)>,
    /// The checkpoints that the cluster agreed on, and on which state.
    pub(super) agreed: Vec<(LogIndex, StateDigest)>,
    /// What time it is there.
    pub(super) times: Times,
    /// How far it knows that the asking node had its log.
    pub(in crate::raft) known: Option<Known>,
    /// The last entry in its own log.
    pub(in crate::raft) last: Option<LogId>,
}

/// What time it is at a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// The replicated time, if the node knows it.
    pub time_ms: Option<TimeMs>,
    /// Its wall clock.
    pub wall_ms: TimeMs,
}

impl From<peer::StandingReply> for Said {
    /// What is no id and no digest is left out.
    fn from(reply: peer::StandingReply) -> Self {
        let disk = |member: peer::KnownMember| {
            Some((NodeId(member.node), Incarnation::from_slice(&member.incarnation)?))
        };
        let digest = |checkpoint: peer::AgreedCheckpoint| {
            Some((checkpoint.index, StateDigest::from_slice(&checkpoint.digest)?))
        };
        Self {
            parked: reply.parked,
            stalled: reply.stalled,
            applied: reply.applied_index,
            times: Times { time_ms: reply.time_ms, wall_ms: reply.wall_ms },
            members: reply.members.into_iter().filter_map(disk).collect(),
            agreed: reply.agreed.into_iter().filter_map(digest).collect(),
            known: reply.known.as_ref().map(Known::decode),
            last: Known::decode(&peer::KnownLog { term: 0, last: reply.last }).last,
        }
    }
}

/// Prepares a connection without opening it. Must run inside the async runtime.
/// True for what a call ends with whose connection breaks: it is told that it was cancelled, that
/// the peer broke the protocol, or nothing.
fn is_broken(status: &Status) -> bool {
    matches!(status.code(), Code::Cancelled | Code::Internal | Code::Unknown)
}

fn dial(address: &str) -> Link {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| format!("{address:?} is no address of a peer: {error}"))?;
    let channel = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_lazy();
    Ok(PeerClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX))
}

/// What a failed call says, with the cause that tonic hides behind "transport error".
pub(super) fn describe(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: NodeId, node: &Member) -> Client {
        self.client(target, node, false)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &Member) -> Client {
        self.client(target, node, true)
    }
}
