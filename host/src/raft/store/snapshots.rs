//! The snapshots of this node, as openraft and the duties see them: which files there are, and
//! which of them count.
//!
//! | part | purpose |
//! |---|---|
//! | this file | the files on this disk, and what follows for them from the other parts |
//! | `agreement` | what the cluster agreed on, and what may be given, kept and purged for it |
//! | `alarms` | what an operator should know |
//! | `description` | what the header of a file says |
//! | `capture` | the state of this node on its way into a file |
//! | `content` | the replicated state as the content of a file, there and back |
//! | `chunks` | a file as bytes on their way to somebody |
//!
//! The file is `storage`'s, its content `machine`'s.

mod agreement;
mod alarms;
pub mod capture;
pub mod chunks;
pub mod content;
pub mod description;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::machine::{Environment, HostFailure, Machines, Source};
use crate::storage::snapshot::{Snapshot, SnapshotDir};
use crate::storage::{Error, Quarantine, snapshot_repair};
use crate::types::{LogIndex, StateDigest};
use agreement::Agreement;
use alarms::SnapshotAlarms;

/// Shared by the state machine, the peers and the status.
pub type SharedSnapshots = Arc<Snapshots>;

/// The snapshots of this node.
#[derive(Debug)]
pub struct Snapshots {
    dir: SnapshotDir,
    newest: watch::Sender<Option<LogIndex>>,
    agreement: Agreement,
    alarms: SnapshotAlarms,
}

impl Snapshots {
    /// Takes over an open folder of snapshots, beside a log that was purged up to `purged` and
    /// ends with `last`.
    pub fn new(dir: SnapshotDir, purged: Option<LogIndex>, last: Option<LogIndex>) -> Self {
        let indexes: Vec<LogIndex> = dir.list().iter().filter_map(index).collect();
        let newest = watch::Sender::new(indexes.iter().max().copied());
        let agreement = Agreement::at_start(&indexes, purged, last);
        Self { dir, newest, agreement, alarms: SnapshotAlarms::default() }
    }

    /// Where the files lie.
    pub fn dir(&self) -> &SnapshotDir {
        &self.dir
    }

    /// What an operator should know of snapshots that were written, or could not be.
    pub fn alarms(&self) -> &SnapshotAlarms {
        &self.alarms
    }

    /// Index of the newest snapshot, and a way to wait for the next.
    pub fn watch(&self) -> watch::Receiver<Option<LogIndex>> {
        self.newest.subscribe()
    }

    /// Index of the newest snapshot.
    pub fn newest_index(&self) -> Option<LogIndex> {
        *self.newest.borrow()
    }

    /// How long ago the newest snapshot was written; none of a time that is still to come.
    pub fn age(&self) -> Option<Duration> {
        let written = self.dir.newest()?.written();
        Some(SystemTime::now().duration_since(written).unwrap_or_default())
    }

    /// What the snapshot of a checkpoint holds, if it is here.
    pub fn digest(&self, at: LogIndex) -> Option<StateDigest> {
        content::digest_of(&self.find(at)?)
    }

    fn find(&self, at: LogIndex) -> Option<Snapshot> {
        self.dir.list().into_iter().find(|snapshot| index(snapshot) == Some(at))
    }

    /// What is wrong with snapshots on this disk, a sentence each.
    pub fn damages(&self) -> Vec<String> {
        let found = self.dir.list().into_iter().filter_map(|snapshot| {
            let damage = snapshot.damage()?;
            Some(format!("a snapshot is damaged, and an older one takes its place: {damage}"))
        });
        found.chain(self.dir.unreadable().iter().cloned()).collect()
    }

    /// Indexes of the snapshots that the cluster agreed on, and a way to wait for more.
    pub fn watch_agreed(&self) -> watch::Receiver<BTreeSet<LogIndex>> {
        self.agreement.watch()
    }

    /// The newest snapshot that the cluster agreed on: no other may be given to a peer.
    pub fn agreed(&self) -> Option<Snapshot> {
        self.agreement.newest_sound(&self.dir.list())
    }

    /// As [`Self::agreed`]; where all of them are damaged, the newest. That one is never sent, but
    /// openraft takes a snapshot that was there and is gone for a failed disk, and ends the node.
    pub fn agreed_or_damaged(&self) -> Option<Snapshot> {
        let list = self.dir.list();
        self.agreement.newest_sound(&list).or_else(|| self.agreement.newest(&list))
    }

    /// Compares the snapshot of a checkpoint, if it is here, with what the cluster agreed on. What
    /// differs is returned, to be kept as evidence.
    pub fn compare(&self, at: LogIndex, agreed: StateDigest) -> Option<Quarantine> {
        let found = self.find(at)?;
        let own = content::digest_of(&found)?;
        if own == agreed {
            self.agreement.add(at);
            return None;
        }
        // What was only believed at the start is known now.
        self.agreement.remove(at);
        self.keep_evidence(at);
        let name = found.path().file_name()?.to_string_lossy().into_owned();
        Some(Quarantine { index: at, agreed, own, snapshot: name })
    }

    /// Keeps the snapshot that this node is quarantined for.
    pub fn keep_evidence(&self, at: LogIndex) {
        self.agreement.keep_evidence(at);
    }

    /// Up to where the log may be purged: the snapshot before the newest that was agreed on.
    pub fn purgeable(&self) -> Option<LogIndex> {
        self.agreement.purgeable(&self.dir.list())
    }

    /// Removes what is no longer needed. It blocks: call it off the async workers.
    pub fn clean(&self) -> Result<(), Error> {
        // One that comes meanwhile is not listed, and stays.
        let gone = self.agreement.unneeded(&self.dir.list());
        self.agreement.forget(&gone);
        self.dir.retain(|snapshot| index(snapshot).is_none_or(|index| !gone.contains(&index)))
    }

    /// A snapshot of a peer is in place: the cluster agreed on it.
    pub fn adopt_agreed(&self, snapshot: &Snapshot) {
        self.agreement.adopt(index(snapshot));
        self.adopt(snapshot);
    }

    /// A snapshot is whole: it becomes the newest.
    pub fn adopt(&self, snapshot: &Snapshot) {
        self.alarms.clear_unwritten();
        let index = index(snapshot);
        tracing::info!(index, bytes = snapshot.id().length, "snapshot on disk");
        self.newest.send_modify(|newest| *newest = (*newest).max(index));
    }

    /// The newest snapshot and the state it holds, from what this build can go on from.
    ///
    /// # Errors
    /// A damaged one is refused rather than passed over: the operator should know. Removing the
    /// file is the repair, because the log is kept back to the snapshot before it.
    pub async fn restore_newest(
        &self,
        environment: &Environment,
        source: Source,
    ) -> Result<Option<(Snapshot, Machines)>, HostFailure> {
        let Some(snapshot) = self.dir.newest() else { return Ok(None) };
        match content::restore(environment.clone(), &snapshot, source).await {
            Ok(machines) => Ok(Some((snapshot, machines))),
            Err(failure @ HostFailure::Import(_)) => Err(failure),
            Err(failure) => {
                let file = snapshot.path().to_owned();
                let repair = tokio::task::spawn_blocking(move || snapshot_repair(&file)).await;
                let repair = repair.unwrap_or_default();
                Err(HostFailure::Stop(format!("{failure}. {repair}")))
            }
        }
    }
}

/// Index of the last entry a snapshot holds.
fn index(snapshot: &Snapshot) -> Option<LogIndex> {
    snapshot.id().last.map(|last| last.index)
}
