//! What was applied before, as the log has it, for guests that are brought back to an earlier call.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use crate::machine::entry::batch::Batch;
use crate::types::{LogIndex, MachineId};

/// Gives batches back by the index of their entry. Obligation: the log reaches back to the last
/// checkpoint that was applied, or to the snapshot that the state came from.
pub trait History: Send + Sync {
    /// The batch of a machine in an entry that was applied. Blocking.
    fn batch(&self, index: LogIndex, machine: MachineId) -> io::Result<Batch>;
}

/// A history without a log, for tests.
#[derive(Debug, Default)]
pub struct MemoryHistory {
    batches: Mutex<BTreeMap<(LogIndex, MachineId), Batch>>,
}

impl MemoryHistory {
    /// Remembers a batch.
    pub fn put(&self, index: LogIndex, batch: Batch) {
        let mut batches = self.batches.lock().expect("no holder panics");
        batches.insert((index, batch.machine()), batch);
    }
}

impl History for MemoryHistory {
    fn batch(&self, index: LogIndex, machine: MachineId) -> io::Result<Batch> {
        let batches = self.batches.lock().expect("no holder panics");
        batches.get(&(index, machine)).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
