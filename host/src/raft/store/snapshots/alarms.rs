//! What an operator should know of this node's snapshots, a sentence each.

use std::sync::Mutex;

/// The alarms of snapshots that were written, or could not be.
#[derive(Debug, Default)]
pub struct SnapshotAlarms {
    unwritten: Mutex<Option<String>>,
    export_failures: Mutex<Vec<String>>,
}

impl SnapshotAlarms {
    /// Why the last snapshot could not be written, while that is so.
    pub fn unwritten(&self) -> Option<String> {
        self.unwritten.lock().expect("no holder panics").clone()
    }

    /// A snapshot could not be written for want of room: an alarm, since the log still has all.
    pub fn set_unwritten(&self, reason: String) {
        tracing::error!(%reason, "snapshot not written");
        *self.unwritten.lock().expect("no holder panics") = Some(reason);
    }

    /// A snapshot was written.
    pub(super) fn clear_unwritten(&self) {
        *self.unwritten.lock().expect("no holder panics") = None;
    }

    /// Machines of which the newest snapshot holds no export.
    pub fn export_failures(&self) -> Vec<String> {
        self.export_failures.lock().expect("no holder panics").clone()
    }

    /// Notes of which machines the newest snapshot holds no export.
    pub fn set_export_failures(&self, failures: Vec<String>) {
        for failure in &failures {
            tracing::error!("{failure}");
        }
        *self.export_failures.lock().expect("no holder panics") = failures;
    }
}
