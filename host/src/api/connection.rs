//! Connections: how many there may be, and when one is ended. What is spoken on them is not known
//! here.
//!
//! A connection ends when nothing was read from it for a while (in HTTP/2, one that lives answers
//! pings), when its account was closed for what it holds, and when the other side has gone: what
//! that sent before is read up to [`AT_ONCE_BYTES`].
//!
//! **Invariant:** there are never more than there is room for; who never asked for anything gives
//! way to who comes. **Invariant:** a failing `accept` ends nothing: it is tried again.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::{FutureExt as _, Stream};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::budget::{Account, Budget};

/// A connection from which nothing came for so long is ended.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// Before more than this is read of what came at once, in bytes, the other side must be there. Less
/// costs little, and a look at each read is felt.
const AT_ONCE_BYTES: usize = 16 << 10;
/// Wait before `accept` is tried again after it failed, as it does without a free descriptor.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How long a connection may wait for the place of one that gives way.
const PLACE_WAIT: Duration = Duration::from_secs(1);

/// Where connections come in.
pub struct Listener {
    tcp: TcpListener,
    budget: Budget,
    places: Arc<Semaphore>,
    who: &'static str,
}

impl Listener {
    /// A listener for at most `connections_max`, whose bytes count towards `budget`. `who` says in
    /// the log who comes in here.
    pub fn new(
        tcp: TcpListener,
        budget: Budget,
        connections_max: usize,
        who: &'static str,
    ) -> Self {
        let places = Arc::new(Semaphore::new(connections_max));
        Self { tcp, budget, places, who }
    }

    /// The connections, as they come. After `shut` nobody listens any more; the stream does not
    /// end then, since that would end the connections.
    pub(super) fn incoming(
        self,
        shut: CancellationToken,
    ) -> impl Stream<Item = Result<Connection, Infallible>> {
        futures::stream::unfold((self, shut), |(listener, shut)| async move {
            tokio::select! {
                connection = listener.next() => Some((Ok(connection), (listener, shut))),
                () = shut.cancelled() => {
                    drop(listener);
                    std::future::pending().await
                }
            }
        })
    }

    async fn next(&self) -> Connection {
        loop {
            match self.tcp.accept().await {
                Ok((tcp, _)) => {
                    // Without it small replies wait; with an error the connection is gone anyway.
                    let _ = tcp.set_nodelay(true);
                    if let Some(place) = self.place().await {
                        return Connection::new(tcp, self.budget.open(), place);
                    }
                    tracing::debug!(who = self.who, "no room for one more connection");
                }
                Err(error) => {
                    tracing::warn!(%error, who = self.who, "a connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Some(place);
        }
        if !self.budget.close_silent() {
            return None;
        }
        let place = Arc::clone(&self.places).acquire_owned();
        tokio::time::timeout(PLACE_WAIT, place).await.ok()?.ok()
    }
}

/// One connection.
pub(super) struct Connection {
    tcp: TcpStream,
    account: Account,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    heard: Instant,
    silence: Pin<Box<Sleep>>,
    /// Bytes read since there was nothing to read.
    at_once: usize,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    fn new(tcp: TcpStream, account: Account, place: OwnedSemaphorePermit) -> Self {
        let heard = Instant::now();
        Self {
            tcp,
            closed: Box::pin(account.closed()),
            account,
            heard,
            silence: Box::pin(tokio::time::sleep_until(heard + SILENCE_MAX)),
            at_once: 0,
            _place: place,
        }
    }

    /// What it holds counts here.
    pub(super) fn account(&self) -> &Account {
        &self.account
    }

    /// Whether the other side has gone, as far as the system has said: nobody waits for answers to
    /// what it sent before, and a client that calls and vanishes again and again must not have all
    /// of it done.
    fn is_hung_up(&self) -> bool {
        let ready = self.tcp.ready(Interest::READABLE).now_or_never();
        ready.is_some_and(|ready| ready.is_ok_and(|ready| ready.is_read_closed()))
    }

    /// Why it must end, if it must.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        if self.closed.as_mut().poll(context).is_ready() {
            return Poll::Ready(io::ErrorKind::ConnectionAborted.into());
        }
        loop {
            ready!(self.silence.as_mut().poll(context));
            let until = self.heard + SILENCE_MAX;
            if Instant::now() >= until {
                return Poll::Ready(io::ErrorKind::TimedOut.into());
            }
            self.silence.as_mut().reset(until);
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.at_once >= AT_ONCE_BYTES && this.is_hung_up() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = buffer.filled().len();
        match Pin::new(&mut this.tcp).poll_read(context, buffer) {
            Poll::Ready(read) => {
                let came = buffer.filled().len() - before;
                if came > 0 {
                    this.at_once += came;
                    this.heard = Instant::now();
                }
                if this.account.is_closed() {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
                }
                Poll::Ready(read)
            }
            Poll::Pending => {
                this.at_once = 0;
                this.poll_end(context).map(Err)
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Much that a client sent before it vanished is not read; what one sends that stays is.
    #[tokio::test]
    async fn who_is_gone_is_not_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let listener = Listener::new(listener, Budget::new(1 << 30), 2, "clients");
        for stays in [true, false] {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(&[7; 2 * AT_ONCE_BYTES]).await.unwrap();
            let client = Some(client).filter(|_| stays);
            let mut connection = listener.next().await;
            connection.tcp.readable().await.unwrap();
            let known = async {
                while connection.is_hung_up() == stays {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(PLACE_WAIT, known).await.expect("the system says so soon");
            let mut bytes = [0; AT_ONCE_BYTES];
            connection.read_exact(&mut bytes).await.expect("this much may come at once");
            let read = connection.read_exact(&mut bytes).await;
            match client {
                Some(_client) => {
                    assert_eq!((read.unwrap(), bytes), (bytes.len(), [7; AT_ONCE_BYTES]));
                }
                None => assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionAborted),
            }
        }
    }
}
