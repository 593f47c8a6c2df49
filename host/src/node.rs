//! The node: its listeners, its signals, and the order in which it stops. What it keeps and agrees
//! on is a [`Group`]'s.

mod backup;
mod connections;
mod repair;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::{self, Door, Options};
use crate::config::Config;
use crate::group::Group;
use crate::raft::Replica;
use crate::storage;
use crate::wasm::{self, Engine};
use connections::Listeners;

pub use crate::machine::snapshot::backup::{ExportState, SavedMachine};
pub use crate::machine::{LIMITS, LIMITS_COUNT, LimitUnit, Limits};
pub use backup::Backup;
pub use repair::{Repaired, repair};

/// What is under way may take so long to be answered once the node stops.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// Another node takes over within this, or not at all.
const HANDOVER_MAX: Duration = Duration::from_millis(1000);
/// Who was on the way here while leadership moved is still told to go elsewhere.
const REDIRECT_TIME: Duration = Duration::from_millis(100);
/// Connections may take so long to end.
const CLOSE_MAX: Duration = Duration::from_millis(500);
/// Agreement may take so long to stop.
const AGREEMENT_MAX: Duration = Duration::from_millis(500);
/// The log is closed by so long after the stop was asked for. The steps above come to less.
const CLOSED_MAX: Duration = Duration::from_millis(4_700);
/// The process ends so long after it was asked to, whatever hangs.
const STOP_MAX: Duration = Duration::from_millis(4_900);

/// A running node.
pub struct Node {
    group: Group,
    door: Door,
    signals: Signals,
    /// Each ends with its name.
    servers: JoinSet<(&'static str, anyhow::Result<()>)>,
}

/// What is said when a node stops, in this order.
#[derive(Clone, Default)]
struct Signals {
    /// End the connections of clients.
    close: CancellationToken,
    /// End those of peers.
    end: CancellationToken,
}

impl Node {
    /// Opens the data folder, joins the network and starts serving.
    ///
    /// # Errors
    /// Everything that makes the node unable to serve safely: a folder in use or of another node,
    /// damaged files, a port in use, a disk without room, an unusable configuration.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        storage::forbid_on_async_workers();
        config.file.check()?;
        let listeners = Listeners::open(&config).await?;
        let group = Group::start(&config).await?;
        let signals = Signals::default();
        let mut servers = JoinSet::new();
        let peers =
            api::peer::serve(listeners.peers, Arc::clone(group.peers()), signals.end.clone());
        servers.spawn(async move { ("peers", peers.await.map_err(Into::into)) });
        let options = Options {
            forward: config.forward,
            request_timeout: Duration::from_millis(config.file.request_timeout_ms),
        };
        let door = Door::new(group.replica().clone(), options, signals.close.clone());
        let clients = api::serve_clients(listeners.clients, door.clone());
        servers.spawn(async move { ("clients", clients.await.map_err(Into::into)) });
        announce(&config, group.replica());
        Ok(Self { group, door, signals, servers })
    }

    /// Runs until `shutdown` completes or the node cannot go on; then stops it, within five
    /// seconds whatever hangs.
    ///
    /// # Errors
    /// When a broken invariant or a failing disk ended it.
    pub async fn run_until(mut self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        let ended = tokio::select! {
            () = shutdown => None,
            reason = self.group.ended() => Some(reason),
            Some(ended) = self.servers.join_next() => Some(describe(ended)),
        };
        if let Some(reason) = &ended {
            tracing::error!(%reason, "the node cannot go on");
        }
        let closed_by = Instant::now() + CLOSED_MAX;
        end_at_the_latest()?;
        if ended.is_none() {
            self.drain().await;
        }
        let closed = self.close(closed_by).await;
        match ended {
            Some(reason) => bail!("the node stops: {reason}"),
            None => closed,
        }
    }

    /// Begins nothing new, answers what is under way, and hands leadership over.
    async fn drain(&self) {
        self.door.begin_drain();
        within("answering what is under way", DRAIN_MAX, self.door.drained()).await;
        within("handing leadership over", HANDOVER_MAX, self.group.hand_over()).await;
        tokio::time::sleep(REDIRECT_TIME).await;
    }

    /// Ends clients, agreement, peers and the log, in this order. A slow disk may take what is left
    /// of the time.
    async fn close(mut self, closed_by: Instant) -> anyhow::Result<()> {
        self.door.begin_drain();
        self.signals.close.cancel();
        within("ending the connections of clients", CLOSE_MAX, self.servers.join_next()).await;
        within("ending agreement", AGREEMENT_MAX, self.group.stop()).await;
        self.signals.end.cancel();
        self.servers.abort_all();
        self.group.close(closed_by).await
    }
}

/// Waits for a step of a stop, which goes on without it after a while.
async fn within(step: &str, limit: Duration, task: impl Future) {
    if tokio::time::timeout(limit, task).await.is_err() {
        tracing::warn!(step, ?limit, "the stop goes on without waiting any longer");
    }
}

/// Ends the process when its stop hangs, on a thread that nothing of the node can hold up.
#[expect(clippy::disallowed_methods, reason = "whatever hangs may be what a return waits for")]
fn end_at_the_latest() -> std::io::Result<()> {
    let last = || {
        std::thread::sleep(STOP_MAX);
        tracing::error!("the stop hangs: the process ends without it");
        std::process::exit(1);
    };
    std::thread::Builder::new().name("stop".to_owned()).spawn(last).map(drop)
}

/// Why a server ended that should not have.
fn describe(ended: Result<(&str, anyhow::Result<()>), tokio::task::JoinError>) -> String {
    match ended {
        Ok((who, Ok(()))) => format!("the server for {who} ended early"),
        Ok((who, Err(error))) => format!("the server for {who} failed: {error:#}"),
        Err(error) => format!("a server did not end well: {error}"),
    }
}

/// Starts a node, runs it until SIGTERM or SIGINT, and stops it.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let shutdown = shutdown_signal()?;
    Node::start(config).await?.run_until(shutdown).await
}

/// Says of a module what a node says of one that is uploaded: admits it, compiles it, and asks it
/// to describe itself. Compiling it may take so much work. Blocking.
///
/// # Errors
/// Why it can't be a guest, in the words of the node.
pub fn check_module(bytes: &[u8], work_max: u64) -> Result<wasm::Module, wasm::Error> {
    Engine::new()?.compile(bytes, work_max)
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
