//! What the rest of the node may see of the machines while entries are being applied: names,
//! handles for queries, and how far the machine has come. Written by the apply path alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use super::tables::cluster_limits::ClusterLimits;
use super::tables::{ModuleRecord, Restoring};
use crate::machine::guest::thread::GuestHandle;
use crate::machine::tables::agreement::CheckpointRecord;
use crate::machine::tables::seal::Sealed;
use crate::types::{LogIndex, MachineId, ModuleDigest, NodeId, TimeMs};
use crate::wasm::{Limits, Manifest};

/// A machine as published.
#[derive(Clone, Debug)]
pub struct Published {
    /// Its id.
    pub id: MachineId,
    /// Its name.
    pub name: String,
    /// Its module.
    pub module: ModuleDigest,
    /// What its guest says of itself.
    pub manifest: Option<Manifest>,
    /// What the log says that its guest may use.
    pub limits: Limits,
    /// What the guest that runs here may use.
    pub active_limits: Option<Limits>,
    /// For queries; `None` while the machine is parked or its state comes in.
    pub guest: Option<GuestHandle>,
    /// While its state comes in.
    pub restoring: Option<Restoring>,
}

/// One consistent picture of the tables.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Machines by name.
    pub machines: BTreeMap<String, Published>,
    /// Staged modules.
    pub modules: BTreeMap<ModuleDigest, ModuleRecord>,
    /// Ids of nodes that were removed.
    pub retired_nodes: BTreeSet<NodeId>,
    /// The newest checkpoints, and what nodes said of them.
    pub checkpoints: BTreeMap<LogIndex, CheckpointRecord>,
    /// What every node keeps to.
    pub cluster_limits: ClusterLimits,
    /// The engine profile that entries are applied with, once it is in the log.
    pub engine_profile: Option<String>,
    /// The engine change under way.
    pub sealed: Option<Sealed>,
    /// Why writes have stopped on all nodes, if so.
    pub halted: Option<String>,
    /// Why this node applies nothing, if so.
    pub parked: Option<String>,
    /// A snapshot of a peer takes the place of the state: no guest runs until it has.
    pub replacing: bool,
}

/// The shared window onto the machines.
#[derive(Debug, Default)]
pub struct Directory {
    view: watch::Sender<Arc<View>>,
    applied: AtomicU64,
    time_ms: AtomicU64,
}

impl Directory {
    /// One that shows this.
    #[cfg(test)]
    pub fn showing(view: View) -> Self {
        let directory = Self::default();
        directory.publish(view);
        directory
    }

    /// The same, of machines that have come so far.
    #[cfg(test)]
    pub fn at(self, applied: LogIndex) -> Self {
        self.advance(applied, 0);
        self
    }

    /// The picture as of the last change.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// The picture, and a way to wait for the next change.
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.view.subscribe()
    }

    /// Last index whose effects queries see.
    pub fn applied(&self) -> LogIndex {
        self.applied.load(Ordering::Acquire)
    }

    /// Time of the last entry that carried one.
    pub fn time_ms(&self) -> TimeMs {
        self.time_ms.load(Ordering::Acquire)
    }

    /// Replaces the picture.
    pub(super) fn publish(&self, view: View) {
        assert!(
            view.machines.iter().all(|(name, machine)| *name == machine.name),
            "machines are published under their own names"
        );
        assert!(
            view.parked.is_none() || view.machines.values().all(|machine| machine.guest.is_none()),
            "no guest of a parked node is asked"
        );
        self.view.send_replace(Arc::new(view));
    }

    /// Notes that an entry has been applied.
    pub(super) fn advance(&self, applied: LogIndex, time_ms: TimeMs) {
        let time_before = self.time_ms.swap(time_ms, Ordering::AcqRel);
        assert!(time_ms >= time_before, "the time shown went from {time_before} to {time_ms}");
        let before = self.applied.swap(applied, Ordering::AcqRel);
        assert!(applied >= before, "what is shown as applied went from {before} to {applied}");
    }
}
