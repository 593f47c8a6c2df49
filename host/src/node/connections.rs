//! How many connections a node may have: as many as are asked for, and as its open files allow.
//!
//! **Invariant:** whoever connects leaves the descriptors that the node itself needs.

use anyhow::Context as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;

use crate::api::Listener;
use crate::budget::Budget;
use crate::config::Config;

/// Descriptors that the log, snapshots, modules and this node's own calls need, with room.
const OWN_FILES: u64 = 256;
/// Connections of peers at once: three of each, and as many again while they are replaced.
const PEER_CONNECTIONS_MAX: u64 = 64;
/// Fewer connections of clients are no use.
const CLIENT_CONNECTIONS_MIN: u64 = 16;

/// Where connections come in.
pub(super) struct Listeners {
    pub(super) clients: Listener,
    pub(super) peers: Listener,
}

impl Listeners {
    /// Binds both.
    pub(super) async fn open(config: &Config) -> anyhow::Result<Self> {
        let (clients_max, peers_max) = limits(config.file.client_connections_max);
        let clients = bind("clients", config.client_addr).await?;
        let peers = bind("peers", config.peer_addr).await?;
        let budget = Budget::new(config.file.client_budget_bytes());
        let clients = Listener::new(clients, budget, clients_max, "clients");
        let budget = Budget::new(config.file.peer_budget_bytes());
        let peers = Listener::new(peers, budget, peers_max, "peers");
        Ok(Self { clients, peers })
    }
}

async fn bind(who: &str, address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen for {who} on {address}"))
}

/// Raises the limit on open files as far as the system lets us. Returns how many connections
/// clients and peers may have, at most `clients_max` for clients.
fn limits(clients_max: usize) -> (usize, usize) {
    let files = raise();
    let (clients, peers) = share(files, u64::try_from(clients_max).unwrap_or(u64::MAX));
    if usize::try_from(clients).is_ok_and(|clients| clients < clients_max) {
        tracing::warn!(
            clients,
            files,
            "fewer connections of clients than configured: the limit on open files is low"
        );
    }
    let count = |connections: u64| usize::try_from(connections).unwrap_or(usize::MAX);
    (count(clients), count(peers))
}

/// The limit on open files, raised.
fn raise() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum.unwrap_or(u64::MAX),
        Err(error) => {
            tracing::warn!(%error, "the limit on open files cannot be raised");
            current.unwrap_or(u64::MAX)
        }
    }
}

fn share(files: u64, clients_max: u64) -> (u64, u64) {
    let left = files.saturating_sub(OWN_FILES);
    let peers = PEER_CONNECTIONS_MAX.min(left / 4).max(CLIENT_CONNECTIONS_MIN);
    let clients = left.saturating_sub(peers).max(CLIENT_CONNECTIONS_MIN);
    (clients.min(clients_max), peers)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With few descriptors connections get what the node does not need for itself.
    #[test]
    fn connections_leave_descriptors() {
        let rows = [
            ((1 << 20, 512), (512, 64)),
            ((1024, 1000), (704, 64)),
            ((512, 512), (192, 64)),
            ((256, 512), (16, 16)),
            ((1024, 100), (100, 64)),
        ];
        for ((files, asked), expected) in rows {
            assert_eq!(share(files, asked), expected, "{files} files, {asked} asked for");
        }
    }
}
