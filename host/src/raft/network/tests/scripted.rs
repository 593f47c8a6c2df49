//! The append stream against a peer that answers as a script says.

use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use lockstep_proto::peer;
use lockstep_proto::peer::peer_server::{Peer, PeerServer};
use openraft::errors::{RPCError, StreamingError};
use openraft::network::{RPCOption, RaftNetworkV2 as _};
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult};
use openraft::{EntryPayload, RaftNetworkFactory as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::node::{AbortOnDrop, CLUSTER, local, member};
use super::snapshots::{build, leader_vote};
use crate::raft::network::client::Client;
use crate::raft::network::{Network, TERM_JUMP_MAX, payload, pipeline};
use crate::raft::store::convert::{log_id_to_raft, vote_to_raft};
use crate::raft::type_config::{Entry, EntryBytes, RaftLogId, TypeConfig};
use crate::storage::snapshot::SnapshotDir;
use crate::types::{LogId, NodeId, Vote};

type Results = Vec<Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>;

enum Script {
    /// Reads `held` requests before it gives the first of `replies`, then ends, or stays silent.
    Fixed { held: usize, replies: Vec<StreamAppendResult<TypeConfig>>, then_silent: bool },
    /// Answers each request with success, and shows how many entries it had.
    Agree(mpsc::UnboundedSender<usize>),
    /// Cuts the file of the snapshot that it is about to be sent.
    Cuts(PathBuf),
}

fn fixed(held: usize, replies: Vec<StreamAppendResult<TypeConfig>>) -> Script {
    Script::Fixed { held, replies, then_silent: false }
}

type Replies = Pin<Box<dyn Stream<Item = Result<peer::AppendReply, Status>> + Send>>;

impl Script {
    fn play(&self, mut requests: Streaming<peer::AppendRequest>) -> Replies {
        match self {
            Self::Fixed { held, replies, then_silent } => {
                let (held, replies) = (*held, replies.clone());
                let held = async move {
                    for _ in 0..held {
                        requests.next().await.unwrap().unwrap();
                    }
                    futures::stream::iter(replies.into_iter().map(reply))
                };
                let replies = futures::stream::once(held).flatten();
                if *then_silent {
                    return Box::pin(replies.chain(futures::stream::pending()));
                }
                Box::pin(replies)
            }
            Self::Cuts(_) => Box::pin(futures::stream::empty()),
            Self::Agree(seen) => {
                let seen = seen.clone();
                Box::pin(requests.map(move |request| {
                    let request = payload::decode_append(request?).unwrap();
                    seen.send(request.entries.len()).ok();
                    let last = request.entries.last().map(|entry| entry.log_id);
                    reply(Ok(last.or(request.prev_log_id)))
                }))
            }
        }
    }
}

fn reply(result: StreamAppendResult<TypeConfig>) -> Result<peer::AppendReply, Status> {
    Ok(peer::AppendReply { payload: payload::encode_append_result(&result), ..Default::default() })
}

#[tonic::async_trait]
impl Peer for Script {
    type AppendStream = Replies;

    async fn append(
        &self,
        request: Request<Streaming<peer::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let mut requests = request.into_inner();
        assert!(requests.next().await.unwrap()?.hello.is_some());
        Ok(Response::new(self.play(requests)))
    }

    async fn append_one(
        &self,
        _: Request<peer::AppendRequest>,
    ) -> Result<Response<peer::AppendReply>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn vote(
        &self,
        _: Request<peer::VoteRequest>,
    ) -> Result<Response<peer::VoteReply>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn transfer_leader(
        &self,
        _: Request<peer::TransferLeaderRequest>,
    ) -> Result<Response<peer::TransferLeaderReply>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn snapshot_offset(
        &self,
        _: Request<peer::SnapshotOffsetRequest>,
    ) -> Result<Response<peer::SnapshotOffsetReply>, Status> {
        let Self::Cuts(path) = self else {
            return Err(Status::unimplemented("not in the script"));
        };
        OpenOptions::new().write(true).open(path)?.set_len(10)?;
        Ok(Response::new(peer::SnapshotOffsetReply { offset: 0 }))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<peer::InstallSnapshotRequest>>,
    ) -> Result<Response<peer::InstallSnapshotReply>, Status> {
        let mut parts = request.into_inner();
        while parts.next().await.transpose()?.is_some() {}
        Err(Status::data_loss("it is not whole"))
    }

    async fn standing(
        &self,
        _: Request<peer::StandingRequest>,
    ) -> Result<Response<peer::StandingReply>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn propose(
        &self,
        _: Request<peer::ProposeRequest>,
    ) -> Result<Response<peer::ProposeReply>, Status> {
        Err(Status::unimplemented("not in the script"))
    }
}

/// A client of a scripted peer.
async fn client(script: Script) -> (Client, AbortOnDrop) {
    let (address, server) = serve(script).await;
    let (local, _) = local(1, Some(CLUSTER));
    let mut network = Network::new(local, &Default::default());
    (network.new_client(NodeId(2), &member(2, address)).await, server)
}

async fn serve(script: Script) -> (SocketAddr, AbortOnDrop) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder()
        .add_service(PeerServer::new(script))
        .serve_with_incoming(TcpListenerStream::new(listener));
    (address, AbortOnDrop(tokio::spawn(async { server.await.unwrap() })))
}

fn id(index: usize) -> RaftLogId {
    let index = u64::try_from(index).unwrap();
    log_id_to_raft(LogId { term: 1, node: NodeId(1), index })
}

/// Request `n` holds the one entry with index `n + 1`.
fn requests(count: usize) -> impl Iterator<Item = AppendEntriesRequest<TypeConfig>> {
    (0..count).map(|index| AppendEntriesRequest {
        vote: vote_to_raft(Vote { term: 1, node: NodeId(1), committed: true }),
        prev_log_id: Some(id(index)),
        entries: vec![Entry {
            log_id: id(index + 1),
            payload: EntryPayload::Normal(EntryBytes(b"entry".as_slice().into())),
        }],
        leader_commit: None,
    })
}

/// Says only that what request `n - 1` brought is committed.
fn commit(index: usize) -> AppendEntriesRequest<TypeConfig> {
    AppendEntriesRequest {
        vote: vote_to_raft(Vote { term: 1, node: NodeId(1), committed: true }),
        prev_log_id: Some(id(index)),
        entries: Vec::new(),
        leader_commit: Some(id(index)),
    }
}

fn option() -> RPCOption {
    RPCOption::new(Duration::from_millis(100))
}

/// Sends `count` requests and gathers everything that the stream yields.
async fn run(script: Script, count: usize) -> Results {
    let (mut client, _server) = client(script).await;
    let input = futures::stream::iter(requests(count));
    let output = client.stream_append(input, option()).await.unwrap();
    output.collect().await
}

fn matched(indices: std::ops::RangeInclusive<usize>) -> Vec<StreamAppendResult<TypeConfig>> {
    indices.map(|index| Ok(Some(id(index)))).collect()
}

/// All requests that may be in flight are sent before the first reply comes: a stream that waited
/// for each reply would never end here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_are_in_flight_at_once() {
    let count = pipeline::REQUESTS_MAX;
    let replies = matched(1..=count);
    let results = run(fixed(count, replies.clone()), count).await;
    let results: Vec<_> = results.into_iter().map(Result::unwrap).collect();
    assert_eq!(results, replies);
}

/// The stream yields one result for each request, in order, also when there are more than fit in
/// flight, and ends after the input.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_ends_after_its_input() {
    let count = 20 * pipeline::REQUESTS_MAX;
    let results = run(Script::Agree(mpsc::unbounded_channel().0), count).await;
    let results: Vec<_> = results.into_iter().map(Result::unwrap).collect();
    assert_eq!(results, matched(1..=count));
}

/// A conflict or a higher vote is passed on and is the last result.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_failure_is_the_last_result() {
    let higher = vote_to_raft(Vote { term: 9, node: NodeId(3), committed: false });
    for error in [StreamAppendError::Conflict(id(2)), StreamAppendError::HigherVote(higher)] {
        let mut replies = matched(1..=2);
        replies.push(Err(error));
        let results = run(fixed(4, replies.clone()), 4).await;
        let results: Vec<_> = results.into_iter().map(Result::unwrap).collect();
        assert_eq!(results, replies);
    }
}

/// A peer that hangs up with requests unanswered is an error, so that openraft sends them again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_ends_early_is_an_error() {
    let results = run(fixed(2, matched(1..=1)), 2).await;
    assert!(matches!(results[..], [Ok(Ok(_)), Err(RPCError::Network(_))]), "{results:?}");
}

/// An acknowledgement of what was not asked would count towards a quorum, so it is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_false_acknowledgement_is_refused() {
    let false_conflict = vec![Err(StreamAppendError::Conflict(id(5)))];
    for replies in [matched(2..=2), matched(0..=0), vec![Ok(None)], false_conflict] {
        let results = run(fixed(1, replies), 1).await;
        assert!(matches!(results[..], [Err(RPCError::Unreachable(_))]), "{results:?}");
    }
}

/// A term that elections cannot have made would use the terms up, were it adopted from an answer:
/// it is refused, and an alarm names the node and both terms.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_with_a_term_that_jumps_is_an_alarm() {
    for term in [1 + TERM_JUMP_MAX + 1, (1 << 62) - 1] {
        let higher = vote_to_raft(Vote { term, node: NodeId(2), committed: false });
        let script = fixed(1, vec![Err(StreamAppendError::HigherVote(higher))]);
        let (mut client, _server) = client(script).await;
        let peer = Arc::clone(&client.peer);
        let input = futures::stream::iter(requests(1));
        let results: Results = client.stream_append(input, option()).await.unwrap().collect().await;
        assert!(matches!(results[..], [Err(RPCError::Unreachable(_))]), "{results:?}");
        let alarm =
            format!("node 2 answers what no node would: to term 1 it answers with term {term}");
        assert_eq!(peer.local.alarms(), [alarm]);
    }
}

/// What only says how far the log is committed goes with the next entries, in their request, and
/// alone where none come. The first request of a stream is never held back: it may be a probe.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_goes_with_the_next_entries() {
    let (seen, mut entries) = mpsc::unbounded_channel();
    let (mut client, _server) = client(Script::Agree(seen)).await;
    let (sender, input) = mpsc::unbounded_channel();
    let input = UnboundedReceiverStream::new(input);
    let mut output = client.stream_append(input, option()).await.unwrap();
    let of_entries: Vec<_> = requests(3).collect();
    let mut with_commit = of_entries[1].clone();
    with_commit.leader_commit = Some(id(1));
    // One after the other without a pause: the second is taken up by the third.
    for request in [of_entries[0].clone(), commit(1), with_commit] {
        sender.send(request).unwrap();
    }
    assert_eq!(output.next().await.unwrap().unwrap(), Ok(Some(id(1))));
    assert_eq!(output.next().await.unwrap().unwrap(), Ok(Some(id(2))));
    // Nothing comes with it, so it goes by itself.
    sender.send(commit(2)).unwrap();
    assert_eq!(output.next().await.unwrap().unwrap(), Ok(Some(id(2))));
    // What comes next knows less than what is held: both go.
    sender.send(commit(2)).unwrap();
    sender.send(of_entries[2].clone()).unwrap();
    assert_eq!(output.next().await.unwrap().unwrap(), Ok(Some(id(2))));
    assert_eq!(output.next().await.unwrap().unwrap(), Ok(Some(id(3))));
    // The end of the input lets it go.
    sender.send(commit(3)).unwrap();
    drop(sender);
    assert_eq!(output.next().await.unwrap().unwrap(), Ok(Some(id(3))));
    assert!(output.next().await.is_none());
    drop(output);
    let entries: Vec<usize> = std::iter::from_fn(|| entries.try_recv().ok()).collect();
    assert_eq!(entries, [1, 1, 0, 0, 1, 0]);
}

/// A stream that begins with a request without entries sends it at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_is_not_held_back() {
    let (mut client, _server) = client(fixed(1, matched(4..=4))).await;
    let input = futures::stream::once(async { commit(4) }).chain(futures::stream::pending());
    let mut output = client.stream_append(Box::pin(input), option()).await.unwrap();
    assert_eq!(output.next().await.unwrap().unwrap(), Ok(Some(id(4))));
}

/// Dropping the stream drops its input at that moment: openraft's next stream needs a lock that
/// the input holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_input_is_dropped_with_the_stream() {
    struct Flag(Arc<AtomicBool>);
    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let dropped = Arc::new(AtomicBool::new(false));
    let flag = Flag(dropped.clone());
    let endless = futures::stream::iter(requests(1)).chain(futures::stream::pending());
    let input = endless.inspect(move |_| {
        let _ = &flag;
    });
    let script = Script::Fixed { held: 1, replies: matched(1..=1), then_silent: true };
    let (mut client, _server) = client(script).await;
    let mut output = client.stream_append(input, option()).await.unwrap();
    assert!(output.next().await.unwrap().unwrap().is_ok());
    drop(output);
    assert!(dropped.load(Ordering::SeqCst));
}

/// Nobody there: openraft is told to wait before it tries again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_not_there_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let (local, _) = local(1, Some(CLUSTER));
    let mut network = Network::new(local, &Default::default());
    for address in [address.to_string(), "no address".to_owned()] {
        let mut peer = member(2, "127.0.0.1:1".parse().unwrap());
        peer.peer_addr = address;
        let mut client = network.new_client(NodeId(2), &peer).await;
        let input = futures::stream::iter(requests(1));
        let error = client.stream_append(input, option()).await.err().unwrap();
        assert!(matches!(error, RPCError::Unreachable(_)), "{error:?}");
    }
}

/// A snapshot that goes bad while it is sent ends no node: openraft is told to try later, and the
/// next try finds and marks the damage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_goes_bad_on_its_way_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let snapshot = build(&SnapshotDir::open(folder.path()).unwrap(), 100);
    let (address, _server) = serve(Script::Cuts(snapshot.snapshot.path().to_owned())).await;
    let (local, _) = local(1, Some(CLUSTER));
    let mut network = Network::new(local, &Default::default());
    let mut client = network.new_snapshot_client(NodeId(2), &member(2, address)).await;
    for marked in [false, true] {
        let never = std::future::pending();
        let option = RPCOption::new(Duration::from_secs(30));
        let sent = client.full_snapshot(leader_vote(), snapshot.clone(), never, option).await;
        let Err(StreamingError::Unreachable(error)) = &sent else { panic!("{sent:?}") };
        assert!(error.to_string().contains("no snapshot goes to node 2"), "{error}");
        assert_eq!(snapshot.snapshot.damage().is_some(), marked);
    }
}
