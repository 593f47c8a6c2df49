//! The replicated tables beside guest memory. They change only in the apply of an entry and by
//! nothing but that entry, so they are equal on all nodes at equal indices.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::agreement::CheckpointRecord;
use super::proposal::{ModuleChunk, ModuleReport};
use crate::config::limits::{MACHINES_MAX, MODULE_BYTES_MAX};
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
    /// A piece of a module does not fit the pieces before it.
    #[error("{0}")]
    BadChunk(String),
    /// No machine can have such a limit.
    #[error("{0}")]
    InvalidLimits(String),
}

impl Tables {
    /// Moves the time on, never back.
    pub fn advance_time(&mut self, time_ms: TimeMs) -> TimeMs {
        self.time_ms = self.time_ms.max(time_ms);
        self.time_ms
    }

    /// Notes a piece of a module. `Ok(true)` when the piece is new, `Ok(false)` when it was staged
    /// before (an upload that was begun twice).
    pub fn stage(&mut self, chunk: &ModuleChunk) -> Result<bool, Refusal> {
        let bad = |reason: &str| Err(Refusal::BadChunk(reason.to_owned()));
        let limit = u64::try_from(MODULE_BYTES_MAX).expect("a constant that fits");
        if chunk.length == 0 || chunk.length > limit {
            return bad("a module of this length cannot be staged");
        }
        let length = u64::try_from(chunk.bytes.len()).expect("a length in memory fits");
        let fresh = ModuleRecord { length: chunk.length, staged: 0, reports: BTreeMap::new() };
        let record = self.modules.entry(chunk.digest).or_insert(fresh);
        if record.length != chunk.length || chunk.offset + length > record.length {
            return bad("a piece does not fit the length of its module");
        }
        if chunk.offset > record.staged {
            return bad("a piece before this one is missing: upload the module again");
        }
        if chunk.offset < record.staged || length == 0 {
            return Ok(false);
        }
        record.staged += length;
        Ok(true)
    }

    /// Forgets a module whose staged bytes turned out to be other than its digest.
    pub fn unstage(&mut self, digest: &ModuleDigest) {
        self.modules.remove(digest);
    }

    /// Notes what a node said of a module. A module unknown here was unstaged: nothing to note.
    pub fn report(&mut self, report: ModuleReport) {
        if let Some(record) = self.modules.get_mut(&report.digest) {
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
