//! The composition root: opens what is on disk, wires the modules, spawns every long-lived task,
//! and drains them in the reverse order. The only module that sees all others.

mod backup;
mod repair;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use openraft::SnapshotPolicy;
use openraft::async_runtime::WatchReceiver as _;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tonic::transport::server::TcpIncoming;

use crate::api::{self, Options, Services};
use crate::config::{Config, FileConfig};
use crate::machine::{CodeCache, CompiledModules, Directory, Environment, ModuleLibrary};
use crate::raft::Raft;
use crate::raft::checkpoints::CheckpointTask;
use crate::raft::courier::Courier;
use crate::raft::history::LogHistory;
use crate::raft::log_store::LogStore;
use crate::raft::modules::ModuleTask;
use crate::raft::network::{Local, Network, PeerHandler};
use crate::raft::parking::ParkingTask;
use crate::raft::profile::ProfileTask;
use crate::raft::proposer::Proposer;
use crate::raft::pulse;
use crate::raft::reader::Reader;
use crate::raft::recovery::watch_recovery;
use crate::raft::replica::{Replica, Shared};
use crate::raft::reports::ReportTask;
use crate::raft::snapshots::Snapshots;
use crate::raft::space::Space;
use crate::raft::state_machine::{Progress, StateMachine};
use crate::storage::code::CodeStore;
use crate::storage::modules::ModuleStore;
use crate::storage::snapshot::SnapshotDir;
use crate::storage::{self, DataDir, Log, LogConfig};
use crate::types::{ClusterId, LogIndex, Member, ModuleDigest, TimeMs};
use crate::wasm::{self, Engine};

pub use crate::machine::Limits;
pub use crate::machine::backup::{ExportState, SavedMachine};
pub use backup::Backup;
pub use repair::{Repaired, repair};

/// How long servers may take to finish what is under way once the node stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a stopping leader waits for another to take over.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long openraft may take to look at the log it was given.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A running node.
pub struct Node {
    replica: Replica,
    raft: Raft,
    log: Log,
    stop: watch::Sender<bool>,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Node {
    /// Opens the data folder, joins the network and starts serving.
    ///
    /// # Errors
    /// Everything that makes the node unable to serve safely: a folder in use or of another node,
    /// damaged files, a port in use, a disk without room, an unusable configuration.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        config.file.check()?;
        let clients = bind("clients", config.client_addr).await?;
        let peers = bind("peers", config.peer_addr).await?;
        let opened = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || Opened::open(&config)).await??
        };
        let log = opened.log.clone();
        let wiring = Wiring::wire(&config, opened).await?;
        Ok(wiring.spawn(&config, log, clients, peers))
    }

    /// Runs until `shutdown` completes or the node cannot go on; then stops it cleanly.
    ///
    /// # Errors
    /// When a broken invariant or a failing disk ended it.
    pub async fn run_until(mut self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        let ended = tokio::select! {
            () = shutdown => None,
            reason = fatal(&self.raft) => Some(reason),
            Some(ended) = self.tasks.join_next() => Some(format!("a task ended: {ended:?}")),
        };
        if ended.is_none() {
            self.hand_over().await;
        }
        self.stop.send_replace(true);
        let drained = tokio::time::timeout(DRAIN_TIMEOUT, self.raft.shutdown()).await;
        if drained.is_err() {
            tracing::warn!("the replica did not stop in time");
        }
        self.tasks.shutdown().await;
        let log = self.log.clone();
        let synced = tokio::task::spawn_blocking(move || log.sync()).await?;
        match ended {
            Some(reason) => bail!("the node stops: {reason}"),
            None => synced.context("the log could not be synced at the end"),
        }
    }

    /// A leader that stops lets another take over first, so that clients hardly notice.
    async fn hand_over(&self) {
        let others = self.replica.status().nodes.iter().filter(|node| node.voter).count() > 1;
        if !others || !self.raft.is_leader() {
            return;
        }
        match self.replica.transfer(None, Instant::now() + HANDOVER_TIMEOUT).await {
            Ok(leader) => tracing::info!(%leader, "leadership handed over"),
            Err(error) => tracing::warn!(%error, "leadership not handed over"),
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

/// Waits until openraft says what it found on disk: before that it shows an empty log and no
/// membership, and nobody may be served.
async fn show_log(raft: &Raft, last_at_start: Option<LogIndex>) -> anyhow::Result<()> {
    raft.wait(Some(START_TIMEOUT))
        .metrics(|metrics| metrics.last_log_index >= last_at_start, "the log is known")
        .await
        .context("the replica did not start")?;
    Ok(())
}

/// Completes with the reason once openraft has stopped by itself.
async fn fatal(raft: &Raft) -> String {
    let mut metrics = raft.metrics();
    loop {
        if let Err(fatal) = &metrics.borrow_watched().running_state {
            return fatal.to_string();
        }
        if metrics.changed().await.is_err() {
            return "the replica ended".to_owned();
        }
    }
}

async fn bind(who: &str, address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen for {who} on {address}"))
}

/// What was opened on disk, and the sandbox. All of it blocking work.
struct Opened {
    data_dir: DataDir,
    log: Log,
    snapshots: SnapshotDir,
    modules: ModuleStore,
    compiled: CompiledModules,
    space: Space,
    engine: Engine,
}

impl Opened {
    fn open(config: &Config) -> anyhow::Result<Self> {
        let data_dir = DataDir::open(&config.data_dir, config.node_id)?;
        let space = Space::new(config.data_dir.clone(), config.file.disk_reserve_bytes)?;
        space.check().context("the node cannot start on a full disk")?;
        let log = Log::open(&data_dir.log(), &LogConfig::from(&config.file))?;
        let snapshots = SnapshotDir::open(&data_dir.snapshots())?.keeping_free(space.floor());
        let modules = ModuleStore::open(&data_dir.modules())?;
        let engine = Engine::new().context("the sandbox cannot be set up")?;
        let compiled = match CodeStore::open(&data_dir.cache(), engine.profile()) {
            Ok(store) => CompiledModules::with_cache(Box::new(DiskCache(store))),
            Err(error) => {
                tracing::warn!(%error, "compiled code is not kept: each start compiles anew");
                CompiledModules::default()
            }
        };
        Ok(Self { data_dir, log, snapshots, modules, compiled, space, engine })
    }
}

/// Modules on disk, as the machines know them.
struct DiskLibrary(ModuleStore);

impl ModuleLibrary for DiskLibrary {
    fn put(&self, digest: &ModuleDigest, bytes: &[u8]) -> std::io::Result<()> {
        self.0.put(*digest, bytes).map_err(storage::Error::into_io)
    }

    fn get(&self, digest: &ModuleDigest) -> std::io::Result<Bytes> {
        let bytes = self.0.get(*digest).map_err(storage::Error::into_io)?;
        bytes.ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }
}

/// Compiled code on disk, as the machines know it.
struct DiskCache(CodeStore);

impl CodeCache for DiskCache {
    fn put(&self, digest: &ModuleDigest, code: &[u8]) -> std::io::Result<()> {
        self.0.put(*digest, code).map_err(storage::Error::into_io)
    }

    fn get(&self, digest: &ModuleDigest) -> std::io::Result<Option<Vec<u8>>> {
        self.0.get(*digest).map_err(storage::Error::into_io)
    }
}

/// Everything wired together, nothing running but openraft.
struct Wiring {
    raft: Raft,
    network: Network,
    local: Arc<Local>,
    member: Member,
    environment: Environment,
    snapshots: Arc<Snapshots>,
    incoming: SnapshotDir,
    space: Arc<Space>,
    last_at_start: Option<LogIndex>,
    staged: mpsc::UnboundedReceiver<ModuleDigest>,
    progress: watch::Receiver<Progress>,
    unsynced: watch::Receiver<usize>,
}

impl Wiring {
    async fn wire(config: &Config, opened: Opened) -> anyhow::Result<Self> {
        let Opened { data_dir, log, snapshots, modules, compiled, space, engine } = opened;
        let identity = data_dir.identity();
        let cluster = Arc::new(identity.cluster.map(OnceLock::from).unwrap_or_default());
        let (staged_sender, staged) = mpsc::unbounded_channel();
        let environment = Environment {
            cluster: Arc::clone(&cluster),
            profile: engine.profile().to_owned(),
            engine,
            library: Arc::new(DiskLibrary(modules)),
            history: Arc::new(LogHistory(log.clone())),
            compiled: Arc::new(compiled),
            staged: staged_sender,
            directory: Arc::new(Directory::default()),
        };
        let data_dir = Arc::new(data_dir);
        let joining = Arc::clone(&data_dir);
        let adopt = move |id: ClusterId| {
            joining.join_cluster(id).map_err(|error| error.to_string())?;
            cluster.get_or_init(|| id);
            Ok(())
        };
        let profile = environment.profile.clone();
        let (node, incarnation) = (identity.node_id, identity.incarnation);
        let local = Local::new(node, incarnation, profile, identity.cluster, Box::new(adopt));
        let network = Network::new(Arc::clone(&local), &config.file.peer_reach);
        let incoming = snapshots.clone();
        let found = log.state()?;
        let last_at_start = found.last.map(|last| last.index);
        let purged_at_start = found.purged.map(|purged| purged.index);
        let snapshots = Arc::new(Snapshots::new(snapshots, purged_at_start, last_at_start));
        let committed_at_start = found.committed.map(|committed| committed.index);
        if let Some(found) = data_dir.quarantine()? {
            snapshots.keep_evidence(found.index);
        }
        let log = LogStore::new(log);
        let unsynced = log.unsynced();
        let (progress_sender, progress) = watch::channel(Progress::default());
        let state_machine = StateMachine::open(
            environment.clone(),
            Arc::clone(&snapshots),
            data_dir,
            committed_at_start,
            progress_sender,
        )
        .await?;
        let raft_config = Arc::new(raft_config(&config.file).validate()?);
        let raft = Raft::new(node, raft_config, network.clone(), log, state_machine).await?;
        show_log(&raft, last_at_start).await?;
        let (peer_addr, client_addr) =
            (config.peer_addr.to_string(), config.client_addr.to_string());
        let member = Member { peer_addr, client_addr, incarnation: incarnation.0 };
        let space = Arc::new(space);
        Ok(Self {
            raft,
            network,
            local,
            member,
            environment,
            snapshots,
            incoming,
            space,
            last_at_start,
            staged,
            progress,
            unsynced,
        })
    }

    /// What brings into the log what this node says of itself.
    fn reporting(&self) -> (Courier, ReportTask, ProfileTask) {
        let (node, raft) = (self.local.node_id(), self.raft.clone());
        let courier = Courier { node, raft: raft.clone(), network: self.network.clone() };
        let directory = Arc::clone(&self.environment.directory);
        let reports = ReportTask {
            courier: courier.clone(),
            directory: Arc::clone(&directory),
            snapshots: Arc::clone(&self.snapshots),
        };
        let (local, network) = (Arc::clone(&self.local), self.network.clone());
        let profile = ProfileTask { raft, directory, local, network };
        (courier, reports, profile)
    }

    /// Starts every task of the node.
    fn spawn(self, config: &Config, log: Log, clients: TcpListener, peers: TcpListener) -> Node {
        let (courier, reports, profile) = self.reporting();
        let mut tasks = JoinSet::new();
        let (stop, stopped) = watch::channel(false);
        let raft = self.raft.clone();
        let directory = Arc::clone(&self.environment.directory);
        let (proposer, proposing) = Proposer::new(
            raft.clone(),
            Arc::clone(&directory),
            self.unsynced,
            now_ms,
            &config.file,
        );
        let (reader, reading) =
            Reader::new(raft.clone(), Arc::clone(&directory), Arc::clone(&self.space), now_ms);
        let checkpoints = CheckpointTask::new(
            raft.clone(),
            Arc::clone(&self.snapshots),
            self.progress,
            &config.file,
        );
        let modules =
            ModuleTask { courier, environment: self.environment.clone(), staged: self.staged };
        let space = Arc::clone(&self.space);
        let handler = Arc::new(PeerHandler::new(
            raft.clone(),
            Arc::clone(&self.local),
            self.incoming,
            Arc::clone(&space),
            Arc::clone(&directory),
        ));
        let (recovered_sender, recovered) = watch::channel(false);
        let recovery = watch_recovery(raft.clone(), self.last_at_start, recovered_sender);
        let replica = Replica::new(Shared {
            recovered,
            local: self.local,
            member: self.member,
            raft: raft.clone(),
            network: self.network,
            directory: Arc::clone(&directory),
            environment: self.environment,
            proposer,
            reader,
            snapshots: self.snapshots,
            space: self.space,
        });
        let (heartbeat, election) =
            (config.file.heartbeat_interval_ms, config.file.election_timeout_ms_min);
        let pulse = pulse::watch(Duration::from_millis(heartbeat), Duration::from_millis(election));
        tasks.spawn(finishes(pulse));
        tasks.spawn(finishes(proposing.run()));
        tasks.spawn(finishes(reading.run()));
        tasks.spawn(finishes(checkpoints.run()));
        tasks.spawn(finishes(recovery));
        tasks.spawn(finishes(modules.run()));
        tasks.spawn(finishes(reports.run()));
        tasks.spawn(finishes(profile.run()));
        tasks.spawn(finishes(ParkingTask::new(replica.clone()).run()));
        tasks.spawn(finishes(async move { space.run().await }));
        tasks.spawn(serve_peers(peers, handler, stopped.clone()));
        let options = Options {
            forward: config.forward,
            request_timeout: Duration::from_millis(config.file.request_timeout_ms),
        };
        let services = Services::new(replica.clone(), options);
        let serving = api::serve_clients(clients, services, stopping(stopped));
        tasks.spawn(async move { Ok(serving.await?) });
        announce(config, &replica);
        Node { replica, raft, log, stop, tasks }
    }
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

/// A task that ends well.
async fn finishes(task: impl Future<Output = ()>) -> anyhow::Result<()> {
    task.await;
    Ok(())
}

/// Completes once the node stops.
async fn stopping(mut stopped: watch::Receiver<bool>) {
    // A sender that is gone means that the node is.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

async fn serve_peers(
    listener: TcpListener,
    handler: Arc<PeerHandler<StateMachine>>,
    stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let stop = async {
        stopping(stopped).await;
        handler.stop();
    };
    api::peer::server()
        .add_service(api::peer::service(Arc::clone(&handler)))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), stop)
        .await?;
    Ok(())
}

/// How openraft runs here: snapshots and purges are ours alone (`raft::checkpoints`), pre-vote
/// keeps a node that was cut off from disturbing the leader, and a restarted leader is elected
/// again rather than trusted. `ParkingTask` lets a node stand in elections
/// once it knows that it may.
fn raft_config(config: &FileConfig) -> openraft::Config {
    openraft::Config {
        cluster_name: "lockstep".to_owned(),
        election_timeout_min: config.election_timeout_ms_min,
        election_timeout_max: config.election_timeout_ms_max,
        heartbeat_interval: config.heartbeat_interval_ms,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        enable_elect: false,
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        ..openraft::Config::default()
    }
}

/// The wall clock. Only the leader reads it, to stamp entries.
fn now_ms() -> TimeMs {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    TimeMs::try_from(since_epoch.as_millis()).unwrap_or(TimeMs::MAX)
}
