//! The replicated tables beside guest memory. They change only in the apply of an entry and by
//! nothing but that entry, so they are equal on all nodes at equal indices.

pub(in crate::machine) mod agreement;
pub(in crate::machine) mod cluster_limits;
mod invariants;
pub(in crate::machine) mod seal;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::config::limits::{
    IMPORT_PART_BYTES_MAX, MACHINES_MAX, MODULE_BYTES_MAX, MODULES_PARTIAL_MAX, MODULES_SPARE_MAX,
};
use crate::machine::entry::proposal::{ModuleChunk, ModuleReport, StatePart};
use crate::machine::tables::agreement::CheckpointRecord;
use crate::machine::tables::cluster_limits::ClusterLimits;
use crate::machine::tables::seal::Sealed;
use crate::types::{
    LogIndex, MachineId, Membership, ModuleDigest, NodeId, TimeMs, check_machine_name,
};
use crate::wasm::{InvalidLimit, Limits, LimitsChange};

/// Everything replicated but guest memory and module bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tables {
    /// Time of the last entry that carried one.
    pub time_ms: TimeMs,
    /// Staged modules.
    pub modules: BTreeMap<ModuleDigest, ModuleRecord>,
    /// Machines that exist.
    pub machines: BTreeMap<MachineId, MachineRecord>,
    /// Client sessions; none can be opened in this version.
    pub sessions: BTreeMap<u64, ()>,
    /// Nodes that were removed: their ids never come back.
    pub retired_nodes: BTreeSet<NodeId>,
    /// The newest checkpoints, and what nodes said of them.
    pub checkpoints: BTreeMap<LogIndex, CheckpointRecord>,
    /// The engine profile that entries are applied with, once it is in the log.
    pub engine_profile: Option<String>,
    /// The engine change under way.
    pub sealed: Option<Sealed>,
    /// What every node keeps to.
    pub cluster_limits: ClusterLimits,
}

/// A module on its way to, or in, the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleRecord {
    /// Its length in bytes.
    pub length: u64,
    /// How many of its bytes are staged; complete when equal to `length`.
    pub staged: u64,
    /// What nodes said of it: `None` for "compiled", else why not.
    pub reports: BTreeMap<NodeId, Option<String>>,
    /// Index of the entry that last brought a piece of it or removed a machine that ran it.
    pub touched: LogIndex,
    /// How much work compiling it may take: the limit of the cluster as of its first piece.
    pub compile_work_max: u64,
}

impl ModuleRecord {
    /// Whether bytes of it are missing.
    pub fn is_partial(&self) -> bool {
        self.staged < self.length
    }
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// Its name.
    pub name: String,
    /// Its module.
    pub module: ModuleDigest,
    /// What its guest may use.
    pub limits: Limits,
    /// While its state comes in.
    pub restoring: Option<Restoring>,
}

/// How far the state of a machine has come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restoring {
    /// Version of the state that comes in.
    pub schema: u32,
    /// Count of the parts that are in.
    pub parts: u64,
}

/// Why an entry changed nothing. Part of the replicated result: equal on all nodes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The name is taken.
    #[error("a machine named {0:?} exists already")]
    NameTaken(String),
    /// The name has characters or a length that names may not have.
    #[error("{0}")]
    InvalidName(String),
    /// There are as many machines as may be.
    #[error("there are {0} machines already, which is the limit")]
    TooManyMachines(usize),
    /// No such machine.
    #[error("there is no such machine")]
    NoSuchMachine,
    /// The module is not staged.
    #[error("no module with digest {0} was uploaded")]
    NoSuchModule(ModuleDigest),
    /// Voters have not compiled the module, or cannot.
    #[error("{0}")]
    ModuleNotReady(String),
    /// Writes have stopped, since the voters' states differ.
    #[error("writes have stopped: {0}")]
    Halted(String),
    /// Nothing is written while the engine changes.
    #[error("{0}")]
    Sealed(String),
    /// The engine cannot change so.
    #[error("{0}")]
    BadSeal(String),
    /// A piece of a module does not fit the pieces before it.
    #[error("{0}")]
    BadChunk(String),
    /// No machine can have such a limit.
    #[error("{0}")]
    InvalidLimits(String),
    /// The module does not import states of the version asked for.
    #[error("{0}")]
    SchemaNotImportable(String),
    /// The state of the machine is complete.
    #[error("machine {0:?} is not being restored")]
    NotRestoring(String),
    /// A part of an export does not fit the parts before it.
    #[error("{0}")]
    BadPart(String),
}

impl Tables {
    /// Moves the time on, never back.
    pub fn advance_time(&mut self, time_ms: TimeMs) -> TimeMs {
        self.time_ms = self.time_ms.max(time_ms);
        self.time_ms
    }

    /// Notes a piece of a module. `Ok(true)` when the piece is new, `Ok(false)` when it was staged
    /// before (an upload that was begun twice).
    pub fn stage(&mut self, index: LogIndex, chunk: &ModuleChunk) -> Result<bool, Refusal> {
        let bad = |reason: &str| Err(Refusal::BadChunk(reason.to_owned()));
        let limit = u64::try_from(MODULE_BYTES_MAX).expect("a constant that fits");
        if chunk.length == 0 || chunk.length > limit {
            return bad("a module of this length cannot be staged");
        }
        let length = u64::try_from(chunk.bytes.len()).expect("a length in memory fits");
        // Before anything is noted: of each module that is known something is staged.
        if length == 0 || chunk.offset.saturating_add(length) > chunk.length {
            return bad("a piece does not fit the length of its module");
        }
        if !self.modules.contains_key(&chunk.digest) {
            if chunk.offset > 0 {
                return bad("the pieces before this one are gone: upload the module again");
            }
            self.make_room_for_module();
        }
        let reports = BTreeMap::new();
        let fresh = ModuleRecord {
            length: chunk.length,
            staged: 0,
            reports,
            touched: index,
            compile_work_max: self.cluster_limits.compile_work_max,
        };
        let record = self.modules.entry(chunk.digest).or_insert(fresh);
        if record.length != chunk.length {
            return bad("a piece does not fit the length of its module");
        }
        if chunk.offset > record.staged {
            return bad("a piece before this one is missing: upload the module again");
        }
        if chunk.offset < record.staged {
            return Ok(false);
        }
        record.staged += length;
        assert!(record.staged <= record.length, "pieces are checked before they are staged");
        assert!(record.touched <= index, "entries are applied in order");
        record.touched = index;
        Ok(true)
    }

    /// Forgets a whole module that some node cannot run and no machine runs, since it is uploaded
    /// again: under another limit, or on nodes that have what they lacked, it may be another story.
    pub fn begin_again(&mut self, digest: &ModuleDigest) -> bool {
        let Some(record) = self.modules.get(digest) else { return false };
        let is_needed = self.machines.values().any(|machine| machine.module == *digest);
        let has_failed = record.reports.values().any(Option::is_some);
        let begins = !is_needed && !record.is_partial() && has_failed;
        if begins {
            self.modules.remove(digest);
        }
        begins
    }

    /// Makes room for one more module that no machine runs yet.
    fn make_room_for_module(&mut self) {
        for (is_partial, max) in [(true, MODULES_PARTIAL_MAX), (false, MODULES_SPARE_MAX)] {
            let mut spare = self.spare_modules();
            spare.retain(|(_, digest)| self.modules[digest].is_partial() == is_partial);
            let over = (spare.len() + 1).saturating_sub(max);
            for (_, digest) in spare.into_iter().take(over) {
                let gone = self.modules.remove(&digest);
                assert!(gone.is_some(), "what is spare is there");
            }
        }
    }

    /// Modules that no machine runs, those first that were touched longest ago.
    fn spare_modules(&self) -> BTreeSet<(LogIndex, ModuleDigest)> {
        let needed: BTreeSet<_> = self.machines.values().map(|machine| machine.module).collect();
        let spare = self.modules.iter().filter(|(digest, _)| !needed.contains(digest));
        spare.map(|(digest, record)| (record.touched, *digest)).collect()
    }

    /// Drops the modules that no machine runs and that nobody touched since the checkpoint before
    /// the one that is about to be noted.
    pub fn drop_spare_modules(&mut self) {
        let Some((since, _)) = self.checkpoints.last_key_value() else { return };
        for (_, digest) in self.spare_modules().range(..(*since, ModuleDigest([0; 32]))) {
            self.modules.remove(digest);
        }
    }

    /// Removes a machine.
    pub fn remove_machine(&mut self, index: LogIndex, machine: MachineId) -> Result<(), Refusal> {
        let record = self.machines.remove(&machine).ok_or(Refusal::NoSuchMachine)?;
        let module = self.modules.get_mut(&record.module).expect("no machine is without one");
        assert!(module.touched <= index, "entries are applied in order: {index} comes late");
        module.touched = index;
        Ok(())
    }

    /// Forgets a module whose staged bytes turned out to be other than its digest.
    pub fn unstage(&mut self, digest: &ModuleDigest) {
        self.modules.remove(digest);
    }

    /// Notes what a member said of a module. A module unknown here was unstaged: nothing to note.
    pub fn report(&mut self, report: ModuleReport, membership: &Membership) {
        if let Some(record) = self.modules.get_mut(&report.digest)
            && membership.members.contains_key(&report.node)
        {
            record.reports.insert(report.node, report.failure);
        }
    }

    /// Whether a machine may be created under this name on this module, with these limits.
    pub fn check_create(
        &self,
        name: &str,
        digest: &ModuleDigest,
        limits: &Limits,
        membership: &Membership,
    ) -> Result<(), Refusal> {
        let invalid = |reason: &str| Refusal::InvalidName(reason.to_owned());
        check_machine_name(name).map_err(invalid)?;
        limits.check()?;
        if self.machines.values().any(|machine| machine.name == name) {
            return Err(Refusal::NameTaken(name.to_owned()));
        }
        if self.machines.len() >= MACHINES_MAX {
            return Err(Refusal::TooManyMachines(MACHINES_MAX));
        }
        match self.modules.get(digest) {
            Some(record) if record.staged == record.length => record.check_ready(membership),
            _ => Err(Refusal::NoSuchModule(*digest)),
        }
    }

    /// Changes the limits of a machine, and returns what they are now.
    pub fn set_limits(
        &mut self,
        machine: MachineId,
        change: &LimitsChange,
    ) -> Result<Limits, Refusal> {
        let record = self.machines.get_mut(&machine).ok_or(Refusal::NoSuchMachine)?;
        let limits = record.limits.with(change);
        limits.check()?;
        record.limits = limits;
        Ok(limits)
    }

    /// Whether the state of the machine is still coming in.
    pub fn is_restoring(&self, machine: &MachineId) -> bool {
        self.machines.get(machine).is_some_and(|record| record.restoring.is_some())
    }

    /// Whether a part is the next one of what comes into its machine, and which schema that is of;
    /// `None` for a part that is in already.
    pub fn check_part(&self, part: &StatePart) -> Result<Option<u32>, Refusal> {
        let record = self.machines.get(&part.machine).ok_or(Refusal::NoSuchMachine)?;
        let not_restoring = || Refusal::NotRestoring(record.name.clone());
        let Restoring { schema, parts } = record.restoring.ok_or_else(not_restoring)?;
        let (number, length) = (part.number, part.bytes.len());
        if length > IMPORT_PART_BYTES_MAX {
            let reason = format!("a part has {length} bytes, the limit is {IMPORT_PART_BYTES_MAX}");
            return Err(Refusal::BadPart(reason));
        }
        match number.cmp(&parts) {
            Ordering::Less => Ok(None),
            Ordering::Equal => Ok(Some(schema)),
            Ordering::Greater => {
                Err(Refusal::BadPart(format!("part {number} came, and part {parts} is the next")))
            }
        }
    }

    /// Notes that the next part is in; the last one completes the machine.
    pub fn note_part(&mut self, part: &StatePart) {
        if let Some(record) = self.machines.get_mut(&part.machine) {
            let next = record.restoring.map(|restoring| restoring.parts);
            assert_eq!(next, Some(part.number), "parts are checked before they are noted");
            let more = record.restoring.filter(|_| !part.last);
            record.restoring = more.map(|Restoring { schema, parts }| {
                let parts = parts + 1;
                Restoring { schema, parts }
            });
        }
    }

    /// Notes nodes that left the membership: their ids are spent.
    pub fn retire_missing(&mut self, before: &Membership, now: &Membership) {
        let gone = before.members.keys().filter(|node| !now.members.contains_key(node));
        self.retired_nodes.extend(gone);
    }
}

impl From<InvalidLimit> for Refusal {
    fn from(invalid: InvalidLimit) -> Self {
        Self::InvalidLimits(invalid.to_string())
    }
}

impl ModuleRecord {
    /// Whether every voter has compiled it; else who has not.
    pub fn check_ready(&self, membership: &Membership) -> Result<(), Refusal> {
        let voters = membership.voter_ids();
        let failures: Vec<String> = voters
            .iter()
            .filter_map(|node| match self.reports.get(node) {
                Some(Some(reason)) => Some(format!("node {node} cannot run it: {reason}")),
                _ => None,
            })
            .collect();
        if !failures.is_empty() {
            return Err(Refusal::ModuleNotReady(failures.join("; ")));
        }
        let missing: Vec<String> = voters
            .iter()
            .filter(|node| !self.reports.contains_key(node))
            .map(ToString::to_string)
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let text = format!("voters that have not compiled the module yet: {}", missing.join(", "));
        Err(Refusal::ModuleNotReady(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u8) -> ModuleDigest {
        ModuleDigest([number; 32])
    }

    /// A piece of a module of two bytes.
    fn piece(tables: &mut Tables, index: LogIndex, number: u8, offset: u64) {
        let chunk = ModuleChunk { digest: digest(number), length: 2, offset, bytes: vec![0] };
        assert_eq!(tables.stage(index, &chunk), Ok(true), "module {number} at {offset}");
    }

    fn has(tables: &Tables) -> Vec<u8> {
        tables.modules.keys().map(|digest| digest.0[0]).collect()
    }

    /// A machine keeps its module; of the others, and of partial ones, there are never more than
    /// so many, and the last touched stay.
    #[test]
    fn modules_are_bounded() {
        let mut tables = Tables::default();
        piece(&mut tables, 1, 1, 0);
        piece(&mut tables, 2, 1, 1);
        let limits = Limits::default();
        let record = MachineRecord { name: "m".into(), module: digest(1), limits, restoring: None };
        tables.machines.insert(MachineId(3), record);
        for number in 2..30 {
            piece(&mut tables, 10 * u64::from(number), number, 0);
            piece(&mut tables, 10 * u64::from(number) + 1, number, 1);
        }
        let newest: Vec<u8> = (30 - u8::try_from(MODULES_SPARE_MAX).unwrap()..30).collect();
        assert_eq!(has(&tables), [vec![1], newest].concat());
        for number in 100..110 {
            piece(&mut tables, 1000 + u64::from(number), number, 0);
        }
        let partial = tables.modules.values().filter(|record| record.is_partial()).count();
        assert_eq!(partial, MODULES_PARTIAL_MAX);
        let late = ModuleChunk { digest: digest(100), length: 2, offset: 1, bytes: vec![0] };
        assert!(matches!(tables.stage(2000, &late), Err(Refusal::BadChunk(_))));
        assert!(!tables.modules.contains_key(&digest(100)), "it has lost its place");
    }

    /// A piece that is empty, or longer than its module, is refused and leaves no trace: a module
    /// of which nothing is staged could not be in a snapshot.
    #[test]
    fn pieces_that_do_not_fit_leave_nothing() {
        let mut tables = Tables::default();
        for (offset, bytes) in [(0, 0), (0, 3), (1, 2), (u64::MAX, 1)] {
            let bytes = vec![0; bytes];
            let chunk = ModuleChunk { digest: digest(1), length: 2, offset, bytes };
            let staged = tables.stage(1, &chunk);
            assert!(matches!(staged, Err(Refusal::BadChunk(_))), "{chunk:?}: {staged:?}");
        }
        assert_eq!(tables, Tables::default());
    }

    /// What no machine runs goes at the second checkpoint after it was last touched; that a machine
    /// that ran it is removed touches it.
    #[test]
    fn spare_modules_go() {
        let mut tables = Tables::default();
        let checkpoint = |tables: &mut Tables, index| {
            tables.drop_spare_modules();
            tables.note_checkpoint(index);
        };
        for number in [1, 2, 3] {
            piece(&mut tables, 1, number, 0);
        }
        piece(&mut tables, 2, 2, 1);
        let limits = Limits::default();
        let record = MachineRecord { name: "m".into(), module: digest(2), limits, restoring: None };
        tables.machines.insert(MachineId(3), record);
        checkpoint(&mut tables, 10);
        piece(&mut tables, 11, 3, 1);
        checkpoint(&mut tables, 20);
        assert_eq!(has(&tables), [2, 3], "the partial one goes");
        tables.remove_machine(25, MachineId(3)).unwrap();
        checkpoint(&mut tables, 30);
        assert_eq!(has(&tables), [2]);
        checkpoint(&mut tables, 40);
        assert_eq!(has(&tables), Vec::<u8>::new());
    }
}
