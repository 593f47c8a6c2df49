//! The gRPC service between nodes: carries messages to `raft::network::PeerHandler` and back, and
//! maps its errors to gRPC codes. It decides nothing.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use lockstep_proto::peer;
use lockstep_proto::peer::peer_server::{Peer, PeerServer};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::around::Layered;
use super::metered::{Carries, Meter};
use crate::api::Listener;
use crate::api::door::Drain;
use crate::budget::Account;
use crate::raft::network::{
    FIRST_MESSAGE_BYTES_MAX, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MESSAGE_BYTES_MAX, Machine,
    PeerHandler, Rejected, WINDOW_BYTES,
};

/// Calls that a peer may have under way on one connection: it has a few.
const CALLS_PER_CONNECTION_MAX: u32 = 64;

/// The service on one handler.
pub struct PeerService<SM: Machine>(Arc<PeerHandler<SM>>);

fn service<SM: Machine>(handler: Arc<PeerHandler<SM>>) -> PeerServer<PeerService<SM>> {
    PeerServer::new(PeerService(handler))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// Serves peers who come in by `listener` until `end`, with the limits and connection settings
/// that traffic between nodes needs.
///
/// # Errors
/// When the server fails.
pub async fn serve<SM: Machine>(
    listener: Listener,
    handler: Arc<PeerHandler<SM>>,
    end: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let ended = Arc::clone(&handler);
    let shutdown = async move {
        end.cancelled().await;
        ended.stop();
    };
    Server::builder()
        .layer(Layered(Meter { rules: carries, drain: Drain::default(), is_strict: true }))
        .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_service(service(handler))
        .serve_with_incoming_shutdown(listener.incoming(CancellationToken::new()), shutdown)
        .await
}

/// What each method takes in: little, until the caller has said who it is.
fn carries(path: &str) -> Carries {
    let later = match path {
        "/lockstep.peer.v1.Peer/Append" | "/lockstep.peer.v1.Peer/InstallSnapshot" => {
            Some(MESSAGE_BYTES_MAX)
        }
        _ => None,
    };
    // Nothing of a stranger is left unread, and members are few (docs/operations.md).
    Carries { first: FIRST_MESSAGE_BYTES_MAX, later, unread: 0, ends: false }
}

/// The client of `raft::network` relies on these: FAILED_PRECONDITION is a refusal to show to the
/// operator, RESOURCE_EXHAUSTED a full disk, ABORTED says that another node leads.
fn status(rejected: Rejected) -> Status {
    let message = rejected.to_string();
    match rejected {
        Rejected::Refused(_) | Rejected::NotAgreed { .. } => Status::failed_precondition(message),
        Rejected::Malformed(_) => Status::invalid_argument(message),
        Rejected::NotLeader => Status::aborted(message),
        Rejected::DiskFull => Status::resource_exhausted(message),
        Rejected::Superseded => Status::cancelled(message),
        Rejected::Failed(_) => Status::internal(message),
        Rejected::Parked(_) | Rejected::Stalled(_) | Rejected::Stopped(_) => {
            Status::unavailable(message)
        }
    }
}

/// The account of the connection by which a request came.
fn account<T>(request: &Request<T>) -> Account {
    let account = request.extensions().get::<Account>();
    account.expect("every connection has an account").clone()
}

/// As [`status`]. Callers that are no members come again and again: their connections end.
fn refusal(account: &Account) -> impl Fn(Rejected) -> Status + use<> {
    let account = account.clone();
    move |rejected| {
        if matches!(rejected, Rejected::Refused(_) | Rejected::Malformed(_)) {
            account.note_refused();
        }
        status(rejected)
    }
}

#[tonic::async_trait]
impl<SM: Machine> Peer for PeerService<SM> {
    type AppendStream = Pin<Box<dyn Stream<Item = Result<peer::AppendReply, Status>> + Send>>;

    async fn append(
        &self,
        request: Request<Streaming<peer::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let refusal = refusal(&account(&request));
        let replies = self.0.append(request.into_inner()).await.map_err(&refusal)?;
        Ok(Response::new(Box::pin(replies.map(move |reply| reply.map_err(&refusal)))))
    }

    async fn append_one(
        &self,
        request: Request<peer::AppendRequest>,
    ) -> Result<Response<peer::AppendReply>, Status> {
        let refusal = refusal(&account(&request));
        let reply = self.0.append_one(request.into_inner()).await;
        reply.map(Response::new).map_err(refusal)
    }

    async fn vote(
        &self,
        request: Request<peer::VoteRequest>,
    ) -> Result<Response<peer::VoteReply>, Status> {
        let refusal = refusal(&account(&request));
        let reply = self.0.vote(request.into_inner()).await;
        reply.map(Response::new).map_err(refusal)
    }

    async fn transfer_leader(
        &self,
        request: Request<peer::TransferLeaderRequest>,
    ) -> Result<Response<peer::TransferLeaderReply>, Status> {
        let refusal = refusal(&account(&request));
        let reply = self.0.transfer_leader(request.into_inner()).await;
        reply.map(Response::new).map_err(refusal)
    }

    async fn snapshot_offset(
        &self,
        request: Request<peer::SnapshotOffsetRequest>,
    ) -> Result<Response<peer::SnapshotOffsetReply>, Status> {
        let refusal = refusal(&account(&request));
        let reply = self.0.snapshot_offset(request.into_inner()).await;
        reply.map(Response::new).map_err(refusal)
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<peer::InstallSnapshotRequest>>,
    ) -> Result<Response<peer::InstallSnapshotReply>, Status> {
        let refusal = refusal(&account(&request));
        let reply = self.0.install_snapshot(request.into_inner()).await;
        reply.map(Response::new).map_err(refusal)
    }

    async fn standing(
        &self,
        request: Request<peer::StandingRequest>,
    ) -> Result<Response<peer::StandingReply>, Status> {
        let refusal = refusal(&account(&request));
        let reply = self.0.standing(request.into_inner()).await;
        reply.map(Response::new).map_err(refusal)
    }

    async fn propose(
        &self,
        request: Request<peer::ProposeRequest>,
    ) -> Result<Response<peer::ProposeReply>, Status> {
        let refusal = refusal(&account(&request));
        let reply = self.0.propose(request.into_inner()).await;
        reply.map(Response::new).map_err(refusal)
    }
}
