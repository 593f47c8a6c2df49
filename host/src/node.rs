//! The node: its listeners, its signals, and the order in which it stops. What it keeps and agrees
//! on is a [`Group`]'s.

mod backup;
mod connections;
mod repair;

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::api::{self, Door, Options, Services};
use crate::config::Config;
use crate::group::Group;
use crate::raft::Replica;
use crate::raft::network::PeerHandler;
use crate::raft::store::state_machine::StateMachine;
use crate::wasm::{self, Engine};
use connections::Doors;

pub use crate::machine::snapshot::backup::{ExportState, SavedMachine};
pub use crate::machine::{LIMITS, LIMITS_COUNT, LimitUnit, Limits};
pub use backup::Backup;
pub use repair::{Repaired, repair};

/// A running node.
pub struct Node {
    group: Group,
    stop: watch::Sender<bool>,
    servers: JoinSet<anyhow::Result<()>>,
}

impl Node {
    /// Opens the data folder, joins the network and starts serving.
    ///
    /// # Errors
    /// Everything that makes the node unable to serve safely: a folder in use or of another node,
    /// damaged files, a port in use, a disk without room, an unusable configuration.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        config.file.check()?;
        let doors = Doors::open(&config).await?;
        let group = Group::start(&config).await?;
        let (stop, stopped) = watch::channel(false);
        let mut servers = JoinSet::new();
        servers.spawn(serve_peers(doors.peers, Arc::clone(group.peers()), stopped.clone()));
        let options = Options {
            forward: config.forward,
            request_timeout: Duration::from_millis(config.file.request_timeout_ms),
        };
        let services = Services::new(group.replica().clone(), options);
        let serving = api::serve_clients(doors.clients, services, stopping(stopped));
        servers.spawn(async move { Ok(serving.await?) });
        announce(&config, group.replica());
        Ok(Self { group, stop, servers })
    }

    /// Runs until `shutdown` completes or the node cannot go on; then stops it cleanly.
    ///
    /// # Errors
    /// When a broken invariant or a failing disk ended it.
    pub async fn run_until(mut self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        let ended = tokio::select! {
            () = shutdown => None,
            reason = self.group.ended() => Some(reason),
            Some(ended) = self.servers.join_next() => Some(format!("a task ended: {ended:?}")),
        };
        if ended.is_none() {
            self.group.hand_over().await;
        }
        self.stop.send_replace(true);
        self.group.stop().await;
        self.servers.shutdown().await;
        let closed = self.group.close().await;
        match ended {
            Some(reason) => bail!("the node stops: {reason}"),
            None => closed,
        }
    }
}

/// Starts a node, runs it until SIGTERM or SIGINT, and stops it.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let shutdown = shutdown_signal()?;
    Node::start(config).await?.run_until(shutdown).await
}

/// Says of a module what a node says of one that is uploaded: admits it, compiles it, and asks it
/// to describe itself. Blocking.
///
/// # Errors
/// Why it can't be a guest, in the words of the node.
pub fn check_module(bytes: &[u8]) -> Result<wasm::Module, wasm::Error> {
    Engine::new()?.compile(bytes)
}

/// The engine profile of this build.
///
/// # Errors
/// When this machine can't run its engine.
pub fn engine_profile() -> Result<String, wasm::Error> {
    Ok(Engine::new()?.profile().to_owned())
}

/// Completes at SIGTERM or SIGINT.
///
/// # Errors
/// When the signals cannot be listened to.
pub fn shutdown_signal() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
        }
    })
}

fn announce(config: &Config, replica: &Replica) {
    tracing::info!(
        node = %config.node_id,
        clients = %config.client_addr,
        peers = %config.peer_addr,
        data = %config.data_dir.display(),
        "node started"
    );
    if replica.status().cluster.is_none() {
        tracing::info!(
            "this node is in no cluster yet: it waits for `lockstep cluster init` here, or \
             `lockstep cluster add` from another node"
        );
    }
}

/// Completes once the node stops.
async fn stopping(mut stopped: watch::Receiver<bool>) {
    // A sender that is gone means that the node is.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

async fn serve_peers(
    door: Door,
    handler: Arc<PeerHandler<StateMachine>>,
    stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let served = Arc::clone(&handler);
    let stop = async move {
        stopping(stopped).await;
        handler.stop();
    };
    Ok(api::peer::serve(door, served, stop).await?)
}
