//! Which part of a group is given which: everything wired together, then spawned.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::Group;
use super::opened::{DiskLibrary, Opened};
use crate::config::{Config, FileConfig};
use crate::machine::{Directory, Environment};
use crate::raft::Raft;
use crate::raft::admin::MembershipTask;
use crate::raft::admin::machine_admin::AskedCheckpoints;
use crate::raft::ask::proposer::ProposerTask;
use crate::raft::ask::reader::Reader;
use crate::raft::ask::replica::{Replica, Shared};
use crate::raft::clock::{Clock, System};
use crate::raft::duties::checkpoints::{CheckpointTask, checkpoint_size};
use crate::raft::duties::courier::Courier;
use crate::raft::duties::election::ElectionTask;
use crate::raft::duties::fitness::FitnessTask;
use crate::raft::duties::modules::ModuleTask;
use crate::raft::duties::profile::ProfileTask;
use crate::raft::duties::pulse;
use crate::raft::duties::recovery::{AtStart, watch_recovery};
use crate::raft::duties::rejoin::RejoinTask;
use crate::raft::duties::reports::ReportTask;
use crate::raft::duties::scrub;
use crate::raft::duties::space::Space;
use crate::raft::duties::stall;
use crate::raft::duties::timekeeper::TimekeeperTask;
use crate::raft::duties::timing::raft_config;
use crate::raft::network::{Local, Network, Parts, PeerHandler};
use crate::raft::store::history::LogHistory;
use crate::raft::store::log_store::LogStore;
use crate::raft::store::snapshots::Snapshots;
use crate::raft::store::state_machine::{Progress, StateMachine};
use crate::storage::snapshot::SnapshotDir;
use crate::storage::{DataDir, Identity, Log, LogState};
use crate::types::{ClusterId, LogIndex, Member, NodeId};

/// What to do with a node that has lost what it acknowledged.
const REPAIR: &str = "Repair: `lockstep cluster remove` this node, start it under a new id on an \
                      empty data folder, and `lockstep cluster add` it";
/// How long openraft may take to look at the log it was given.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Everything wired together, nothing running but openraft.
pub(super) struct Wiring {
    raft: Raft,
    log: Log,
    network: Network,
    local: Arc<Local>,
    member: Member,
    environment: Environment,
    snapshots: Arc<Snapshots>,
    incoming: SnapshotDir,
    space: Arc<Space>,
    clock: Arc<Clock>,
    last_at_start: Option<LogIndex>,
    committed_at_start: Option<LogIndex>,
    progress: watch::Receiver<Progress>,
    unsynced: watch::Receiver<usize>,
}

impl Wiring {
    /// Wires what was opened.
    ///
    /// # Errors
    /// What is on disk does not fit together, or the configuration is unusable.
    pub(super) async fn wire(config: &Config, opened: Opened) -> anyhow::Result<Self> {
        let clock = Arc::new(Clock::new(Box::<System>::default())?);
        let Opened { data_dir, log, snapshots, modules, compiled, space, engine } = opened;
        let identity = data_dir.identity();
        let cluster = Arc::new(identity.cluster.map(OnceLock::from).unwrap_or_default());
        let environment = Environment {
            cluster: Arc::clone(&cluster),
            profile: engine.profile().to_owned(),
            engine,
            library: Arc::new(DiskLibrary::new(modules)),
            history: Arc::new(LogHistory(log.clone())),
            compiled: Arc::new(compiled),
            compiling: Arc::new(Semaphore::new(1)),
            directory: Arc::new(Directory::default()),
        };
        let data_dir = Arc::new(data_dir);
        let local = local(&data_dir, cluster, environment.profile.clone());
        local.watch_log(log.clone());
        let network = Network::new(Arc::clone(&local), &config.file.peer_reach);
        let incoming = snapshots.clone();
        let found = log.state()?;
        let last_at_start = found.last.map(|last| last.index);
        let committed_at_start = found.committed.map(|committed| committed.index);
        let snapshots = Arc::new(open_snapshots(snapshots, &found, &data_dir)?);
        let store = LogStore::new(log.clone());
        let unsynced = store.unsynced();
        let (progress_sender, progress) = watch::channel(Progress::default());
        let state_machine = StateMachine::open(
            environment.clone(),
            Arc::clone(&snapshots),
            data_dir,
            committed_at_start,
            (progress_sender, checkpoint_size(&config.file)),
        )
        .await?
        .skipping(config.file.skip_entries.iter().copied());
        let raft_config = Arc::new(raft_config(&config.file).validate()?);
        let node = identity.node_id;
        let raft = Raft::new(node, raft_config, network.clone(), store, state_machine).await?;
        show_log(&raft, last_at_start).await?;
        Ok(Self {
            member: member(config, &identity),
            space: Arc::new(space),
            clock,
            log,
            raft,
            network,
            local,
            environment,
            snapshots,
            incoming,
            last_at_start,
            committed_at_start,
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

    /// What answers the peers of this node.
    fn peers(&self, config: &Config) -> PeerHandler<StateMachine> {
        let parts = Parts {
            raft: self.raft.clone(),
            local: Arc::clone(&self.local),
            network: self.network.clone(),
            trusted: config.file.trusted_peers.iter().copied().map(NodeId).collect(),
            space: Arc::clone(&self.space),
            directory: Arc::clone(&self.environment.directory),
            clock: Arc::clone(&self.clock),
        };
        PeerHandler::new(parts, self.incoming.clone())
    }

    /// What keeps the clock of this node.
    fn timekeeper(&self) -> TimekeeperTask {
        TimekeeperTask {
            node: self.local.node_id(),
            clock: Arc::clone(&self.clock),
            raft: self.raft.clone(),
            network: self.network.clone(),
            directory: Arc::clone(&self.environment.directory),
        }
    }

    /// What asks the peers before this node votes.
    fn rejoin(&self, config: &Config) -> RejoinTask {
        RejoinTask {
            local: Arc::clone(&self.local),
            raft: self.raft.clone(),
            network: self.network.clone(),
            log: self.log.clone(),
            wait: Duration::from_millis(config.file.election_timeout_ms),
        }
    }

    /// Starts every task of the group.
    pub(super) fn spawn(self, config: &Config) -> Group {
        let (courier, reports, profile) = self.reporting();
        let rejoin = self.rejoin(config);
        let (peers, timekeeper) = (Arc::new(self.peers(config)), self.timekeeper());
        let mut tasks = JoinSet::new();
        let raft = self.raft.clone();
        let directory = Arc::clone(&self.environment.directory);
        let (proposer, proposing) = ProposerTask::new(
            raft.clone(),
            Arc::clone(&directory),
            self.unsynced,
            Arc::clone(&self.clock),
            &config.file,
        );
        let (reader, reading) = Reader::new(
            raft.clone(),
            Arc::clone(&directory),
            Arc::clone(&self.space),
            Arc::clone(&self.clock),
        );
        let checkpoints = CheckpointTask::new(
            raft.clone(),
            Arc::clone(&self.snapshots),
            self.progress,
            &config.file,
        );
        let modules = ModuleTask { courier, environment: self.environment.clone() };
        let (space, library) = (Arc::clone(&self.space), Arc::clone(&self.environment.library));
        let (changes, change_requests) = MembershipTask::queue();
        let interval = Duration::from_secs(config.file.snapshot_check_interval_s);
        let checking = scrub::run(Arc::clone(&self.snapshots), interval);
        let (recovered_sender, recovered) = watch::channel(false);
        let at_start = AtStart { last: self.last_at_start, committed: self.committed_at_start };
        let recovery =
            watch_recovery(raft.clone(), Arc::clone(&self.local), at_start, recovered_sender);
        let replica = Replica::new(Shared {
            recovered,
            changes,
            local: self.local,
            member: self.member,
            raft: raft.clone(),
            network: self.network,
            directory,
            environment: self.environment,
            proposer,
            reader,
            snapshots: self.snapshots,
            asked_checkpoints: AskedCheckpoints::default(),
            space: self.space,
            clock: self.clock,
        });
        tasks.spawn(named("the pulse", pulse(&config.file)));
        tasks.spawn(named("proposals", proposing.run()));
        tasks.spawn(named("queries", reading.run()));
        tasks.spawn(named("checkpoints", checkpoints.run()));
        tasks.spawn(named("recovery", recovery));
        tasks.spawn(named("rejoining", rejoin.run()));
        tasks.spawn(named("checks of snapshots", checking));
        tasks.spawn(named("modules", modules.run()));
        tasks.spawn(named("reports", reports.run()));
        tasks.spawn(named("the engine profile", profile.run()));
        tasks.spawn(named("the clock", timekeeper.run()));
        tasks.spawn(named("fitness", FitnessTask::new(replica.clone()).run()));
        tasks.spawn(named("elections", ElectionTask::new(replica.clone()).run()));
        let membership = MembershipTask::new(replica.clone(), change_requests);
        tasks.spawn(named("the membership", membership.run()));
        tasks.spawn(named("stalls", stall::watch(replica.clone(), self.log.clone())));
        tasks.spawn(named("room on disk", async move { space.run(library).await }));
        Group { replica, raft, log: self.log, peers, tasks }
    }
}

/// What notices that this node did not get to run.
fn pulse(config: &FileConfig) -> impl Future<Output = ()> + use<> {
    let FileConfig { heartbeat_interval_ms, election_timeout_ms, .. } = config;
    let (heartbeat, election) = (*heartbeat_interval_ms, *election_timeout_ms);
    pulse::watch(Duration::from_millis(heartbeat), Duration::from_millis(election))
}

/// A task that ends with its name.
async fn named(name: &'static str, task: impl Future<Output = ()>) -> &'static str {
    task.await;
    name
}

/// This node, as far as its peers are concerned. One that is asked to join a cluster notes it on
/// disk.
fn local(
    data_dir: &Arc<DataDir>,
    cluster: Arc<OnceLock<ClusterId>>,
    profile: String,
) -> Arc<Local> {
    let identity = data_dir.identity();
    let joining = Arc::clone(data_dir);
    let adopt = move |id: ClusterId| {
        joining.join_cluster(id).map_err(|error| error.to_string())?;
        cluster.get_or_init(|| id);
        Ok(())
    };
    let Identity { node_id, incarnation, cluster } = identity;
    Local::new(node_id, incarnation, profile, cluster, Box::new(adopt))
}

/// The snapshots beside the log that was found. What this node is quarantined for stays.
fn open_snapshots(
    folder: SnapshotDir,
    found: &LogState,
    data_dir: &DataDir,
) -> anyhow::Result<Snapshots> {
    check_snapshots(&folder, found)?;
    let purged = found.purged.map(|purged| purged.index);
    let snapshots = Snapshots::new(folder, purged, found.last.map(|last| last.index));
    if let Some(quarantine) = data_dir.quarantine() {
        snapshots.keep_evidence(quarantine.index);
    }
    Ok(snapshots)
}

/// Refuses a log and snapshots that do not fit together.
fn check_snapshots(folder: &SnapshotDir, found: &LogState) -> anyhow::Result<()> {
    let newest = folder.newest();
    let held = newest.as_ref().and_then(|snapshot| snapshot.id().last);
    // A snapshot of a peer comes ahead of the log, and was announced there.
    if held > found.last && held != found.announced {
        let file = newest.expect("it holds something").path().display().to_string();
        let last = found.last.map_or("nothing".to_owned(), |last| format!("entry {}", last.index));
        bail!(
            "the log ends with {last}, and this node has applied entry {}, as {file} shows: the \
             end of its log is gone, with what it acknowledged. {REPAIR}",
            held.expect("it is more than nothing").index
        );
    }
    match found.purged {
        Some(purged) if held < Some(purged) => bail!(
            "{} holds no snapshot of entry {} or a later one, and the log before that entry is \
             gone: snapshots were removed. If they are elsewhere, put them back. {REPAIR}",
            folder.path().display(),
            purged.index
        ),
        _ => Ok(()),
    }
}

/// How this node is reached.
fn member(config: &Config, identity: &Identity) -> Member {
    Member {
        peer_addr: config.peer_addr.to_string(),
        client_addr: config.client_addr.to_string(),
        incarnation: identity.incarnation.0,
    }
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
