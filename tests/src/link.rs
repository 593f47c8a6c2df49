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
