//! The client of one peer, as openraft drives it.
//!
//! Errors are sorted for openraft by what it should do: `Unreachable` makes it wait before the
//! next try, `Network` and `Timeout` let it try at once.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use lockstep_proto::peer;
use lockstep_proto::peer::peer_client::PeerClient;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RPCTypes, RaftNetworkV2, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
    StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::connections::{Link, describe};
use super::hello::Local;
use super::known::Known;
use super::{TERM_JUMP_MAX, payload, pipeline, send_snapshot};
use crate::raft::store::convert::vote_from_raft;
use crate::raft::type_config::{RaftVote, TypeConfig};
use crate::storage::snapshot::Snapshot;
use crate::types::{Member, NodeId};

/// First wait before an unreachable peer is tried again; it doubles up to the longest.
const BACKOFF_MS_MIN: u64 = 25;
/// Longest such wait: so long after a partition heals, at most, replication goes on.
const BACKOFF_MS_MAX: u64 = 400;

/// Whom a client talks to, and on whose behalf.
pub(super) struct Peer {
    pub(super) local: Arc<Local>,
    pub(super) target: NodeId,
    pub(super) member: Member,
}

impl Peer {
    /// The hello for this peer; `None` while this node is in no cluster.
    pub(super) fn hello(&self) -> Option<peer::Hello> {
        self.local.hello(self.target, &self.member)
    }

    /// Why there is no hello.
    pub(super) fn no_cluster(&self) -> String {
        if let Some(reason) = self.local.went_back() {
            return reason.to_owned();
        }
        format!("this node is in no cluster yet, and so cannot call node {}", self.target)
    }

    /// Sorts a failed call for openraft, and remembers for the operator what he can mend.
    pub(super) fn failure(&self, status: &Status) -> RPCError<TypeConfig> {
        let text = format!("node {} ({}): {}", self.target, self.member, describe(status));
        match status.code() {
            Code::FailedPrecondition => {
                self.local.refused_by(self.target, status.message());
                RPCError::Unreachable(Unreachable::from_string(text))
            }
            Code::ResourceExhausted => {
                self.local.full(self.target, status.message());
                RPCError::Unreachable(Unreachable::from_string(text))
            }
            // Nobody there, or it would answer the same to the same message.
            Code::Unavailable | Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => {
                RPCError::Unreachable(Unreachable::from_string(text))
            }
            _ => RPCError::Network(NetworkError::from_string(text)),
        }
    }

    /// The peer has this on its disk.
    pub(super) fn acknowledged(&self, heard: Known) {
        self.local.note_log(self.target, &self.member, heard);
    }

    pub(super) fn timeout(&self, action: RPCTypes, timeout: Duration) -> RPCError<TypeConfig> {
        let (id, target) = (self.local.node_id(), self.target);
        RPCError::Timeout(Timeout { action, id, target, timeout })
    }

    /// The peer answered what no node of this version answers.
    pub(super) fn nonsense(&self, what: impl std::fmt::Display) -> RPCError<TypeConfig> {
        let what = what.to_string();
        self.local.answered_badly(self.target, &what);
        let text = format!("node {} answered with a malformed message: {what}", self.target);
        RPCError::Unreachable(Unreachable::from_string(text))
    }

    /// Refuses an answer whose term cannot be: adopted, it would use the terms up. It may be as far
    /// above this node's as that of a call.
    pub(super) fn check_term(
        &self,
        ours: &RaftVote,
        theirs: &RaftVote,
    ) -> Result<(), RPCError<TypeConfig>> {
        let [ours, theirs] = [ours, theirs].map(|vote| vote_from_raft(vote).term);
        if theirs.saturating_sub(ours) <= TERM_JUMP_MAX {
            return Ok(());
        }
        Err(self.nonsense(format!("to term {ours} it answers with term {theirs}")))
    }

    /// Waits for an answer, `limit` at most.
    pub(super) async fn answer<T>(
        &self,
        action: RPCTypes,
        limit: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, RPCError<TypeConfig>> {
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(response)) => {
                self.local.accepted_by(self.target);
                Ok(response.into_inner())
            }
            Ok(Err(status)) => Err(self.failure(&status)),
            Err(_) => Err(self.timeout(action, limit)),
        }
    }
}

/// The connection of a lane and the hello to begin with, or why it cannot be used.
pub(super) fn ready(
    peer: &Peer,
    link: &Link,
) -> Result<(PeerClient<Channel>, peer::Hello), RPCError<TypeConfig>> {
    let unreachable = |text: String| RPCError::Unreachable(Unreachable::from_string(text));
    let hello = peer.hello().ok_or_else(|| unreachable(peer.no_cluster()))?;
    let link = link.clone().map_err(unreachable)?;
    Ok((link, hello))
}

/// openraft's client of one peer.
pub struct Client {
    pub(super) peer: Arc<Peer>,
    pub(super) log: Link,
    pub(super) control: Link,
    pub(super) snapshot: Link,
    /// Sends single requests on the control connection instead of a stream.
    pub(super) heartbeat: bool,
}

impl Client {
    async fn ask_vote(
        &self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
        pre_vote: bool,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (mut control, hello) = ready(&self.peer, &self.control)?;
        let payload = payload::encode_vote_request(&request);
        let term = vote_from_raft(&request.vote).term;
        let call = control.vote(peer::VoteRequest { hello: Some(hello), payload, pre_vote });
        let reply = self.peer.answer(RPCTypes::Vote, option.soft_ttl(), call).await?;
        let result = payload::decode_vote_result(&reply.payload);
        let result = result.map_err(|error| self.peer.nonsense(error))?;
        self.peer.check_term(&request.vote, &result.vote)?;
        if result.vote_granted && !pre_vote {
            self.peer.acknowledged(Known { term, last: None });
        }
        Ok(result)
    }
}

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = Snapshot;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (mut control, hello) = ready(&self.peer, &self.control)?;
        let expected = pipeline::Expected::of(&request);
        let mut message =
            payload::encode_append(request).map_err(|error| pipeline::unsendable(&error))?;
        message.hello = Some(hello);
        let call = control.append_one(message);
        let reply = self.peer.answer(RPCTypes::AppendEntries, option.soft_ttl(), call).await?;
        self.peer.local.saw_profile(self.peer.target, &reply.engine_profile);
        match expected.check(&self.peer, &reply.payload)? {
            Ok(_) => Ok(AppendEntriesResponse::Success),
            Err(StreamAppendError::Conflict(_)) => Ok(AppendEntriesResponse::Conflict),
            Err(StreamAppendError::HigherVote(vote)) => Ok(AppendEntriesResponse::HigherVote(vote)),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>,
            RPCError<TypeConfig>,
        >,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        if self.heartbeat {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(pipeline::open(self.peer.clone(), &self.log, input, option))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(request, option, false).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(request, option, true).await
    }

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: SnapshotOf<TypeConfig, Snapshot>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        // The option's time is for one message; a transfer may take long as long as it moves.
        let send = send_snapshot::send(&self.peer, &self.snapshot, vote, snapshot);
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = send => sent,
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (mut control, hello) = ready(&self.peer, &self.control)?;
        let payload = payload::encode_transfer(&request);
        let request = peer::TransferLeaderRequest { hello: Some(hello), payload };
        let call = control.transfer_leader(request);
        let reply = self.peer.answer(RPCTypes::TransferLeader, option.soft_ttl(), call).await?;
        payload::decode_transfer_result(&reply.payload).map_err(|error| self.peer.nonsense(error))
    }

    fn backoff(&self) -> Option<Backoff> {
        let doubled = std::iter::successors(Some(BACKOFF_MS_MIN), |wait| Some(wait * 2));
        let first = doubled.take_while(|wait| *wait < BACKOFF_MS_MAX);
        let waits = first.chain(std::iter::repeat(BACKOFF_MS_MAX));
        Some(Backoff::new(waits.map(Duration::from_millis)))
    }
}
