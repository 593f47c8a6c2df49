//! The way from one node to another, as a proxy of the harness that can be cut and healed.
//!
//! A cut is a silent one, as on a real network: what is sent is neither delivered nor refused,
//! and connections that are open stay open without moving a byte. Healing ends those, since what
//! was lost on them cannot be made up for, and lets new ones through.
//!
//! A link is directed: it carries the calls of one node, and the answers to them. Each of the two
//! can be cut alone, which is what a network that works in one direction only does to connections
//! that are open; new ones can't be made then, since that takes both.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Bytes that are carried at once.
const BUFFER_BYTES: usize = 64 << 10;

/// What a link carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Everything.
    Open,
    /// The calls, but no answer to them.
    CallsOnly,
    /// The answers to earlier calls, but no more calls.
    AnswersOnly,
    /// Nothing.
    Cut,
}

impl Flow {
    fn calls(self) -> bool {
        matches!(self, Self::Open | Self::CallsOnly)
    }

    fn answers(self) -> bool {
        matches!(self, Self::Open | Self::AnswersOnly)
    }
}

/// A running proxy. Ends, with its connections, when dropped.
pub struct Link {
    /// The node that calls.
    pub from: u64,
    /// The node that is called.
    pub to: u64,
    address: String,
    flow: watch::Sender<Flow>,
    proxy: JoinHandle<()>,
}

impl Link {
    /// Opens the way from one node to another's `target` address.
    ///
    /// # Panics
    /// When no port of loopback is free.
    pub async fn open(from: u64, to: u64, target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound").to_string();
        let (flow, state) = watch::channel(Flow::Open);
        let proxy = tokio::spawn(serve(listener, target, state));
        Self { from, to, address, flow, proxy }
    }

    /// Where the calling node dials.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Cuts it, in one direction or both, or heals it.
    pub fn set(&self, flow: Flow) {
        self.flow.send_replace(flow);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.proxy.abort();
    }
}

/// Accepts connections; they end with the proxy, which owns them.
async fn serve(listener: TcpListener, target: String, flow: watch::Receiver<Flow>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { return };
                connections.spawn(carry(stream, target.clone(), flow.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries one connection until it ends or is healed from a cut.
async fn carry(near: TcpStream, target: String, mut flow: watch::Receiver<Flow>) {
    if *flow.borrow_and_update() != Flow::Open {
        // Accepted by the system, answered by nobody, until the link is healed.
        let _ = flow.wait_for(|flow| *flow == Flow::Open).await;
        return;
    }
    let Ok(far) = TcpStream::connect(&target).await else { return };
    let _ = near.set_nodelay(true);
    let _ = far.set_nodelay(true);
    let (near_reader, near_writer) = near.into_split();
    let (far_reader, far_writer) = far.into_split();
    let calls = pump(near_reader, far_writer, flow.clone(), Flow::calls);
    let answers = pump(far_reader, near_writer, flow.clone(), Flow::answers);
    tokio::select! {
        _ = async { tokio::try_join!(calls, answers) } => {}
        () = healed(flow) => {}
    }
}

/// Returns once the link has been cut and healed.
async fn healed(mut flow: watch::Receiver<Flow>) {
    if flow.wait_for(|flow| *flow != Flow::Open).await.is_ok() {
        let _ = flow.wait_for(|flow| *flow == Flow::Open).await;
    }
}

/// Carries one direction of a connection while the link carries it, to its end.
async fn pump(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    mut flow: watch::Receiver<Flow>,
    carries: fn(Flow) -> bool,
) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let closed = |_| std::io::Error::from(std::io::ErrorKind::ConnectionAborted);
    loop {
        if !carries(*flow.borrow_and_update()) {
            // What is lost now is not made up for: the connection ends as the link is healed.
            std::future::pending::<()>().await;
        }
        tokio::select! {
            changed = flow.changed() => changed.map_err(closed)?,
            read = reader.read(&mut buffer) => match read? {
                0 => return writer.shutdown().await,
                length => writer.write_all(&buffer[..length]).await?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// A server that sends back what it gets.
    async fn echo() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound").to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut reader, mut writer) = stream.split();
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                });
            }
        });
        address
    }

    /// Sends a byte and waits for it to come back.
    async fn there_and_back(stream: &mut TcpStream) -> Option<u8> {
        stream.write_all(b"x").await.ok()?;
        stream.read_u8().await.ok()
    }

    /// A link carries bytes; cut, it is silent on open and new connections alike; healed, it has
    /// ended those and carries new ones.
    #[tokio::test]
    async fn a_link_is_cut_silently_and_heals() {
        let link = Link::open(1, 2, echo().await).await;
        let mut old = TcpStream::connect(link.address()).await.expect("it is open");
        assert_eq!(there_and_back(&mut old).await, Some(b'x'));

        link.set(Flow::Cut);
        let silence = Duration::from_millis(200);
        assert!(timeout(silence, there_and_back(&mut old)).await.is_err(), "no answer, no end");
        let mut new = TcpStream::connect(link.address()).await.expect("the system accepts");
        assert!(timeout(silence, there_and_back(&mut new)).await.is_err(), "no answer, no end");

        link.set(Flow::Open);
        let ended = timeout(Duration::from_secs(5), old.read_u8()).await;
        assert!(ended.expect("it is ended").is_err(), "what was lost is not made up for");
        let mut fresh = TcpStream::connect(link.address()).await.expect("it is open");
        assert_eq!(there_and_back(&mut fresh).await, Some(b'x'));
    }

    /// Cut in one direction, a link carries the other one on open connections, and no new ones.
    #[tokio::test]
    async fn a_link_is_cut_in_one_direction() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let target = listener.local_addr().expect("it is bound").to_string();
        let link = Link::open(1, 2, target).await;
        let silence = Duration::from_millis(200);
        for (flow, calls) in [(Flow::CallsOnly, true), (Flow::AnswersOnly, false)] {
            let mut near = TcpStream::connect(link.address()).await.expect("it is open");
            let (mut far, _) = listener.accept().await.expect("the proxy dials");
            link.set(flow);
            near.write_all(b"c").await.expect("the system takes it");
            far.write_all(b"a").await.expect("the system takes it");
            let arrived = timeout(silence, far.read_u8()).await.is_ok();
            assert_eq!(arrived, calls, "calls: {flow:?}");
            let arrived = timeout(silence, near.read_u8()).await.is_ok();
            assert_eq!(arrived, !calls, "answers: {flow:?}");
            let mut new = TcpStream::connect(link.address()).await.expect("the system accepts");
            assert!(timeout(silence, there_and_back(&mut new)).await.is_err(), "{flow:?}");
            link.set(Flow::Open);
            let ended = timeout(Duration::from_secs(5), near.read_u8()).await;
            assert!(ended.expect("it is ended").is_err(), "{flow:?}");
        }
    }
}
