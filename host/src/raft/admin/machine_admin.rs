//! What operators ask of the machines: upload modules, create and remove machines, checkpoint.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::config::limits;
use crate::machine::entry::proposal::ModuleChunk;
use crate::machine::{
    ClusterLimits, Limits, LimitsChange, ModuleRecord, Proposal, Refusal, Response,
};
use crate::raft::ask::error::Error;
use crate::raft::ask::replica::Replica;
use crate::raft::ask::status::{self, MachineStatus};
use crate::raft::type_config::EntryBytes;
use crate::types::{LogIndex, MachineId, ModuleDigest, check_machine_name};

/// Time between two looks at what the voters reported.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// After a checkpoint that was asked for, none is begun for so many times what it took.
const REST_FACTOR: u32 = 4;
/// Nor for less than this.
const REST_MIN: Duration = Duration::from_secs(1);
/// But nobody waits for longer than this.
const REST_MAX: Duration = Duration::from_secs(10);

impl Replica {
    /// Checks a module, stages it on every node and waits until every voter has compiled it.
    pub async fn upload_module(
        &self,
        module: Bytes,
        deadline: Instant,
    ) -> Result<ModuleDigest, Error> {
        self.check_writable()?;
        let digest = ModuleDigest(Sha256::digest(&module).into());
        let view = self.shared.directory.view();
        let is_good = |record: &ModuleRecord| {
            !record.is_partial() && record.reports.values().all(Option::is_none)
        };
        if view.modules.get(&digest).is_some_and(is_good) {
            self.wait_ready(digest, deadline).await?;
            return Ok(digest);
        }
        let work_max = view.cluster_limits.compile_work_max;
        self.check_module(digest, module.clone(), work_max).await?;
        let staged = self.stage_module(digest, &module, deadline).await;
        if staged.is_err() {
            self.shared.environment.compiled.forget(&digest);
        }
        staged?;
        self.wait_ready(digest, deadline).await?;
        Ok(digest)
    }

    /// Writes a module to the log, piece by piece.
    async fn stage_module(
        &self,
        digest: ModuleDigest,
        module: &Bytes,
        deadline: Instant,
    ) -> Result<(), Error> {
        for (number, piece) in module.chunks(limits::MODULE_CHUNK_BYTES).enumerate() {
            let as_u64 = |length: usize| u64::try_from(length).expect("a length in memory fits");
            let chunk = ModuleChunk {
                digest,
                length: as_u64(module.len()),
                offset: as_u64(number * limits::MODULE_CHUNK_BYTES),
                bytes: piece.to_vec(),
            };
            self.write(&Proposal::StageModule(chunk), deadline).await?;
        }
        Ok(())
    }

    /// Compiles a module here before anything of it reaches the log. What this comes to is kept
    /// for when it is staged.
    async fn check_module(
        &self,
        digest: ModuleDigest,
        module: Bytes,
        work_max: u64,
    ) -> Result<(), Error> {
        if module.len() > limits::MODULE_BYTES_MAX {
            let as_u64 = |length: usize| u64::try_from(length).expect("a length in memory fits");
            let (length, limit) = (as_u64(module.len()), as_u64(limits::MODULE_BYTES_MAX));
            return Err(Error::TooLarge { what: "the module", length, limit });
        }
        let admitted = self.shared.environment.admit(digest, module, work_max).await;
        admitted
            .map_err(|error| Error::ModuleRefused(format!("compiling it panicked: {error}")))?
            .map_err(Error::ModuleRefused)
    }

    /// Waits until every voter has compiled a staged module; a voter that cannot is named.
    async fn wait_ready(&self, digest: ModuleDigest, deadline: Instant) -> Result<(), Error> {
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        loop {
            looks.tick().await;
            let membership = self.membership();
            let view = self.shared.directory.view();
            let Some(record) = view.modules.get(&digest) else {
                return Err(Error::ModuleNotReady(Refusal::NoSuchModule(digest).to_string()));
            };
            let Err(refusal) = record.check_ready(&membership) else { return Ok(()) };
            let failed = record.reports.values().any(Option::is_some);
            if failed || Instant::now() >= deadline {
                return Err(Error::ModuleNotReady(refusal.to_string()));
            }
        }
    }

    /// Creates a machine on an uploaded module.
    pub async fn create_machine(
        &self,
        name: &str,
        module: ModuleDigest,
        limits: Limits,
        deadline: Instant,
    ) -> Result<MachineStatus, Error> {
        self.check_creatable(name, module, deadline).await?;
        let create = Proposal::CreateMachine { name: name.to_owned(), module, limits };
        self.write_machine(name, &create, deadline).await
    }

    /// Looks for what stands against a machine of this name on an uploaded module, before anything
    /// reaches the log.
    pub(in crate::raft) async fn check_creatable(
        &self,
        name: &str,
        module: ModuleDigest,
        deadline: Instant,
    ) -> Result<(), Error> {
        check_machine_name(name).map_err(|reason| Error::Invalid(reason.to_owned()))?;
        self.check_writable()?;
        self.wait_ready(module, deadline).await
    }

    /// Writes the entry that creates a machine of this name; the machine.
    pub(in crate::raft) async fn write_machine(
        &self,
        name: &str,
        create: &Proposal,
        deadline: Instant,
    ) -> Result<MachineStatus, Error> {
        match self.write(create, deadline).await? {
            (_, Response::MachineCreated(_)) => self.machine(name),
            (index, other) => panic!("entry {index} creates a machine and answered {other:?}"),
        }
    }

    /// The machines as this node has applied them, by name.
    pub fn machines(&self) -> Vec<MachineStatus> {
        status::machines(&self.shared)
    }

    /// One of them.
    pub fn machine(&self, name: &str) -> Result<MachineStatus, Error> {
        let machine = self.machines().into_iter().find(|machine| machine.name == name);
        machine.ok_or_else(|| Error::NoSuchMachine(name.to_owned()))
    }

    /// Changes what the guest of a machine may use; the machine after it.
    pub async fn set_limits(
        &self,
        name: &str,
        change: LimitsChange,
        deadline: Instant,
    ) -> Result<MachineStatus, Error> {
        let machine = self.find_current(name, deadline).await?;
        self.check_writable()?;
        self.write(&Proposal::SetLimits { machine, change }, deadline).await?;
        self.machine(name)
    }

    /// Sets what every node keeps to, from the next entry on.
    pub async fn set_cluster_limits(
        &self,
        limits: ClusterLimits,
        deadline: Instant,
    ) -> Result<ClusterLimits, Error> {
        self.check_writable()?;
        self.write(&Proposal::SetClusterLimits(limits), deadline).await?;
        Ok(limits)
    }

    /// Removes a machine and its state; with an `id`, only if it is the one that has it.
    pub async fn remove_machine(
        &self,
        name: &str,
        id: Option<MachineId>,
        deadline: Instant,
    ) -> Result<(), Error> {
        let machine = self.find_current(name, deadline).await?;
        if id.is_some_and(|id| id != machine) {
            return Err(Error::NoSuchMachine(name.to_owned()));
        }
        self.check_writable()?;
        self.write(&Proposal::RemoveMachine { machine }, deadline).await.map(drop)
    }

    /// Takes a checkpoint that holds all that was acknowledged before this call; its index. Callers
    /// who wait while one is under way, or until the next may begin, share the next. It survives
    /// its caller.
    pub async fn checkpoint(&self, deadline: Instant) -> Result<LogIndex, Error> {
        self.check_leader()?;
        let known = self.shared.asked_checkpoints.begun();
        let replica = self.clone();
        let taken = tokio::spawn(async move {
            let turn = replica.shared.asked_checkpoints.turn(deadline).await?;
            if let Some(index) = turn.begun_after(known) {
                return Ok(index);
            }
            turn.rest(deadline).await?;
            let taken = replica.take_checkpoint(deadline);
            turn.take(taken).await
        });
        taken.await.map_err(|error| Error::Stopped(error.to_string()))?
    }

    /// Logs a checkpoint and waits until this node's snapshot of it is on disk; its index.
    async fn take_checkpoint(&self, deadline: Instant) -> Result<LogIndex, Error> {
        let (index, _) = self.write(&Proposal::Checkpoint, deadline).await?;
        let mut newest = self.shared.snapshots.watch();
        let written = newest.wait_for(|newest| newest.is_some_and(|newest| newest >= index));
        match tokio::time::timeout_at(deadline.into(), written).await {
            Ok(Ok(_)) => Ok(index),
            Ok(Err(_)) => Err(Error::ShuttingDown),
            Err(_) => match self.shared.snapshots.alarms().unwritten() {
                Some(reason) => Err(Error::Refused(reason)),
                None => Err(Error::DeadlineAfterProposal),
            },
        }
    }

    /// Writes an entry of the host's own and waits until it is applied; where, and what it said.
    pub(in crate::raft) async fn write(
        &self,
        proposal: &Proposal,
        deadline: Instant,
    ) -> Result<(LogIndex, Response), Error> {
        let entry = EntryBytes(proposal.encode());
        let length = entry.0.len();
        assert!(length <= limits::ENTRY_ENCODED_BYTES_MAX, "an entry has {length} bytes");
        let write = self.shared.raft.client_write(entry);
        let written = tokio::time::timeout_at(deadline.into(), write)
            .await
            .map_err(|_| Error::DeadlineAfterProposal)?
            .map_err(Error::from_raft_write)?;
        let index = written.log_id.index();
        match written.data {
            Response::Refused(refusal) => Err(refusal.into()),
            Response::ImportFailed(reason) => Err(Error::ImportFailed(reason)),
            Response::NodeParked(reason) => Err(Error::Stopped(format!("parked: {reason}"))),
            response => Ok((index, response)),
        }
    }
}

/// The checkpoints that were asked for: one under way, and one that all others wait for. However
/// many ask, commands have most of the time for themselves.
#[derive(Debug, Default)]
pub struct AskedCheckpoints {
    begun: AtomicU64,
    last: tokio::sync::Mutex<LastAsked>,
}

/// The last one.
#[derive(Debug, Default)]
struct LastAsked {
    /// Its number and its index, if it was taken.
    taken: Option<(u64, LogIndex)>,
    /// The next one begins then at the earliest.
    rests_until: Option<tokio::time::Instant>,
}

struct CheckpointTurn<'a> {
    asked: &'a AskedCheckpoints,
    last: tokio::sync::MutexGuard<'a, LastAsked>,
}

impl AskedCheckpoints {
    fn begun(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }

    async fn turn(&self, deadline: Instant) -> Result<CheckpointTurn<'_>, Error> {
        let last = tokio::time::timeout_at(deadline.into(), self.last.lock()).await;
        let last = last.map_err(|_| Error::DeadlineBeforeProposal)?;
        Ok(CheckpointTurn { asked: self, last })
    }
}

impl CheckpointTurn<'_> {
    /// The last checkpoint, if it was begun after so many.
    fn begun_after(&self, known: u64) -> Option<LogIndex> {
        self.last.taken.filter(|(number, _)| *number > known).map(|(_, index)| index)
    }

    /// Waits until the next one may begin.
    async fn rest(&self, deadline: Instant) -> Result<(), Error> {
        let Some(until) = self.last.rests_until else { return Ok(()) };
        let rest = tokio::time::sleep_until(until);
        let rested = tokio::time::timeout_at(deadline.into(), rest).await;
        rested.map_err(|_| Error::DeadlineBeforeProposal)
    }

    async fn take(
        mut self,
        checkpoint: impl Future<Output = Result<LogIndex, Error>>,
    ) -> Result<LogIndex, Error> {
        let number = self.asked.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let started = tokio::time::Instant::now();
        let taken = checkpoint.await;
        if let Ok(index) = taken {
            self.last.taken = Some((number, index));
        }
        let rest = rest_after(started.elapsed());
        self.last.rests_until = Some(tokio::time::Instant::now() + rest);
        taken
    }
}

fn rest_after(took: Duration) -> Duration {
    (took * REST_FACTOR).clamp(REST_MIN, REST_MAX)
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Halted(reason) => Self::Halted(reason),
            Refusal::Sealed(reason) => Self::Sealed(reason),
            Refusal::NameTaken(name) => Self::MachineExists(name),
            Refusal::InvalidName(_) | Refusal::InvalidLimits(_) => {
                Self::Invalid(refusal.to_string())
            }
            Refusal::NotRestoring(_) => Self::NotRestoring(refusal.to_string()),
            Refusal::NoSuchModule(_) | Refusal::ModuleNotReady(_) => {
                Self::ModuleNotReady(refusal.to_string())
            }
            Refusal::NoSuchMachine
            | Refusal::TooManyMachines(_)
            | Refusal::BadChunk(_)
            | Refusal::SchemaNotImportable(_)
            | Refusal::BadPart(_)
            | Refusal::BadSeal(_) => Self::Refused(refusal.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of many callers the first takes a checkpoint, and all who came meanwhile share one more. It
    /// is begun some time after the first, as is the next.
    #[tokio::test]
    async fn callers_share_a_checkpoint() {
        let asked = AskedCheckpoints::default();
        let far = Instant::now() + Duration::from_secs(60);
        let (taken, started) = (AtomicU64::new(0), tokio::time::Instant::now());
        let ask = async || {
            let known = asked.begun();
            let turn = asked.turn(far).await.unwrap();
            if let Some(index) = turn.begun_after(known) {
                return index;
            }
            turn.rest(far).await.unwrap();
            let take = async {
                tokio::task::yield_now().await;
                Ok(taken.fetch_add(1, Ordering::Relaxed) + 1)
            };
            turn.take(take).await.unwrap()
        };
        let indexes = futures::future::join_all((0..30).map(|_| ask())).await;
        assert_eq!(indexes[0], 1);
        assert!(indexes[1..].iter().all(|index| *index == 2), "{indexes:?}");
        assert!(started.elapsed() >= REST_MIN, "the second waits");
        assert_eq!(ask().await, 3);
        assert!(started.elapsed() >= 2 * REST_MIN, "the third waits");
    }

    /// Checkpoints that take long are further apart, up to a limit.
    #[test]
    fn a_long_checkpoint_is_followed_by_a_long_rest() {
        let seconds = Duration::from_secs_f64;
        for (took, rest) in [(0.0, 1.0), (0.5, 2.0), (2.0, 8.0), (60.0, 10.0)] {
            assert_eq!(rest_after(seconds(took)), seconds(rest), "after {took} s");
        }
    }
}
