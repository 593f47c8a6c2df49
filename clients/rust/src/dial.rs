//! Dialling a node. A connection counts once the node has sent the first frame of HTTP/2, its
//! settings: the kernel accepts connections for a process that is stopped, or that hangs, and a
//! request sent there could be applied much later. Nothing is sent before.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint, Uri};

/// Where the type stands in the header of a frame, and that of settings (RFC 9113, sections 4.1
/// and 6.5).
const FRAME_TYPE_AT: usize = 3;
const FRAME_TYPE_SETTINGS: u8 = 4;

/// The connections to one node.
pub(crate) struct Connections {
    channels: Vec<Channel>,
    next: AtomicUsize,
    broken: Arc<AtomicBool>,
}

impl Connections {
    /// Opens `count` connections, all of them within `limit`. The error says what went wrong.
    pub(crate) async fn open(
        endpoint: &Endpoint,
        count: usize,
        limit: Duration,
    ) -> Result<Self, String> {
        let broken = Arc::new(AtomicBool::new(false));
        let accepted = Arc::new(AtomicBool::new(false));
        let dials = (0..count.max(1)).map(|_| open_one(endpoint, &accepted, &broken));
        match timeout(limit, futures::future::try_join_all(dials)).await {
            Ok(channels) => Ok(Self { channels: channels?, next: AtomicUsize::new(0), broken }),
            Err(_) if accepted.load(Ordering::Relaxed) => Err(format!(
                "it accepts connections, and did not answer within {} ms: the process is stopped \
                 or hangs",
                limit.as_millis()
            )),
            Err(_) => Err(format!("no connection within {} ms", limit.as_millis())),
        }
    }

    /// One of them, in turn.
    pub(crate) fn channel(&self) -> Channel {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        self.channels[turn % self.channels.len()].clone()
    }

    /// True once any of them has ended: new calls need others.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }
}

async fn open_one(
    endpoint: &Endpoint,
    accepted: &Arc<AtomicBool>,
    broken: &Arc<AtomicBool>,
) -> Result<Channel, String> {
    let (tell, greeted) = oneshot::channel();
    let dialler = Dialler {
        once: Some(Once { tell, accepted: Arc::clone(accepted), broken: Arc::clone(broken) }),
    };
    let channel = endpoint.connect_with_connector(dialler).await.map_err(|error| root(&error))?;
    match greeted.await {
        Ok(true) => Ok(channel),
        Ok(false) => Err("what answers there does not speak HTTP/2".to_owned()),
        Err(_) => Err("it closed the connection before it said anything".to_owned()),
    }
}

/// The cause at the bottom of an error.
pub(crate) fn root(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.last().map_or_else(String::new, ToString::to_string)
}

/// Connects once. tonic would connect again by itself when a connection breaks, and send a request
/// to a node that has not said anything.
struct Dialler {
    once: Option<Once>,
}

/// What one connection tells.
struct Once {
    /// Whether its first frame was that of HTTP/2.
    tell: oneshot::Sender<bool>,
    accepted: Arc<AtomicBool>,
    broken: Arc<AtomicBool>,
}

type Dialled = Result<TokioIo<Greeted>, Box<dyn std::error::Error + Send + Sync>>;

impl Service<Uri> for Dialler {
    type Response = TokioIo<Greeted>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Dialled> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, address: Uri) -> Self::Future {
        let once = self.once.take();
        Box::pin(async move {
            let Once { tell, accepted, broken } = once.ok_or("the connection has ended")?;
            let mut tcp = HttpConnector::new();
            tcp.set_nodelay(true);
            let stream = tcp.call(address).await?.into_inner();
            accepted.store(true, Ordering::Relaxed);
            Ok(TokioIo::new(Greeted { stream, seen: 0, tell: Some(tell), broken }))
        })
    }
}

/// A connection that tells when the first frame has begun to come, and when it ends.
struct Greeted {
    stream: TcpStream,
    /// Bytes of the first frame that have come.
    seen: usize,
    tell: Option<oneshot::Sender<bool>>,
    broken: Arc<AtomicBool>,
}

impl Greeted {
    /// Looks at what has come, until the type of the first frame has.
    fn look(&mut self, bytes: &[u8]) {
        let frame_type = bytes.get(FRAME_TYPE_AT - self.seen);
        self.seen += bytes.len();
        if let Some(frame_type) = frame_type
            && let Some(tell) = self.tell.take()
        {
            // Who dialled may have given up meanwhile.
            let _ = tell.send(*frame_type == FRAME_TYPE_SETTINGS);
        }
    }
}

impl Drop for Greeted {
    fn drop(&mut self) {
        self.broken.store(true, Ordering::Release);
    }
}

impl AsyncRead for Greeted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if self.tell.is_some() {
            self.look(&buffer.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Greeted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    /// Opens a connection to a server that sends these bytes and then does nothing.
    async fn open(sent: &'static [u8]) -> Result<Connections, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(sent).await.unwrap();
            std::future::pending::<()>().await;
        });
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let opened = Connections::open(&endpoint, 1, Duration::from_millis(300)).await;
        serving.abort();
        opened
    }

    /// A connection is one to a node only once settings have come: not where nothing comes, or a
    /// part of a header, or another protocol.
    #[tokio::test]
    async fn settings_must_come() {
        assert!(open(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.is_ok());
        for silent in [&[][..], &[0, 0, 0]] {
            let error = open(silent).await.err().unwrap();
            assert!(error.contains("stopped or hangs"), "{error}");
        }
        let error = open(b"SSH-2.0-OpenSSH\r\n").await.err().unwrap();
        assert!(error.contains("does not speak HTTP/2"), "{error}");
    }

    /// A connection that has ended is known to have.
    #[tokio::test]
    async fn ended_connections_are_known() {
        let connections = open(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        timeout(Duration::from_secs(10), async {
            while !connections.is_broken() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
    }
}
