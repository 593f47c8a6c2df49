//! AppendEntries as a stream: requests go out as they come, replies are read as they arrive, and
//! many are in flight in between.
//!
//! Everything runs inside the stream that openraft polls, and nothing is spawned: when openraft
//! drops it, the input is dropped at that moment too. That matters, because openraft's input
//! holds a lock that its next stream needs.
//!
//! **Invariant:** reply `n` answers request `n`; one that does not fit its request ends the
//! stream.
//! **Invariant:** more is never in flight than [`REQUESTS_MAX`] requests, nor, but for a single
//! request, than [`BYTES_MAX`].
//!
//! A request without entries that follows others only says how far the log is committed. It is
//! held back for a moment, since under load the next entries come soon and say so too. openraft
//! counts answers by log id: the one to those entries answers for the request that never went.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use lockstep_proto::peer;
use openraft::base::BoxStream;
use openraft::entry::RaftEntry as _;
use openraft::errors::{NetworkError, RPCError, Unreachable};
use openraft::network::{RPCOption, RPCTypes};
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::client::{Peer, ready};
use super::connections::Link;
use super::known::Known;
use super::payload;
use crate::raft::store::convert::{log_id_from_raft, vote_from_raft};
use crate::raft::type_config::{RaftLogId, RaftVote, TypeConfig};

/// Requests in flight, at most.
pub(super) const REQUESTS_MAX: usize = 64;

/// Bytes of entries in flight, at most; a single request may be larger.
const BYTES_MAX: usize = 32 << 20;

/// Opening a stream takes at most this, on a machine that is overloaded but alive.
const SETUP_TIMEOUT: Duration = Duration::from_secs(2);

/// While something is in flight a reply must come within this, and more for what is on its way
/// at [`BYTES_PER_MS_MIN`]. Heartbeats have their own connection, so this is only for getting
/// unstuck.
const STALL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a peer may learn later than it could how far the log is committed. Clients that come
/// back at once need less, and a reader of a follower does not notice it.
const COMMIT_HOLD: Duration = Duration::from_millis(2);

/// The slowest link that is still one: 1 MiB/s.
const BYTES_PER_MS_MIN: usize = 1 << 10;

type AppendResult = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

/// A request that this node could not even write down: a fault of its own log.
pub(super) fn unsendable(error: &payload::Error) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(format!("cannot send entries: {error}")))
}

/// What a request allows its reply to say.
pub(super) struct Expected {
    vote: RaftVote,
    previous: Option<RaftLogId>,
    last: Option<RaftLogId>,
    bytes: usize,
}

impl Expected {
    pub(super) fn of(request: &AppendEntriesRequest<TypeConfig>) -> Self {
        let last = request.entries.last().map(|entry| entry.log_id());
        let (vote, previous) = (request.vote, request.prev_log_id);
        Self { vote, previous, last: last.or(previous), bytes: 0 }
    }

    /// The reply, if it can be one to this request. A false acknowledgement would count towards
    /// a quorum.
    pub(super) fn check(
        &self,
        peer: &Peer,
        payload: &[u8],
    ) -> Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>> {
        let result =
            payload::decode_append_result(payload).map_err(|error| peer.nonsense(error))?;
        let fits = match &result {
            Ok(matched) => *matched == self.last,
            Err(StreamAppendError::Conflict(at)) => Some(at) == self.previous.as_ref(),
            Err(StreamAppendError::HigherVote(vote)) => {
                peer.check_term(&self.vote, vote)?;
                true
            }
        };
        if fits { Ok(result) } else { Err(peer.nonsense("it does not answer the request")) }
    }
}

/// Opens the stream to a peer; the returned one yields a result for each request of `input`, in
/// order, and ends after `input` has ended or after the first that is not a success.
pub(super) fn open<'s, S>(
    peer: Arc<Peer>,
    link: &Link,
    input: S,
    option: RPCOption,
) -> impl Future<Output = Result<BoxStream<'s, AppendResult>, RPCError<TypeConfig>>> + use<'s, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
{
    let ready = ready(&peer, link);
    async move {
        let (mut link, hello) = ready?;
        let (requests, body) = mpsc::channel(REQUESTS_MAX);
        let first = peer::AppendRequest { hello: Some(hello), ..Default::default() };
        let body = futures::stream::once(async { first }).chain(ReceiverStream::new(body));
        let limit = SETUP_TIMEOUT.max(option.soft_ttl());
        let replies = peer.answer(RPCTypes::AppendEntries, limit, link.append(body)).await?;
        let pipeline = Pipeline {
            peer,
            input: Some(input),
            requests,
            replies,
            held: None,
            release: Box::pin(tokio::time::sleep(COMMIT_HOLD)),
            sent: None,
            in_flight: VecDeque::with_capacity(REQUESTS_MAX),
            bytes_in_flight: 0,
            moved: Instant::now(),
            stall: Box::pin(tokio::time::sleep(STALL_TIMEOUT)),
            takes_entries: false,
        };
        let stream = futures::stream::unfold(Some(pipeline), |pipeline| async {
            let mut pipeline = pipeline?;
            let result = pipeline.next().await?;
            let more = matches!(result, Ok(Ok(_))).then_some(pipeline);
            Some((result, more))
        });
        Ok(Box::pin(stream) as BoxStream<'s, AppendResult>)
    }
}

struct Pipeline<S> {
    peer: Arc<Peer>,
    /// `None` once it has ended.
    input: Option<S>,
    /// Says nothing but how far the log is committed, and waits for entries to go with.
    held: Option<AppendEntriesRequest<TypeConfig>>,
    /// When what is held goes alone.
    release: Pin<Box<Sleep>>,
    /// The last entry of the last request that went.
    sent: Option<RaftLogId>,
    /// As long as a request that waits in it counts as in flight, and a held one has its place, it
    /// cannot be full.
    requests: mpsc::Sender<peer::AppendRequest>,
    replies: Streaming<peer::AppendReply>,
    in_flight: VecDeque<Expected>,
    bytes_in_flight: usize,
    /// When the last reply came, or the first request after a pause went.
    moved: Instant,
    stall: Pin<Box<Sleep>>,
    /// Entries were taken on this stream: an alarm about the peer's disk is over.
    takes_entries: bool,
}

enum Event {
    Request(Option<AppendEntriesRequest<TypeConfig>>),
    Reply(Option<Result<peer::AppendReply, Status>>),
    ReleaseTimer,
    StallTimer,
}

impl<S> Pipeline<S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    /// The next result; `None` after the last.
    async fn next(&mut self) -> Option<AppendResult> {
        while self.input.is_some() || !self.in_flight.is_empty() {
            let failed = match self.event().await {
                Event::Reply(reply) => return Some(self.take_reply(reply)),
                Event::Request(Some(request)) => self.take_request(request),
                Event::Request(None) => {
                    self.input = None;
                    self.release()
                }
                Event::ReleaseTimer => self.release(),
                Event::StallTimer => self.check_stall(),
            };
            if let Err(error) = failed {
                return Some(Err(error));
            }
        }
        None
    }

    async fn event(&mut self) -> Event {
        // What is held may have to go at any time.
        let requests = self.in_flight.len() + usize::from(self.held.is_some());
        let room = requests < REQUESTS_MAX && self.bytes_in_flight < BYTES_MAX;
        let idle = self.in_flight.is_empty();
        tokio::select! {
            // Acknowledgements first: they are what commits. Each request brings one, so they
            // cannot keep requests from going out.
            biased;
            reply = self.replies.next() => Event::Reply(reply),
            request = next_request(&mut self.input), if room => Event::Request(request),
            () = &mut self.release, if self.held.is_some() => Event::ReleaseTimer,
            () = &mut self.stall, if !idle => Event::StallTimer,
        }
    }

    fn take_request(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> Result<(), RPCError<TypeConfig>> {
        if let Some(held) = self.held.take_if(|held| !says_more(&request, held)) {
            self.send(held)?;
        }
        if request.entries.is_empty() && self.sent.is_some() && request.prev_log_id == self.sent {
            // What is held already has waited for this long: its time goes on.
            if self.held.replace(request).is_none() {
                self.release.as_mut().reset(Instant::now() + COMMIT_HOLD);
            }
            return Ok(());
        }
        self.held = None;
        self.send(request)
    }

    /// Sends what is held.
    fn release(&mut self) -> Result<(), RPCError<TypeConfig>> {
        self.held.take().map_or(Ok(()), |held| self.send(held))
    }

    fn send(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> Result<(), RPCError<TypeConfig>> {
        let mut expected = Expected::of(&request);
        self.sent = expected.last;
        let message = payload::encode_append(request).map_err(|error| unsendable(&error))?;
        expected.bytes = message.entries.iter().map(bytes::Bytes::len).sum();
        if self.in_flight.is_empty() {
            self.moved = Instant::now();
        }
        self.bytes_in_flight += expected.bytes;
        self.in_flight.push_back(expected);
        // A channel that is closed means a stream that has ended; the replies tell how.
        self.requests.try_send(message).ok();
        Ok(())
    }

    fn take_reply(&mut self, reply: Option<Result<peer::AppendReply, Status>>) -> AppendResult {
        let reply = match reply {
            Some(Ok(reply)) => reply,
            Some(Err(status)) => return Err(self.peer.failure(&status)),
            None => return Err(self.broken("the peer closed the stream")),
        };
        let Some(expected) = self.in_flight.pop_front() else {
            return Err(self.peer.nonsense("a reply to no request"));
        };
        self.bytes_in_flight -= expected.bytes;
        self.moved = Instant::now();
        if expected.bytes > 0 && !self.takes_entries {
            self.takes_entries = true;
            self.peer.local.takes_entries(self.peer.target);
        }
        let result = expected.check(&self.peer, &reply.payload)?;
        if let Ok(matched) = &result {
            let last = matched.as_ref().map(log_id_from_raft);
            let term = vote_from_raft(&expected.vote).term;
            self.peer.acknowledged(Known { term, last });
        }
        Ok(result)
    }

    /// The timer is only moved when it fires, not at each of many replies.
    fn check_stall(&mut self) -> Result<(), RPCError<TypeConfig>> {
        let transit_ms = u64::try_from(self.bytes_in_flight / BYTES_PER_MS_MIN);
        let transit = Duration::from_millis(transit_ms.expect("a usize fits"));
        let limit = STALL_TIMEOUT + transit;
        if self.moved.elapsed() >= limit {
            return Err(self.peer.timeout(RPCTypes::AppendEntries, limit));
        }
        self.stall.as_mut().reset(self.moved + limit);
        Ok(())
    }

    fn broken(&self, what: &str) -> RPCError<TypeConfig> {
        let text = format!("node {}: {what}", self.peer.target);
        RPCError::Network(NetworkError::from_string(text))
    }
}

/// True when a peer that gets `request` needs no `held`, which has no entries.
fn says_more(
    request: &AppendEntriesRequest<TypeConfig>,
    held: &AppendEntriesRequest<TypeConfig>,
) -> bool {
    request.vote == held.vote
        && request.prev_log_id == held.prev_log_id
        && request.leader_commit >= held.leader_commit
}

/// The next request; waits for ever once there will be none, as `None` was seen already.
async fn next_request<S>(input: &mut Option<S>) -> Option<AppendEntriesRequest<TypeConfig>>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    match input {
        Some(input) => input.next().await,
        None => std::future::pending().await,
    }
}
