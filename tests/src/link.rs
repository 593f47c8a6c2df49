//! The way from one node to another, as a proxy of the harness that can be cut and healed.
//!
//! A cut is a silent one, as on a real network: what is sent is neither delivered nor refused,
//! and connections that are open stay open without moving a byte. Healing ends those, since what
//! was lost on them cannot be made up for, and lets new ones through.
//!
//! A link is directed: it carries the calls of one node, and the answers to them.

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A running proxy. Ends, with its connections, when dropped.
pub struct Link {
    /// The node that calls.
    pub from: u64,
    /// The node that is called.
    pub to: u64,
    address: String,
    cut: watch::Sender<bool>,
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
        let (cut, state) = watch::channel(false);
        let proxy = tokio::spawn(serve(listener, target, state));
        Self { from, to, address, cut, proxy }
    }

    /// Where the calling node dials.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Cuts or heals it.
    pub fn set_cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.proxy.abort();
    }
}

/// Accepts connections; they end with the proxy, which owns them.
async fn serve(listener: TcpListener, target: String, cut: watch::Receiver<bool>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { return };
                connections.spawn(carry(stream, target.clone(), cut.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries one connection until it ends or is healed from a cut.
async fn carry(mut near: TcpStream, target: String, mut cut: watch::Receiver<bool>) {
    if *cut.borrow_and_update() {
        // Accepted by the system, answered by nobody, until the link is healed.
        let _ = cut.wait_for(|cut| !cut).await;
        return;
    }
    let Ok(mut far) = TcpStream::connect(&target).await else { return };
    let _ = near.set_nodelay(true);
    let _ = far.set_nodelay(true);
    let is_cut = tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => false,
        changed = cut.wait_for(|cut| *cut) => changed.is_ok(),
    };
    if is_cut {
        let _ = cut.wait_for(|cut| !cut).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
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

        link.set_cut(true);
        let silence = Duration::from_millis(200);
        assert!(timeout(silence, there_and_back(&mut old)).await.is_err(), "no answer, no end");
        let mut new = TcpStream::connect(link.address()).await.expect("the system accepts");
        assert!(timeout(silence, there_and_back(&mut new)).await.is_err(), "no answer, no end");

        link.set_cut(false);
        let ended = timeout(Duration::from_secs(5), old.read_u8()).await;
        assert!(ended.expect("it is ended").is_err(), "what was lost is not made up for");
        let mut fresh = TcpStream::connect(link.address()).await.expect("it is open");
        assert_eq!(there_and_back(&mut fresh).await, Some(b'x'));
    }
}
