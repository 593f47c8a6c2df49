//! What this node does when a peer calls. Each call is checked first, then decoded, then handed
//! to openraft; the answer goes back encoded.

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use lockstep_proto::peer;
use lockstep_proto::peer::install_snapshot_request::{Header, Part};
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult};
use openraft::storage::RaftStateMachine;
use openraft::type_config::alias::SnapshotOf;
use tokio_util::sync::CancellationToken;

use super::gate::{AppendGate, Gate, Parts};
use super::hello::Local;
use super::known::Known;
use super::receive_snapshot::Inbox;
use super::{HELLO_TIMEOUT, PROPOSAL_BYTES_MAX, Rejected, payload};
use crate::raft::store::convert::log_id_from_raft;
use crate::raft::type_config::{EntryBytes, TypeConfig};
use crate::storage::snapshot::{Snapshot, SnapshotDir};
use crate::types::{Member, NodeId};

/// A state machine whose snapshots are files: an alias, for callers that know no openraft.
pub trait Machine: RaftStateMachine<TypeConfig, SnapshotData = Snapshot> {}

impl<SM: RaftStateMachine<TypeConfig, SnapshotData = Snapshot>> Machine for SM {}

/// The replies of an append stream.
pub(super) type AppendReplies =
    Pin<Box<dyn Stream<Item = Result<peer::AppendReply, Rejected>> + Send + 'static>>;

/// The answering side of the network between nodes.
pub struct PeerHandler<SM: Machine> {
    gate: Arc<Gate<SM>>,
    inbox: Inbox,
    stopped: CancellationToken,
}

impl<SM: Machine> PeerHandler<SM> {
    /// Answers by these parts; snapshots of peers go to `snapshots`, as far as there is space.
    pub fn new(parts: Parts<SM>, snapshots: SnapshotDir) -> Self {
        let gate = Arc::new(Gate::new(parts));
        Self { gate, inbox: Inbox::new(snapshots), stopped: CancellationToken::new() }
    }

    /// Ends the streams that peers keep open, and refuses new ones, so that a server can drain.
    pub fn stop(&self) {
        self.stopped.cancel();
    }

    /// AppendEntries, pipelined: the first request is the hello. Returns once that was accepted;
    /// the stream then gives one reply for each request, in order.
    pub async fn append<S, E>(&self, mut requests: S) -> Result<AppendReplies, Rejected>
    where
        S: Stream<Item = Result<peer::AppendRequest, E>> + Send + Unpin + 'static,
        E: std::fmt::Display + Send + 'static,
    {
        let first = self.first(&mut requests).await?;
        let from = self.gate.admit(first.hello.as_ref()).await?;
        if !(first.head.is_empty() && first.entries.is_empty()) {
            return Err(Rejected::Malformed("the first request is more than a hello".into()));
        }
        // A leader has said what it knows of this log.
        self.gate.local.set_led();
        let failure = Failure::default();
        let local = Arc::clone(&self.gate.local);
        let ended = EndOfStream { local: Arc::clone(&local), from };
        let gate = (AppendGate::new(Arc::clone(&self.gate), from), ended);
        let input = decoded(gate, requests, self.stopped.clone(), failure.clone());
        let results = self.gate.raft.stream_append(input).map(move |result| match result {
            Ok(result) => Ok(append_reply(&local, from, &result)),
            Err(fatal) => Err(Rejected::Stopped(fatal.to_string())),
        });
        // When the input ended for a reason, the peer learns it after its last reply.
        let reason = futures::stream::once(async move { failure.take() });
        let reason = reason.filter_map(|reason| async { reason.map(Err) });
        Ok(Box::pin(results.chain(reason)))
    }

    /// One AppendEntries: a heartbeat.
    pub async fn append_one(
        &self,
        request: peer::AppendRequest,
    ) -> Result<peer::AppendReply, Rejected> {
        let from = self.gate.admit(request.hello.as_ref()).await?;
        self.gate.local.set_led();
        let request = AppendGate::new(Arc::clone(&self.gate), from).pass(request)?;
        let input = futures::stream::once(async { request });
        let mut results = Box::pin(self.gate.raft.stream_append(input));
        match results.next().await {
            Some(Ok(result)) => Ok(peer::AppendReply {
                engine_profile: self.gate.local.profile().to_owned(),
                ..append_reply(&self.gate.local, from, &result)
            }),
            Some(Err(fatal)) => Err(Rejected::Stopped(fatal.to_string())),
            None => Err(Rejected::Stopped("openraft has ended".into())),
        }
    }

    /// A request for a vote, or for the promise of one.
    pub async fn vote(&self, request: peer::VoteRequest) -> Result<peer::VoteReply, Rejected> {
        let from = self.gate.admit(request.hello.as_ref()).await?;
        let vote = payload::decode_vote_request(&request.payload)?;
        self.gate.check_vote(from, &vote.vote)?;
        let last = vote.last_log_id.as_ref().map(log_id_from_raft);
        if !self.gate.local.votes().borrow().may_go_to(last) {
            let reason = "it has just started, and asks its peers before it votes";
            return Err(Rejected::Failed(reason.to_owned()));
        }
        let result = if request.pre_vote {
            self.gate.local.heard().another_stands();
            self.gate.raft.pre_vote(vote).await
        } else {
            self.gate.raft.vote(vote).await
        };
        let result = result.map_err(|error| Rejected::Stopped(error.to_string()))?;
        Ok(peer::VoteReply { payload: payload::encode_vote_result(&result) })
    }

    /// The leader's wish that this or another node lead.
    pub async fn transfer_leader(
        &self,
        request: peer::TransferLeaderRequest,
    ) -> Result<peer::TransferLeaderReply, Rejected> {
        let from = self.gate.admit(request.hello.as_ref()).await?;
        let transfer = payload::decode_transfer(&request.payload)?;
        self.gate.check_vote(from, transfer.from_leader())?;
        // Meant for another, it still frees this node to vote for that one at once.
        if *transfer.to_node_id() == self.gate.local.node_id() {
            if let Some(reason) = &self.gate.directory.view().parked {
                return Err(Rejected::Parked(reason.clone()));
            }
            if let Some(stall) = self.gate.local.stalls().current() {
                return Err(Rejected::Stalled(stall.to_string()));
            }
        }
        let result = self.gate.raft.handle_transfer_leader(transfer).await;
        let result = result.map_err(|error| Rejected::Stopped(error.to_string()))?;
        Ok(peer::TransferLeaderReply { payload: payload::encode_transfer_result(&result) })
    }

    /// What this node knows of itself and of the cluster.
    pub async fn standing(
        &self,
        request: peer::StandingRequest,
    ) -> Result<peer::StandingReply, Rejected> {
        // Two nodes that do not know each other must not ask each other for ever.
        self.gate.admit_known(request.hello.as_ref()).await?;
        let (view, stalled) = (self.gate.directory.view(), self.gate.local.stalls().current());
        let known = |(node, member): (NodeId, &Member)| peer::KnownMember {
            node: node.0,
            incarnation: member.incarnation.to_vec().into(),
        };
        let agreed = view.checkpoints.iter().filter(|_| view.parked.is_none());
        let agreed = agreed.filter_map(|(index, record)| {
            let digest = record.agreed?.0.to_vec().into();
            Some(peer::AgreedCheckpoint { index: *index, digest })
        });
        let local = &self.gate.local;
        let log = request.hello.as_ref().and_then(|hello| local.known_of(hello));
        Ok(peer::StandingReply {
            parked: view.parked.clone().unwrap_or_default(),
            members: self.gate.roster().members().map(known).collect(),
            agreed: agreed.collect(),
            leads: self.gate.raft.is_leader(),
            stalled: stalled.map(|stall| stall.to_string()).unwrap_or_default(),
            applied_index: self.gate.directory.applied(),
            time_ms: self.gate.clock.time_ms(),
            wall_ms: self.gate.clock.wall_ms().unwrap_or(0),
            known: log.map(Known::encode),
            last: Known { term: 0, last: local.last() }.encode().last,
        })
    }

    /// Where a transfer of a snapshot must go on.
    pub async fn snapshot_offset(
        &self,
        request: peer::SnapshotOffsetRequest,
    ) -> Result<peer::SnapshotOffsetReply, Rejected> {
        self.gate.admit(request.hello.as_ref()).await?;
        let id = payload::decode_snapshot_id(&request.snapshot)?;
        Ok(peer::SnapshotOffsetReply { offset: self.inbox.offset(id).await? })
    }

    /// A snapshot, header first. Returns once it is installed, or at once with this node's vote
    /// when that is higher than the sender's.
    pub async fn install_snapshot<S, E>(
        &self,
        mut requests: S,
    ) -> Result<peer::InstallSnapshotReply, Rejected>
    where
        S: Stream<Item = Result<peer::InstallSnapshotRequest, E>> + Send + Unpin,
        E: std::fmt::Display,
    {
        let Some(Part::Header(Header { hello, head, offset })) =
            self.first(&mut requests).await?.part
        else {
            return Err(Rejected::Malformed("a header was expected".into()));
        };
        let from = self.gate.admit(hello.as_ref()).await?;
        let head = payload::decode_snapshot_head(&head)?;
        self.gate.check_vote(from, &head.vote)?;
        let ours = self.gate.raft.server_metrics().borrow_watched().vote;
        if ours > head.vote {
            return Ok(peer::InstallSnapshotReply { vote: payload::encode_vote(&ours) });
        }
        if !self.gate.space.take(head.id.length.saturating_sub(offset)) {
            return Err(Rejected::DiskFull);
        }
        let check = async |snapshot| {
            self.gate.check_present(from)?;
            self.gate.check_snapshot(from, snapshot).await
        };
        let snapshot = self.inbox.receive(head.id, offset, requests, check).await?;
        tracing::info!(%from, length = head.id.length, "installing a snapshot of a peer");
        let snapshot = SnapshotOf::<TypeConfig, Snapshot> { meta: head.meta, snapshot };
        let installed = self.gate.raft.install_full_snapshot(head.vote, snapshot).await;
        let installed = installed.map_err(|fatal| Rejected::Stopped(fatal.to_string()))?;
        Ok(peer::InstallSnapshotReply { vote: payload::encode_vote(&installed.vote) })
    }

    /// An internal entry of a follower. Returns once it is applied here.
    pub async fn propose(
        &self,
        request: peer::ProposeRequest,
    ) -> Result<peer::ProposeReply, Rejected> {
        let from = self.gate.admit(request.hello.as_ref()).await?;
        let length = request.entry.len();
        if length > PROPOSAL_BYTES_MAX {
            return Err(Rejected::Malformed(format!(
                "a proposal of {length} bytes, and {PROPOSAL_BYTES_MAX} are allowed"
            )));
        }
        self.gate.check_proposal(from, &request.entry)?;
        match self.gate.raft.client_write(EntryBytes(request.entry)).await {
            Ok(_) => Ok(peer::ProposeReply {}),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
                Err(Rejected::NotLeader)
            }
            Err(RaftError::APIError(error)) => Err(Rejected::Failed(error.to_string())),
            Err(RaftError::Fatal(fatal)) => Err(Rejected::Stopped(fatal.to_string())),
        }
    }

    /// The first message of a stream.
    async fn first<S, T, E>(&self, requests: &mut S) -> Result<T, Rejected>
    where
        S: Stream<Item = Result<T, E>> + Unpin,
        E: std::fmt::Display,
    {
        if self.stopped.is_cancelled() {
            return Err(stopping());
        }
        match tokio::time::timeout(HELLO_TIMEOUT, requests.next()).await {
            Ok(Some(Ok(first))) => Ok(first),
            Ok(Some(Err(error))) => Err(Rejected::Failed(error.to_string())),
            Ok(None) => Err(Rejected::Malformed("an empty stream".into())),
            Err(_) => Err(Rejected::Failed("the caller did not say hello in time".into())),
        }
    }
}

fn stopping() -> Rejected {
    Rejected::Stopped("it is shutting down".into())
}

/// The answer to a leader. Unless that leads no more, it was heard.
fn append_reply(
    local: &Local,
    from: NodeId,
    result: &StreamAppendResult<TypeConfig>,
) -> peer::AppendReply {
    if !matches!(result, Err(StreamAppendError::HigherVote(_))) {
        local.heard().note(from);
    }
    let payload: Bytes = payload::encode_append_result(result);
    peer::AppendReply { payload, ..Default::default() }
}

/// Notes the end of a leader's stream, in whatever way it goes.
struct EndOfStream {
    local: Arc<Local>,
    from: NodeId,
}

impl Drop for EndOfStream {
    fn drop(&mut self) {
        self.local.heard().stream_ended(self.from);
    }
}

/// Why an input ended before its peer ended it.
#[derive(Clone, Default)]
struct Failure(Arc<Mutex<Option<Rejected>>>);

impl Failure {
    fn set(&self, reason: Rejected) {
        *self.0.lock().expect("nothing panics while it holds the reason") = Some(reason);
    }

    fn take(&self) -> Option<Rejected> {
        self.0.lock().expect("nothing panics while it holds the reason").take()
    }
}

/// The requests of a peer that pass the gate, until one does not or this node stops.
fn decoded<SM, S, E>(
    gate: (AppendGate<SM>, EndOfStream),
    requests: S,
    stopped: CancellationToken,
    failure: Failure,
) -> impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + 'static
where
    SM: Machine,
    S: Stream<Item = Result<peer::AppendRequest, E>> + Send + Unpin + 'static,
    E: std::fmt::Display + Send + 'static,
{
    let stopped = Box::pin(stopped.cancelled_owned());
    futures::stream::unfold(
        (gate, requests, stopped),
        move |(mut gate, mut requests, mut stopped)| {
            let failure = failure.clone();
            async move {
                let request = tokio::select! {
                    request = requests.next() => request?,
                    () = &mut stopped => {
                        failure.set(stopping());
                        return None;
                    }
                };
                let request = request.map_err(|error| Rejected::Failed(error.to_string()));
                match request.and_then(|request| gate.0.pass(request)) {
                    Ok(request) => Some((request, (gate, requests, stopped))),
                    Err(reason) => {
                        failure.set(reason);
                        None
                    }
                }
            }
        },
    )
}
