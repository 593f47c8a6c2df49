//! Counts the bytes of every call, in and out, and bounds how they come in.
//!
//! What has come of a message that is not whole counts as the whole: the decoder makes room for
//! it at once. A message must be whole within a time, and may have no more bytes than its method
//! carries. What goes out counts until it is written to the socket.
//!
//! **Invariant:** whatever ends a call here ends it with an error that carries an `ErrorInfo`.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::BodyExt as _;
use pin_project_lite::pin_project;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::Status;
use tonic::body::Body;

use super::around::{Answer, Answering, Around};
use crate::api::door::{Drain, Error};
use crate::budget::{Account, Full, Held};
use crate::raft;

/// A message must be whole so long after its first byte. The request of a unary call must have
/// ended so long after the call began, and before its caller waits no longer.
const RECEIVE_MAX: Duration = Duration::from_secs(10);
/// What a call takes beside its messages, in bytes, rounded up: its headers, tasks and buffers.
const CALL_BYTES: usize = 8 << 10;
/// Bytes before a message (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX_BYTES: usize = 5;
/// Shorter frames are not worth counting: HTTP/2 bounds how many wait.
const FRAME_BYTES_MIN: usize = 1 << 10;

/// What a method takes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Carries {
    /// Longest first message, in bytes.
    pub(super) first: usize,
    /// Longest later message; nothing follows the first of a unary call.
    pub(super) later: Option<usize>,
    /// What may gather in the call's window, unread, in bytes.
    pub(super) unread: usize,
    /// It ends by itself: a node that stops waits for it.
    pub(super) ends: bool,
}

/// Says what the method at a path takes in.
pub(super) type Rules = fn(&str) -> Carries;

/// Counts calls and their bytes.
#[derive(Clone)]
pub(super) struct Meter {
    /// What methods take in.
    pub(super) rules: Rules,
    /// How the server is drained.
    pub(super) drain: Drain,
    /// Whoever sends what is over a limit counts as refused: no node does so.
    pub(super) is_strict: bool,
}

impl Around for Meter {
    type Call<F: Answering> = Counted<F>;

    fn around<F: Answering>(
        &self,
        request: Request<Body>,
        inner: impl FnOnce(Request<Body>) -> F,
    ) -> Counted<F> {
        Counted { metered: self.call(request, inner, RECEIVE_MAX) }
    }
}

impl Meter {
    /// Makes a call by `inner`, which counts. The message of a unary call must be whole `within` a
    /// time.
    pub(super) fn call<F>(
        &self,
        request: Request<Body>,
        inner: impl FnOnce(Request<Body>) -> F,
        within: Duration,
    ) -> Metered<F> {
        let account = request.extensions().get::<Account>();
        let account = account.expect("every connection has an account");
        let carries = (self.rules)(request.uri().path());
        match self.begin(account, carries) {
            Ok(call) => {
                let (account, within) = (account.clone(), within.min(RECEIVE_MAX));
                let is_strict = self.is_strict;
                let received = |body| Received::new(body, account, carries, within, is_strict);
                let request = request.map(|body| Body::new(received(body)));
                Metered::Begun { answer: inner(request), call: Some(call) }
            }
            Err(error) => Metered::Refused { error: Some(error) },
        }
    }

    fn begin(&self, account: &Account, carries: Carries) -> Result<Call, raft::Error> {
        let (held, _place) = hold(account, carries).map_err(|_| raft::Error::Overloaded)?;
        let under_way = self.drain.enter()?;
        Ok(Call { held, _place, _under_way: carries.ends.then_some(under_way) })
    }
}

pin_project! {
    /// A call that counts, until it is answered; what it has then goes with its response.
    #[project = MeteredProjection]
    pub(super) enum Metered<F> {
        /// It was let in.
        Begun {
            #[pin]
            answer: F,
            call: Option<Call>,
        },
        /// There was no room.
        Refused { error: Option<raft::Error> },
    }
}

impl<F: Answering> Future for Metered<F> {
    type Output = (Response<Body>, Option<Call>);

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            MeteredProjection::Begun { answer, call } => {
                let Ok(response) = ready!(answer.poll(context));
                Poll::Ready((response, call.take()))
            }
            MeteredProjection::Refused { error } => {
                let error = error.take().expect("a future that is ready is polled no more");
                Poll::Ready((Status::from(Error::from(error)).into_http(), None))
            }
        }
    }
}

pin_project! {
    /// A call that counts and is changed in no other way.
    pub(super) struct Counted<F> {
        #[pin]
        metered: Metered<F>,
    }
}

impl<F: Answering> Future for Counted<F> {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        let (response, call) = ready!(self.project().metered.poll(context));
        Poll::Ready(Ok(sent(response, call, |frame| frame)))
    }
}

/// What a call has until all of its response is sent: bytes, its place among the streams of its
/// connection, and that a stop waits for it.
pub(super) struct Call {
    held: Held,
    _place: Option<OwnedSemaphorePermit>,
    _under_way: Option<TaskTrackerToken>,
}

fn hold(account: &Account, carries: Carries) -> Result<(Held, Option<OwnedSemaphorePermit>), Full> {
    let place = carries.later.map(|_| account.open_stream()).transpose()?;
    Ok((account.hold(CALL_BYTES + carries.unread)?, place))
}

/// A response whose frames count until they are written to the socket. Each goes through `pass`.
pub(super) fn sent(
    response: Response<Body>,
    call: Option<Call>,
    mut pass: impl FnMut(Frame<Bytes>) -> Frame<Bytes> + Send + 'static,
) -> Response<Body> {
    let Some(call) = call else { return response };
    let count = move |frame| {
        pass(frame).map_data(|bytes| {
            if bytes.len() < FRAME_BYTES_MIN {
                return bytes;
            }
            let _held = call.held.owner().keep(bytes.len());
            Bytes::from_owner(Outgoing { bytes, _held })
        })
    };
    response.map(|body| Body::new(body.map_frame(count)))
}

/// The body of a request.
struct Received {
    body: Body,
    account: Account,
    messages: Messages,
    /// What is held for the message that is not whole.
    partial: Option<Held>,
    /// Why nothing more is taken, once what came before has been.
    refused: Option<Box<Error>>,
    /// Since when something is waited for that must come, and for how long it may be.
    since: Option<Instant>,
    within: Duration,
    late: Option<Pin<Box<Sleep>>>,
    is_strict: bool,
}

impl Received {
    fn new(
        body: Body,
        account: Account,
        carries: Carries,
        within: Duration,
        is_strict: bool,
    ) -> Self {
        let messages =
            Messages { carries, seen: 0, prefix: Prefix::default(), missing: 0, length: 0 };
        let (partial, refused, since, late) = (None, None, None, None);
        Self { body, account, messages, partial, refused, since, within, late, is_strict }
    }

    /// Counts what has come, and returns how many bytes of it may go on: all, or those before a
    /// message that is refused. All whole messages before have been taken, or this one would not
    /// have been asked for.
    fn count(&mut self, bytes: &Bytes) -> Result<usize, Error> {
        if self.messages.is_whole(bytes) {
            return Ok(bytes.len());
        }
        let before = self.messages.partial();
        if let Err(refused) = self.messages.advance(bytes.clone()) {
            let (good, error) = *refused;
            self.refused = Some(Box::new(error));
            if self.is_strict {
                self.account.note_refused();
            }
            return Ok(good);
        }
        let partial = self.messages.partial();
        if partial != before {
            self.partial = None;
            if let Some(bytes) = partial {
                let held = self.account.hold(bytes);
                self.partial = Some(held.map_err(|_| raft::Error::Overloaded)?);
            }
        }
        self.late = None;
        // A unary call waits for the end of its request as well.
        if self.messages.carries.later.is_some() {
            self.since = partial.map(|_| self.since.unwrap_or_else(Instant::now));
        }
        Ok(bytes.len())
    }

    fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<()> {
        // The end of the request of a unary call is waited for from the first time that it is not
        // there: most often never, and a clock need not be read.
        if self.messages.carries.later.is_none() {
            self.since.get_or_insert_with(Instant::now);
        }
        let Some(since) = self.since else { return Poll::Pending };
        let sleep = || Box::pin(tokio::time::sleep_until(since + self.within));
        self.late.get_or_insert_with(sleep).as_mut().poll(context)
    }
}

impl http_body::Body for Received {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if let Some(refused) = this.refused.take() {
            return Poll::Ready(Some(Err((*refused).into())));
        }
        let frame = match Pin::new(&mut this.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(end) => return Poll::Ready(end),
            Poll::Pending => {
                ready!(this.poll_late(context));
                let late = Error::from(raft::Error::DeadlineBeforeProposal);
                return Poll::Ready(Some(Err(late.into())));
            }
        };
        let Some(bytes) = frame.data_ref() else { return Poll::Ready(Some(Ok(frame))) };
        let good = match this.count(bytes) {
            Ok(good) if good == bytes.len() => return Poll::Ready(Some(Ok(frame))),
            Ok(good) => bytes.slice(..good),
            Err(error) => return Poll::Ready(Some(Err(error.into()))),
        };
        match this.refused.take_if(|_| good.is_empty()) {
            Some(refused) => Poll::Ready(Some(Err((*refused).into()))),
            None => Poll::Ready(Some(Ok(Frame::data(good)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.refused.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// What has come of the bytes before a message.
#[derive(Default)]
struct Prefix {
    bytes: [u8; PREFIX_BYTES],
    filled: usize,
}

impl Prefix {
    /// Takes what is missing; the length of the message once it is whole.
    fn take(&mut self, bytes: &mut Bytes) -> Option<u32> {
        let taken = (PREFIX_BYTES - self.filled).min(bytes.len());
        bytes.copy_to_slice(&mut self.bytes[self.filled..][..taken]);
        self.filled += taken;
        let [_, length @ ..] = self.bytes;
        (self.filled == PREFIX_BYTES).then(|| u32::from_be_bytes(length))
    }
}

/// Where one message ends and the next begins.
struct Messages {
    carries: Carries,
    /// Messages that began.
    seen: u64,
    /// What has come of the next prefix.
    prefix: Prefix,
    /// Bytes of the message that have not come.
    missing: usize,
    length: usize,
}

impl Messages {
    /// Takes bytes that are the first message and nothing else, as most often; false where they are
    /// not.
    fn is_whole(&mut self, bytes: &Bytes) -> bool {
        let [_, length @ ..] = match bytes.first_chunk::<PREFIX_BYTES>() {
            Some(prefix) if self.seen == 0 && self.prefix.filled == 0 => *prefix,
            _ => return false,
        };
        let body = bytes.len() - PREFIX_BYTES;
        let is_whole = usize::try_from(u32::from_be_bytes(length)) == Ok(body);
        let fits = is_whole && body <= self.carries.first;
        if fits {
            self.seen = 1;
            self.length = body;
        }
        fits
    }

    /// Goes on by so many bytes; where a message is refused, says how many came before it.
    fn advance(&mut self, mut bytes: Bytes) -> Result<(), Box<(usize, Error)>> {
        let all = bytes.len();
        while bytes.has_remaining() {
            let body = self.missing.min(bytes.len());
            bytes.advance(body);
            self.missing -= body;
            if self.missing > 0 {
                return Ok(());
            }
            let before = all - bytes.len();
            if let Some(length) = self.prefix.take(&mut bytes) {
                self.begin(length).map_err(|error| Box::new((before, error)))?;
            }
        }
        Ok(())
    }

    fn begin(&mut self, length: u32) -> Result<(), Error> {
        let limit = match (self.seen, self.carries.later) {
            (0, _) => self.carries.first,
            (_, later) => later.unwrap_or(0),
        };
        self.length = usize::try_from(length).unwrap_or(usize::MAX);
        if self.length > limit {
            let limit = u64::try_from(limit).unwrap_or(u64::MAX);
            let length = length.into();
            return Err(raft::Error::TooLarge { what: "the message", length, limit }.into());
        }
        self.seen += 1;
        self.missing = self.length;
        self.prefix = Prefix::default();
        Ok(())
    }

    /// Bytes to make room for while a message is not whole.
    fn partial(&self) -> Option<usize> {
        match (self.missing, self.prefix.filled) {
            (0, 0) => None,
            (0, prefix) => Some(prefix),
            _ => Some(PREFIX_BYTES + self.length),
        }
    }
}

/// A frame on its way to the socket.
struct Outgoing {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Outgoing {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(first: usize, later: Option<usize>) -> Messages {
        let carries = Carries { first, later, unread: 0, ends: true };
        Messages { carries, seen: 0, prefix: Prefix::default(), missing: 0, length: 0 }
    }

    fn message(length: u8) -> Vec<u8> {
        [vec![0, 0, 0, 0, length], vec![7; length.into()]].concat()
    }

    /// However the bytes are cut, what is not whole counts as the whole, and nothing else does.
    #[test]
    fn partial_messages_count_whole() {
        let all = [message(3), message(0), message(9)].concat();
        for step in 1..all.len() {
            let mut messages = messages(9, Some(9));
            for (number, piece) in all.chunks(step).enumerate() {
                messages.advance(Bytes::copy_from_slice(piece)).unwrap();
                let at = (number * step + piece.len()).min(all.len());
                let expected = match at {
                    8 | 13 | 27 => None,
                    1..8 if at < 5 => Some(at),
                    1..8 => Some(8),
                    9..13 => Some(at - 8),
                    _ if at - 13 < 5 => Some(at - 13),
                    _ => Some(14),
                };
                assert_eq!(messages.partial(), expected, "at {at} in steps of {step}");
            }
        }
    }

    /// A message over the limit of its place is refused as soon as its length is known.
    #[test]
    fn limits_are_of_the_place() {
        let first = |length| messages(4, Some(8)).advance(message(length).into()).is_ok();
        assert!(first(4) && !first(5));
        let second = |length: u8, later| {
            let both = [message(1), message(length)].concat();
            messages(4, later).advance(both.into()).is_ok()
        };
        assert!(second(8, Some(8)) && !second(9, Some(8)) && !second(1, None));
        // What came before it goes on.
        let three = [message(1), message(2), message(9)].concat();
        let refused = messages(4, Some(8)).advance(three.into());
        assert_eq!(refused.unwrap_err().0, 6 + 7);
    }

    /// A first message that comes whole and alone is told by one look. The next has the limit of
    /// its place.
    #[test]
    fn a_whole_message_is_told_by_one_look() {
        let look = |bytes: Vec<u8>| messages(4, Some(8)).is_whole(&bytes.into());
        assert!(look(message(4)) && look(message(0)));
        assert!(!look(message(5)), "it is over the limit");
        assert!(!look(message(4)[..8].to_vec()) && !look(vec![0; 4]), "it is not whole");
        assert!(!look([message(1), message(2)].concat()), "another follows");
        let mut messages = messages(4, Some(8));
        assert!(messages.is_whole(&message(4).into()));
        assert_eq!(messages.partial(), None);
        assert!(!messages.is_whole(&message(4).into()), "it is not the first");
        assert!(messages.advance(message(8).into()).is_ok());
    }
}
