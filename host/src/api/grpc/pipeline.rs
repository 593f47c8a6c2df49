//! Many commands of one client under way at once. One task reads them, hands them on in the order
//! read, and returns replies as they come; no task and no channel per command.
//!
//! Memory is bounded by not reading: while too much is under way, or the client does not take its
//! replies, requests stay in the client's flow-control window.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::StreamExt as _;
use futures::stream::{FuturesUnordered, Stream};

use crate::budget::Held;
use crate::config::limits;

/// Commands that one stream may have under way.
const IN_FLIGHT_MAX: usize = 16_384;
/// Bytes of commands that one stream may have under way (one command is always let in).
const IN_FLIGHT_BYTES_MAX: usize = 32 << 20;
/// Commands that are begun before others have the processor: as many as an entry holds. A node
/// with hundreds of busy streams sends its heartbeats between them.
const READ_AT_ONCE_MAX: usize = limits::ENTRY_COMMANDS_MAX;

/// The replies to a stream of requests. `S` gives requests; `B` begins one, and says how many bytes
/// it has; `F` runs it, and says so again beside its reply.
pub(super) struct Pipeline<S, B, F> {
    /// `None` once no more will be read.
    requests: Option<S>,
    begin: B,
    /// New futures are polled in the order pushed, since its ready queue is first in, first out:
    /// that is the order in which commands enter the log.
    running: FuturesUnordered<F>,
    running_bytes: usize,
    room: Room,
    /// What the client may have sent already, while no more is read.
    unread: Option<Held>,
    stop: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Why no more is read, where that is not the client's own end.
    end: Option<End>,
}

/// What a stream shares with the client's other streams and calls.
pub(super) struct Room {
    /// Whether they leave room.
    pub(super) has_room: Box<dyn Fn() -> bool + Send>,
    /// Keeps what may gather unread.
    pub(super) keep_unread: Box<dyn Fn() -> Held + Send>,
}

/// Why a stream ends before its client ends it. What was read has been answered by then, and what
/// was not is not applied.
#[derive(Debug)]
pub(super) enum End {
    /// The node stops.
    Stopped,
    /// A request could not be read.
    Broken(tonic::Status),
}

impl<S, Q, B, F, R> Pipeline<S, B, F>
where
    S: Stream<Item = Result<Q, tonic::Status>> + Unpin,
    B: FnMut(Q) -> (usize, F),
    F: Future<Output = (usize, R)>,
{
    /// Runs what `begin` makes of each request, while there is `room`: with nothing under way, one
    /// is let in. After `stop`, or a request that cannot be read, it reads no more, and ends with
    /// the reason once what is under way has been answered.
    pub(super) fn new(
        requests: S,
        stop: impl Future<Output = ()> + Send + 'static,
        room: Room,
        begin: B,
    ) -> Self {
        Self {
            requests: Some(requests),
            begin,
            running: FuturesUnordered::new(),
            running_bytes: 0,
            room,
            unread: None,
            stop: Box::pin(stop),
            end: None,
        }
    }

    fn has_room(&self) -> bool {
        let is_below =
            self.running.len() < IN_FLIGHT_MAX && self.running_bytes < IN_FLIGHT_BYTES_MAX;
        self.running.is_empty() || (is_below && (self.room.has_room)())
    }

    /// Starts as many requests as there are and as there is room for.
    fn read(&mut self, context: &mut Context<'_>) {
        if self.requests.is_some() && self.stop.as_mut().poll(context).is_ready() {
            self.requests = None;
            self.end = Some(End::Stopped);
        }
        let mut left = READ_AT_ONCE_MAX;
        while self.has_room()
            && let Some(requests) = &mut self.requests
        {
            if left == 0 {
                context.waker().wake_by_ref();
                break;
            }
            left -= 1;
            match requests.poll_next_unpin(context) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(request))) => {
                    let (bytes, running) = (self.begin)(request);
                    self.running_bytes += bytes;
                    self.running.push(running);
                }
                Poll::Ready(Some(Err(status))) => {
                    self.requests = None;
                    self.end = Some(End::Broken(status));
                }
                // The client has sent all it wanted.
                Poll::Ready(None) => self.requests = None,
            }
        }
        // Read to its end for now, or to be read no further for now.
        if self.requests.is_none() || self.has_room() {
            self.unread = None;
        } else if self.unread.is_none() {
            self.unread = Some((self.room.keep_unread)());
        }
    }
}

impl<S, Q, B, F, R> Stream for Pipeline<S, B, F>
where
    S: Stream<Item = Result<Q, tonic::Status>> + Unpin,
    B: FnMut(Q) -> (usize, F) + Unpin,
    F: Future<Output = (usize, R)>,
{
    type Item = Result<R, End>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<R, End>>> {
        let this = &mut *self;
        this.read(context);
        match this.running.poll_next_unpin(context) {
            Poll::Ready(Some((bytes, reply))) => {
                this.running_bytes -= bytes;
                Poll::Ready(Some(Ok(reply)))
            }
            Poll::Ready(None) if this.requests.is_none() => Poll::Ready(this.end.take().map(Err)),
            // With nothing under way there is room, so `read` waits for the next request.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use futures::channel::{mpsc, oneshot};

    use super::*;
    use crate::budget::{Account, Budget};

    type Request = Result<usize, tonic::Status>;

    const UNREAD: usize = 1_000;

    fn room(has_room: impl Fn() -> bool + Send + 'static) -> Room {
        room_of(&Budget::new(1 << 30).open(), has_room)
    }

    fn room_of(account: &Account, has_room: impl Fn() -> bool + Send + 'static) -> Room {
        let account = account.clone();
        let keep_unread = Box::new(move || account.keep(UNREAD));
        Room { has_room: Box::new(has_room), keep_unread }
    }

    /// Commands begin in the order sent, and replies come as commands finish, not as sent.
    #[tokio::test]
    async fn replies_come_as_commands_finish() {
        let (mut gates, waits): (Vec<_>, Vec<_>) =
            (0..3).map(|_| oneshot::channel::<()>()).map(|(s, r)| (Some(s), Some(r))).unzip();
        let mut waits = waits;
        let requests = futures::stream::iter((0..3).map(Request::Ok));
        let mut replies =
            Pipeline::new(requests, futures::future::pending(), room(|| true), move |request| {
                let wait: Option<oneshot::Receiver<()>> = waits[request].take();
                let running = async move {
                    let _ = wait.expect("each request comes once").await;
                    (1, request)
                };
                (1, running.boxed())
            });
        for request in [2, 0, 1] {
            gates[request].take().unwrap().send(()).unwrap();
            assert_eq!(replies.next().await.unwrap().unwrap(), request);
        }
        assert!(replies.next().await.is_none());
    }

    /// First polls, which put commands into the log, happen in the order sent, however many wait.
    #[tokio::test]
    async fn commands_start_in_order() {
        let started = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let requests = futures::stream::iter((0..5000).map(Request::Ok));
        let log = std::sync::Arc::clone(&started);
        let replies =
            Pipeline::new(requests, futures::future::pending(), room(|| true), move |request| {
                let log = std::sync::Arc::clone(&log);
                let running = async move {
                    log.lock().unwrap().push(request);
                    tokio::task::yield_now().await;
                    (1, request)
                };
                (1, running.boxed())
            });
        assert_eq!(replies.count().await, 5000);
        assert_eq!(*started.lock().unwrap(), (0..5000).collect::<Vec<_>>());
    }

    /// While too many bytes are under way, nothing more is read, and what the client may have sent
    /// counts meanwhile; it goes on when there is room.
    #[tokio::test]
    async fn too_much_under_way_stops_reading() {
        let (gate, opened) = oneshot::channel::<()>();
        let opened = opened.shared();
        let (requests, received) = mpsc::unbounded();
        for request in 0..10 {
            requests.unbounded_send(Request::Ok(request)).unwrap();
        }
        drop(requests);
        let begun = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = std::sync::Arc::clone(&begun);
        let bytes = IN_FLIGHT_BYTES_MAX / 2;
        let budget = Budget::new(1 << 30);
        let account = budget.open();
        let mut replies = Pipeline::new(
            received,
            futures::future::pending(),
            room_of(&account, || true),
            move |request| {
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let opened = opened.clone();
                (bytes, async move { (bytes, (opened.await, request)) }.boxed())
            },
        );
        assert!(replies.next().now_or_never().is_none());
        assert_eq!(begun.load(std::sync::atomic::Ordering::Relaxed), 2);
        assert_eq!(budget.held(), UNREAD);
        gate.send(()).unwrap();
        assert_eq!(replies.count().await, 10);
        assert_eq!(budget.held(), 0);
    }

    /// A stream that has thousands of commands ready lets others run between two hundreds of them.
    #[tokio::test]
    async fn a_busy_stream_lets_others_run() {
        let begun = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = std::sync::Arc::clone(&begun);
        let requests = futures::stream::iter((0..5_000).map(Request::Ok));
        let pending = futures::future::pending();
        let mut replies = Pipeline::new(requests, pending, room(|| true), move |request| {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            (1, std::future::pending::<(usize, usize)>().map(move |_| (1, request)))
        });
        for polls in 1..10 {
            assert!(replies.next().now_or_never().is_none());
            let begun = begun.load(std::sync::atomic::Ordering::Relaxed);
            assert_eq!(begun, polls * READ_AT_ONCE_MAX);
        }
    }

    /// A client that is over its share has one command under way, and more once it has room.
    #[tokio::test]
    async fn without_room_one_at_a_time() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
        let (opened, begun) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (has_room, count) = (Arc::clone(&opened), Arc::clone(&begun));
        let requests = futures::stream::iter((0..10).map(Request::Ok));
        let has_room = move || has_room.load(Relaxed);
        let pending = futures::future::pending();
        let mut replies = Pipeline::new(requests, pending, room(has_room), move |request| {
            count.fetch_add(1, Relaxed);
            (1, std::future::ready((1, request)))
        });
        for number in 0..3 {
            assert_eq!(replies.next().await.unwrap().unwrap(), number);
            assert_eq!(begun.load(Relaxed), number + 1);
        }
        opened.store(true, Relaxed);
        assert_eq!(replies.count().await, 7);
    }

    /// After a stop nothing more is read, and what is under way is still answered.
    #[tokio::test]
    async fn a_stop_lets_commands_finish() {
        let (stop, stopped) = oneshot::channel::<()>();
        let (gate, opened) = oneshot::channel::<()>();
        let opened = opened.shared();
        let (requests, received) = mpsc::unbounded();
        requests.unbounded_send(Request::Ok(1)).unwrap();
        let mut replies =
            Pipeline::new(received, stopped.map(|_| ()), room(|| true), move |request| {
                let opened = opened.clone();
                (1, async move { (1, (opened.await.is_ok(), request)) }.boxed())
            });
        assert!(replies.next().now_or_never().is_none());
        stop.send(()).unwrap();
        assert!(replies.next().now_or_never().is_none());
        assert!(requests.is_closed());
        gate.send(()).unwrap();
        assert_eq!(replies.next().await.unwrap().unwrap(), (true, 1));
        assert!(matches!(replies.next().await, Some(Err(End::Stopped))));
        assert!(replies.next().await.is_none());
    }

    /// After a request that cannot be read, what came before is answered; then the reason ends it.
    #[tokio::test]
    async fn a_broken_request_ends_it_last() {
        let requests = [Ok(1), Err(tonic::Status::internal("broken")), Ok(2)];
        let requests = futures::stream::iter(requests);
        let pending = futures::future::pending();
        let mut replies = Pipeline::new(requests, pending, room(|| true), |request: i32| {
            (1, async move { (1, request) }.boxed())
        });
        assert_eq!(replies.next().await.unwrap().unwrap(), 1);
        assert!(matches!(replies.next().await, Some(Err(End::Broken(_)))));
        assert!(replies.next().await.is_none());
    }
}
