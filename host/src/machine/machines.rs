//! The apply of one entry: the only code that changes a machine.
//!
//! Invariant: what an entry does depends on the entry, the tables and the guests alone. Nothing
//! here reads clock, random numbers, configuration, environment or network. What a guest does is
//! an outcome; only the host's own failures are errors, and they stop the node.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::compiled::CompiledModules;
use super::directory::{Directory, Published, View};
use super::library::ModuleLibrary;
use super::tables::{MachineRecord, Refusal, Restoring, Tables};
use super::{Applied, HostFailure, Response, Then};
use crate::config::limits;
use crate::machine::entry::batch::Batch;
use crate::machine::entry::proposal::Proposal;
use crate::machine::guest::history::History;
use crate::machine::guest::instance::Blueprint;
use crate::machine::guest::outcome::{bytes_of, outcome_of};
use crate::machine::guest::restoring::check_schema;
use crate::machine::guest::thread::GuestHandle;
use crate::machine::tables::agreement::CheckpointRecord;
use crate::types::{
    ClusterId, LogIndex, MachineId, Membership, ModuleDigest, Outcome, StateDigest,
};
use crate::wasm::{Context, Engine, Failure, Limits, LimitsChange, Manifest};

/// What the apply path needs from this node.
#[derive(Clone)]
pub struct Environment {
    /// The cluster; set before the first entry can be applied.
    pub cluster: Arc<OnceLock<ClusterId>>,
    /// The sandbox.
    pub engine: Engine,
    /// Its profile: what must be equal for replicas to stay equal.
    pub profile: String,
    /// Keeps the bytes of staged modules.
    pub library: Arc<dyn ModuleLibrary>,
    /// Finds applied batches in the log.
    pub history: Arc<dyn History>,
    /// Modules compiled so far.
    pub compiled: Arc<CompiledModules>,
    /// One module is compiled at a time, whoever wants it.
    pub compiling: Arc<Semaphore>,
    /// Where the machines can be seen from outside.
    pub directory: Arc<Directory>,
}

/// A running machine: its guest, and what the guest says of itself.
pub(super) struct Running {
    pub(super) guest: GuestHandle,
    pub(super) manifest: Manifest,
    /// What the guest may use now.
    pub(super) limits: Limits,
}

/// All machines of this node, with everything replicated around them.
pub struct Machines {
    pub(super) environment: Environment,
    pub(super) tables: Tables,
    /// The pieces of modules that are not whole.
    pub(super) staging: BTreeMap<ModuleDigest, Vec<Bytes>>,
    /// The library may keep modules that the tables do not have.
    pub(super) unswept: bool,
    pub(super) running: BTreeMap<MachineId, Running>,
    live: bool,
    replayed_up_to: LogIndex,
    /// Why this node applies nothing, if so.
    node_parked: Option<String>,
    /// Why writes have stopped on all nodes, if so.
    pub(super) halted: Option<String>,
}

impl Machines {
    /// The state before the first entry; not live yet.
    pub fn empty(environment: Environment) -> Self {
        Self {
            environment,
            tables: Tables::default(),
            staging: BTreeMap::new(),
            unswept: true,
            running: BTreeMap::new(),
            live: false,
            replayed_up_to: 0,
            node_parked: None,
            halted: None,
        }
    }

    /// Entries up to this index were applied by this node before, so guests are not heard on them
    /// again.
    pub fn replays_up_to(&mut self, index: LogIndex) {
        self.replayed_up_to = index;
        self.running.values().for_each(|running| running.guest.replays_up_to(index));
    }

    /// Makes these the machines that are seen from outside, as of `applied`. Until then what they
    /// do shows nowhere, so that a state under construction answers no query.
    pub fn go_live(&mut self, applied: LogIndex) {
        if self.node_parked.is_none() {
            self.assert_whole(applied);
        }
        self.live = true;
        self.publish();
        self.advance(applied);
    }

    /// Ends all guests, since another state takes the place of this one: the memory of two is
    /// never held at once. Queries are refused until the other goes live.
    pub fn give_way(self) {
        let environment = self.environment.clone();
        let view = self.view();
        drop(self);
        let machines = view.machines.into_iter().map(|(name, published)| {
            let published = Published { guest: None, active_limits: None, ..published };
            (name, published)
        });
        let view = View { machines: machines.collect(), replacing: true, ..view };
        environment.directory.publish(view);
    }

    /// Applies one entry.
    pub async fn apply(
        &mut self,
        index: LogIndex,
        proposal: Proposal,
        membership: &Membership,
    ) -> Result<Applied, HostFailure> {
        let time_before = self.tables.time_ms;
        let is_frequent = matches!(proposal, Proposal::Commands { .. } | Proposal::Tick { .. });
        let applied = match self.refuse(&proposal) {
            Some(refusal) => Response::Refused(refusal).into(),
            None => self.apply_proposal(index, proposal, membership).await?,
        };
        assert!(self.tables.time_ms >= time_before, "replicated time went back at {index}");
        // Commands and ticks change nothing else of the tables.
        if !is_frequent {
            self.assert_whole(index);
        }
        self.advance(index);
        Ok(applied)
    }

    /// The one place that tells kinds of entries apart.
    async fn apply_proposal(
        &mut self,
        index: LogIndex,
        proposal: Proposal,
        membership: &Membership,
    ) -> Result<Applied, HostFailure> {
        Ok(match proposal {
            Proposal::Commands { time_ms, batches } => {
                let time_ms = self.tables.advance_time(time_ms);
                Response::Commands(self.apply_batches(index, time_ms, batches).await?).into()
            }
            Proposal::Tick { time_ms } => {
                self.tables.advance_time(time_ms);
                Response::Nothing.into()
            }
            Proposal::StageModule(chunk) => self.stage(index, chunk).await?.into(),
            Proposal::ModuleReady(report) => {
                self.tables.report(report, membership);
                self.publish();
                Response::Nothing.into()
            }
            Proposal::CreateMachine { name, module, limits } => {
                let record = MachineRecord { name, module, limits, restoring: None };
                self.create(MachineId(index), record, membership).await?.into()
            }
            Proposal::BeginRestore { name, module, limits, schema } => {
                let restoring = Some(Restoring { schema, parts: 0 });
                let record = MachineRecord { name, module, limits, restoring };
                self.create(MachineId(index), record, membership).await?.into()
            }
            Proposal::ImportState(part) => self.import(index, part).await?.into(),
            Proposal::RemoveMachine { machine } => self.remove(index, machine).into(),
            Proposal::Checkpoint => {
                self.tables.drop_spare_modules();
                self.forget_dropped();
                self.tables.note_checkpoint(index);
                self.judge(membership);
                Applied::new(Response::Nothing, Then::Capture)
            }
            Proposal::CheckpointReport(report) => {
                self.tables.note_report(report, membership);
                self.judge(membership);
                Applied::new(Response::Nothing, Then::CompareStates)
            }
            Proposal::EngineProfile(profile) => {
                let was_sealed = self.sealed().is_some();
                let response = self.decide_profile(profile);
                let decided = was_sealed && self.sealed().is_none();
                Applied::new(response, Then::CompareProfiles { decided })
            }
            Proposal::Seal { to } => Applied::new(self.seal(index, to, membership), Then::Capture),
            Proposal::SetLimits { machine, change } => {
                self.set_limits(machine, &change).await?.into()
            }
            Proposal::SetClusterLimits(limits) => {
                let set = self.tables.set_cluster_limits(limits);
                self.publish();
                set.into()
            }
        })
    }

    /// Asserts what always holds of the tables, and between them and what runs.
    fn assert_whole(&self, applied: LogIndex) {
        self.tables.assert_whole(applied);
        assert!(
            self.running.keys().eq(self.tables.machines.keys()),
            "exactly the machines of the tables run, at {applied}"
        );
        for (id, record) in &self.tables.machines {
            assert_eq!(self.running[id].limits, record.limits, "limits of {id:?} at {applied}");
        }
        let misstaged = self.misstaged();
        assert_eq!(misstaged, None, "pieces here and in the tables differ, at {applied}");
    }

    /// A module of which there are not exactly the pieces that the tables tell of: all so far of
    /// one that is partial, none of any other.
    pub(super) fn misstaged(&self) -> Option<ModuleDigest> {
        let bytes = |digest: &ModuleDigest| {
            let pieces = self.staging.get(digest)?;
            u64::try_from(pieces.iter().map(Bytes::len).sum::<usize>()).ok()
        };
        let told = |digest: &ModuleDigest| {
            let module = self.tables.modules.get(digest)?;
            module.is_partial().then_some(module.staged)
        };
        let mut all = self.staging.keys().chain(self.tables.modules.keys());
        all.find(|digest| bytes(digest) != told(digest)).copied()
    }

    /// Notes that an entry without a proposal (blank, membership) has been applied.
    pub fn advance(&self, index: LogIndex) {
        if self.live && self.node_parked.is_none() {
            self.environment.directory.advance(index, self.tables.time_ms);
        }
    }

    /// Notes the nodes that a committed membership leaves out.
    pub fn change_membership(&mut self, before: &Membership, now: &Membership) {
        self.tables.retire_missing(before, now);
        self.judge(now);
    }

    /// Draws the conclusions from what nodes said of checkpoints.
    pub fn judge(&mut self, membership: &Membership) {
        let halted = self.tables.judge(membership);
        match (&self.halted, &halted) {
            (None, Some(reason)) => tracing::error!(%reason, "writes have stopped"),
            (Some(_), None) => tracing::info!("writes go on"),
            _ => {}
        }
        self.halted = halted;
        self.publish();
    }

    /// The engine profile that entries are applied with, once it is in the log.
    pub fn engine_profile(&self) -> Option<&str> {
        self.tables.engine_profile.as_deref()
    }

    /// The checkpoints that the cluster agreed on, and on which state.
    pub fn agreed(&self) -> impl Iterator<Item = (LogIndex, StateDigest)> {
        let agreed = |(index, record): (&LogIndex, &CheckpointRecord)| {
            record.agreed.map(|digest| (*index, digest))
        };
        self.tables.checkpoints.iter().filter_map(agreed)
    }

    /// Shows that this node applies nothing from now on, and why.
    pub fn park_node(&mut self, reason: String) {
        self.node_parked = Some(reason);
        self.publish();
    }

    /// Why this node applies nothing, if so.
    pub fn node_parked(&self) -> Option<&str> {
        self.node_parked.as_deref()
    }

    async fn apply_batches(
        &mut self,
        index: LogIndex,
        time_ms: u64,
        batches: Vec<Batch>,
    ) -> Result<Vec<Outcome>, HostFailure> {
        let count = batches.iter().map(Batch::count).sum();
        let mut outcomes = Vec::with_capacity(count);
        let mut room = limits::ENTRY_REPLIES_BYTES_MAX;
        for batch in batches {
            if room == 0 {
                outcomes.extend(std::iter::repeat_n(Outcome::NotReached, batch.count()));
                continue;
            }
            let machine = batch.machine();
            let running = self.running.get(&machine);
            let Some(running) = running.filter(|_| !self.tables.is_restoring(&machine)) else {
                outcomes.extend(std::iter::repeat_n(Outcome::NoSuchMachine, batch.count()));
                continue;
            };
            let context = Context { index, time_ms, seed: self.seed(machine, index) };
            let count = batch.count();
            let of_batch = running.guest.apply(context, batch, room).await?;
            assert_eq!(of_batch.len(), count, "one outcome a command, at {index}");
            room = room.saturating_sub(bytes_of(&of_batch));
            for outcome in of_batch {
                if outcome.is_failure() {
                    running.guest.log_failure(index, outcomes.len(), &describe(&outcome));
                }
                outcomes.push(outcome);
            }
        }
        assert_eq!(outcomes.len(), count, "one outcome for each command of entry {index}");
        Ok(outcomes)
    }

    /// Creates a machine; one whose state is to come in is hidden until it is complete.
    async fn create(
        &mut self,
        id: MachineId,
        record: MachineRecord,
        membership: &Membership,
    ) -> Result<Response, HostFailure> {
        let MachineRecord { name, module, limits, restoring } = &record;
        if let Err(refusal) = self.tables.check_create(name, module, limits, membership) {
            return Ok(Response::Refused(refusal));
        }
        let running = match self.start(name, *module, *limits).await {
            Ok(running) => running,
            Err(Failure::Host(reason)) => return Err(HostFailure::Stop(reason)),
            Err(failure) => {
                let reason = failure.to_string();
                return Ok(Response::Refused(Refusal::ModuleNotReady(reason)));
            }
        };
        if let Some(Restoring { schema, .. }) = restoring
            && let Err(refusal) = check_schema(&running.manifest, *schema)
        {
            return Ok(Response::Refused(refusal));
        }
        let of_before = (self.running.insert(id, running), self.tables.machines.insert(id, record));
        assert!(matches!(of_before, (None, None)), "{id:?} is the id of one machine");
        self.publish();
        Ok(Response::MachineCreated(id))
    }

    /// Changes the limits of a machine, in the tables and of its guest.
    async fn set_limits(
        &mut self,
        machine: MachineId,
        change: &LimitsChange,
    ) -> Result<Result<(), Refusal>, HostFailure> {
        let limits = match self.tables.set_limits(machine, change) {
            Ok(limits) => limits,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let running = self.running.get_mut(&machine).expect("every machine runs");
        running.guest.set_limits(limits).await?;
        running.limits = limits;
        self.publish();
        Ok(Ok(()))
    }

    /// A fresh guest of a staged module.
    async fn start(
        &self,
        name: &str,
        module: ModuleDigest,
        limits: Limits,
    ) -> Result<Running, Failure> {
        let (blueprint, manifest) = self.blueprint(module, limits).await?;
        let guest = GuestHandle::start(name, blueprint).await?;
        guest.replays_up_to(self.replayed_up_to);
        Ok(Running { guest, manifest, limits })
    }

    /// What guests of a staged module are made from.
    pub(super) async fn blueprint(
        &self,
        module: ModuleDigest,
        limits: Limits,
    ) -> Result<(Blueprint, Manifest), Failure> {
        let compiled = self
            .environment
            .compile(module, u64::MAX)
            .await
            .map_err(|error| Failure::Host(format!("compiling panicked: {error}")))?
            .map_err(|reason| {
                Failure::Host(format!(
                    "module {module} was compiled by every voter but not here: {reason}"
                ))
            })?;
        let manifest = compiled.manifest().clone();
        let engine = self.environment.engine.clone();
        let history = Arc::clone(&self.environment.history);
        Ok((Blueprint { engine, module: compiled, limits, history }, manifest))
    }

    fn remove(&mut self, index: LogIndex, machine: MachineId) -> Result<(), Refusal> {
        self.tables.remove_machine(index, machine)?;
        assert!(self.running.remove(&machine).is_some(), "{machine:?} ran until entry {index}");
        self.publish();
        Ok(())
    }

    /// Seed of an apply call: equal on all nodes, different for each machine and entry.
    fn seed(&self, machine: MachineId, index: LogIndex) -> u64 {
        let cluster = self.environment.cluster.get().expect("entries come from a cluster");
        let mut hash = Sha256::new();
        hash.update(cluster.0);
        hash.update(machine.0.to_le_bytes());
        hash.update(index.to_le_bytes());
        let digest: [u8; 32] = hash.finalize().into();
        u64::from_le_bytes(*digest.first_chunk().expect("32 bytes hold 8"))
    }

    pub(super) fn publish(&self) {
        if self.live {
            self.environment.directory.publish(self.view());
        }
    }

    fn view(&self) -> View {
        let applies = self.node_parked.is_none();
        let machines = self.tables.machines.iter().map(|(id, record)| {
            let running = self.running.get(id);
            let published = Published {
                id: *id,
                name: record.name.clone(),
                module: record.module,
                manifest: running.map(|running| running.manifest.clone()),
                limits: record.limits,
                active_limits: running.map(|running| running.limits),
                guest: running
                    .filter(|_| applies && record.restoring.is_none())
                    .map(|running| running.guest.clone()),
                restoring: record.restoring,
            };
            (record.name.clone(), published)
        });
        View {
            machines: machines.collect(),
            modules: self.tables.modules.clone(),
            retired_nodes: self.tables.retired_nodes.clone(),
            checkpoints: self.tables.checkpoints.clone(),
            cluster_limits: self.tables.cluster_limits,
            engine_profile: self.tables.engine_profile.clone(),
            sealed: self.tables.sealed.clone(),
            halted: self.halted.clone(),
            parked: self.node_parked.clone(),
            replacing: false,
        }
    }
}

/// A sentence about a failed outcome.
pub fn describe(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Accepted(_) | Outcome::Rejected(_) => "the guest answered".to_owned(),
        Outcome::Trapped(reason) => format!("the guest trapped: {reason}"),
        Outcome::OutOfFuel { limit, fuel } => {
            format!("the guest used up its fuel of {fuel} ({limit})")
        }
        Outcome::TooLarge { length, limit } => {
            format!("the guest's reply has {length} bytes, the limit is {limit}")
        }
        Outcome::NoSuchMachine => "there is no such machine (any more)".to_owned(),
        Outcome::NotReached => "it was not executed: its entry has long replies".to_owned(),
    }
}

pub(super) fn describe_failure(failure: &Failure) -> String {
    match outcome_of(failure.clone()) {
        Ok(outcome) => describe(&outcome),
        Err(failure) => failure.to_string(),
    }
}
