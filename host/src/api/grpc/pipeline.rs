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

/// Commands that one stream may have under way.
const IN_FLIGHT_MAX: usize = 16_384;
/// Bytes of commands that one stream may have under way (one command is always let in).
const IN_FLIGHT_BYTES_MAX: usize = 32 << 20;

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
    /// Whether the client's other streams and calls leave room.
    has_room: Box<dyn Fn() -> bool + Send>,
    stop: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Why no more is read, where that is not the client's own end.
    end: Option<End>,
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
    /// Runs what `begin` makes of each request, while it `has_room`: with nothing under way, one is
    /// let in. After `stop`, or a request that cannot be read, it reads no more, and ends with the
    /// reason once what is under way has been answered.
    pub(super) fn new(
        requests: S,
        stop: impl Future<Output = ()> + Send + 'static,
        has_room: impl Fn() -> bool + Send + 'static,
        begin: B,
    ) -> Self {
        Self {
            requests: Some(requests),
            begin,
            running: FuturesUnordered::new(),
            running_bytes: 0,
            has_room: Box::new(has_room),
            stop: Box::pin(stop),
            end: None,
        }
    }

    fn has_room(&self) -> bool {
        let is_below =
            self.running.len() < IN_FLIGHT_MAX && self.running_bytes < IN_FLIGHT_BYTES_MAX;
        self.running.is_empty() || (is_below && (self.has_room)())
    }

    /// Starts as many requests as there are and as there is room for.
    fn read(&mut self, context: &mut Context<'_>) {
        if self.requests.is_some() && self.stop.as_mut().poll(context).is_ready() {
            self.requests = None;
            self.end = Some(End::Stopped);
        }
        while self.has_room()
            && let Some(requests) = &mut self.requests
        {
            match requests.poll_next_unpin(context) {
                Poll::Pending => return,
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

    type Request = Result<usize, tonic::Status>;

    /// Commands begin in the order sent, and replies come as commands finish, not as sent.
    #[tokio::test]
    async fn replies_come_as_commands_finish() {
        let (mut gates, waits): (Vec<_>, Vec<_>) =
            (0..3).map(|_| oneshot::channel::<()>()).map(|(s, r)| (Some(s), Some(r))).unzip();
        let mut waits = waits;
        let requests = futures::stream::iter((0..3).map(Request::Ok));
        let mut replies = Pipeline::new(
            requests,
            futures::future::pending(),
            || true,
            move |request| {
                let wait: Option<oneshot::Receiver<()>> = waits[request].take();
                let running = async move {
                    let _ = wait.expect("each request comes once").await;
                    (1, request)
                };
                (1, running.boxed())
            },
        );
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
        let replies = Pipeline::new(
            requests,
            futures::future::pending(),
            || true,
            move |request| {
                let log = std::sync::Arc::clone(&log);
                let running = async move {
                    log.lock().unwrap().push(request);
                    tokio::task::yield_now().await;
                    (1, request)
                };
                (1, running.boxed())
            },
        );
        assert_eq!(replies.count().await, 5000);
        assert_eq!(*started.lock().unwrap(), (0..5000).collect::<Vec<_>>());
    }

    /// While too many bytes are under way, nothing more is read; it goes on when there is room.
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
        let mut replies = Pipeline::new(
            received,
            futures::future::pending(),
            || true,
            move |request| {
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let opened = opened.clone();
                (bytes, async move { (bytes, (opened.await, request)) }.boxed())
            },
        );
        assert!(replies.next().now_or_never().is_none());
        assert_eq!(begun.load(std::sync::atomic::Ordering::Relaxed), 2);
        gate.send(()).unwrap();
        assert_eq!(replies.count().await, 10);
    }

    /// A client that is over its share has one command under way, and more once it has room.
    #[tokio::test]
    async fn without_room_one_at_a_time() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
        let (room, begun) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (has_room, count) = (Arc::clone(&room), Arc::clone(&begun));
        let requests = futures::stream::iter((0..10).map(Request::Ok));
        let has_room = move || has_room.load(Relaxed);
        let pending = futures::future::pending();
        let mut replies = Pipeline::new(requests, pending, has_room, move |request| {
            count.fetch_add(1, Relaxed);
            (1, std::future::ready((1, request)))
        });
        for number in 0..3 {
            assert_eq!(replies.next().await.unwrap().unwrap(), number);
            assert_eq!(begun.load(Relaxed), number + 1);
        }
        room.store(true, Relaxed);
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
        let mut replies = Pipeline::new(
            received,
            stopped.map(|_| ()),
            || true,
            move |request| {
                let opened = opened.clone();
                (1, async move { (1, (opened.await.is_ok(), request)) }.boxed())
            },
        );
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
        let mut replies = Pipeline::new(
            requests,
            pending,
            || true,
            |request: i32| (1, async move { (1, request) }.boxed()),
        );
        assert_eq!(replies.next().await.unwrap().unwrap(), 1);
        assert!(matches!(replies.next().await, Some(Err(End::Broken(_)))));
        assert!(replies.next().await.is_none());
    }
}
