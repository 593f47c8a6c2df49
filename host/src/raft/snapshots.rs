//! Snapshots as openraft sees them: which one is current, and how the replicated state becomes a
//! file and comes back. The file is `storage`'s, its content `machine`'s.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use super::convert::{log_id_from_raft, log_id_to_raft, membership_from_raft, membership_to_raft};
use super::type_config::{RaftLogId, RaftSnapshotMeta, RaftStoredMembership};
use crate::machine::content::Piece;
use crate::machine::{Environment, FrozenState, HostFailure, Machines};
use crate::storage::Error;
use crate::storage::snapshot::{Snapshot, SnapshotDir};
use crate::types::{LogId, LogIndex, Membership};

/// Pieces that may wait between the capture and the writer: with chunks of 256 KiB this bounds
/// what a slow disk can make a capture hold in memory.
const PIECES_AHEAD: usize = 64;
/// Snapshots kept: the newest, and the one before it, up to which the log is purged.
const SNAPSHOTS_KEPT: usize = 2;

/// What the header of a snapshot says beside its log id.
#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    membership_log: Option<LogId>,
    membership: Membership,
}

/// The snapshots of this node.
#[derive(Debug)]
pub struct Snapshots {
    dir: SnapshotDir,
    newest: watch::Sender<Option<LogIndex>>,
    alarm: Mutex<Option<String>>,
    export_failures: Mutex<Vec<String>>,
}

/// A snapshot under way.
pub struct Capture {
    /// What became of sending the state: sentences about guests that could not export theirs.
    pub sent: oneshot::Receiver<Result<Vec<String>, HostFailure>>,
    /// The file, once it is whole and synced.
    pub written: tokio::task::JoinHandle<Result<Snapshot, Error>>,
}

impl Snapshots {
    /// Takes over an open folder of snapshots.
    pub fn new(dir: SnapshotDir) -> Self {
        let newest = dir.newest().and_then(|snapshot| index(&snapshot));
        Self {
            dir,
            newest: watch::Sender::new(newest),
            alarm: Mutex::new(None),
            export_failures: Mutex::default(),
        }
    }

    /// Index of the newest snapshot, and a way to wait for the next.
    pub fn watch(&self) -> watch::Receiver<Option<LogIndex>> {
        self.newest.subscribe()
    }

    /// Index of the newest snapshot.
    pub fn newest_index(&self) -> Option<LogIndex> {
        *self.newest.borrow()
    }

    /// The newest snapshot.
    pub fn newest(&self) -> Option<Snapshot> {
        self.dir.newest()
    }

    /// Where received snapshots arrive.
    pub fn dir(&self) -> &SnapshotDir {
        &self.dir
    }

    /// Up to where the log may be purged: the older one of the snapshots kept.
    pub fn purgeable(&self) -> Option<LogIndex> {
        let all = self.dir.list();
        let older = (all.len() >= SNAPSHOTS_KEPT).then(|| all.iter().filter_map(index).min());
        older.flatten()
    }

    /// Why the last snapshot could not be written, while that is so.
    pub fn alarm(&self) -> Option<String> {
        self.alarm.lock().expect("no holder panics").clone()
    }

    /// Machines of which the newest snapshot holds no export, a sentence each.
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

    /// Begins a snapshot of the state as of `last`, written by threads of its own.
    pub fn begin(
        &self,
        last: &RaftLogId,
        membership: &RaftStoredMembership,
        frozen: FrozenState,
    ) -> Capture {
        let meta = encode_meta(membership);
        let last = log_id_from_raft(last);
        let dir = self.dir.clone();
        let (pieces, receiver) = mpsc::channel(PIECES_AHEAD);
        let written = tokio::task::spawn_blocking(move || write(&dir, last, &meta, receiver));
        Capture { sent: frozen.send(pieces), written }
    }

    /// A snapshot is whole: it becomes the newest, and those no longer needed go.
    pub fn adopt(&self, snapshot: &Snapshot) -> Result<(), Error> {
        *self.alarm.lock().expect("no holder panics") = None;
        self.dir.retain(SNAPSHOTS_KEPT)?;
        let index = index(snapshot);
        tracing::info!(index, bytes = snapshot.id().length, "snapshot on disk");
        self.newest.send_modify(|newest| *newest = (*newest).max(index));
        Ok(())
    }

    /// A snapshot could not be written for want of room: an alarm, since the log still has all.
    pub fn refused(&self, reason: String) {
        tracing::error!(%reason, "snapshot not written");
        *self.alarm.lock().expect("no holder panics") = Some(reason);
    }

    /// The newest snapshot and the state it holds.
    ///
    /// # Errors
    /// A damaged one is refused rather than passed over: the operator should know. Removing the
    /// file is the repair, because the log is kept back to the snapshot before it.
    pub async fn restore_newest(
        &self,
        environment: &Environment,
    ) -> Result<Option<(Snapshot, Machines)>, HostFailure> {
        let Some(snapshot) = self.dir.newest() else { return Ok(None) };
        match restore(environment.clone(), &snapshot).await {
            Ok(machines) => Ok(Some((snapshot, machines))),
            Err(failure) => Err(HostFailure::Stop(format!(
                "{failure}. Repair: if an older snapshot is beside it, remove {}; the log leads on \
                 from the older one. Else remove this node from the cluster and add it again, \
                 under a new id, on an empty data folder",
                snapshot.path().display()
            ))),
        }
    }
}

/// Builds the state that a snapshot holds.
pub async fn restore(
    environment: Environment,
    snapshot: &Snapshot,
) -> Result<Machines, HostFailure> {
    let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
    let reader = snapshot.clone();
    let reading = tokio::task::spawn_blocking(move || read(&reader, &sender));
    let machines = Machines::restore(environment, pieces).await;
    reading
        .await
        .map_err(|error| HostFailure::Stop(format!("reading a snapshot panicked: {error}")))?;
    machines
}

/// What openraft must know of a snapshot.
pub fn meta_to_raft(snapshot: &Snapshot) -> Result<RaftSnapshotMeta, HostFailure> {
    let malformed = |reason: String| {
        HostFailure::Stop(format!(
            "{}: its description is damaged: {reason}",
            snapshot.path().display()
        ))
    };
    let (meta, _): (Meta, usize) =
        bincode::serde::decode_from_slice(snapshot.meta(), bincode::config::standard())
            .map_err(|error| malformed(error.to_string()))?;
    let membership = membership_to_raft(meta.membership).map_err(malformed)?;
    Ok(RaftSnapshotMeta {
        last_log_id: snapshot.id().last.map(log_id_to_raft),
        last_membership: RaftStoredMembership::new(
            meta.membership_log.map(log_id_to_raft),
            membership,
        ),
    })
}

/// Index of the last entry a snapshot holds.
fn index(snapshot: &Snapshot) -> Option<LogIndex> {
    snapshot.id().last.map(|last| last.index)
}

fn encode_meta(membership: &RaftStoredMembership) -> Vec<u8> {
    let meta = Meta {
        membership_log: membership.log_id().as_ref().map(log_id_from_raft),
        membership: membership_from_raft(membership.membership()),
    };
    bincode::serde::encode_to_vec(&meta, bincode::config::standard())
        .expect("these types encode, and a buffer in memory grows")
}

/// Writes pieces to a file until they end; a capture that is broken off leaves none.
fn write(
    dir: &SnapshotDir,
    last: LogId,
    meta: &[u8],
    mut pieces: mpsc::Receiver<Piece>,
) -> Result<Snapshot, Error> {
    let mut writer = dir.begin(Some(last), meta)?;
    while let Some(piece) = pieces.blocking_recv() {
        match piece {
            Piece::Begin(kind) => writer.section(kind)?,
            Piece::Chunk(bytes) => writer.chunk(&bytes)?,
            Piece::End => return writer.finish(),
        }
    }
    Err(Error::Refused("the capture of a snapshot was broken off".to_owned()))
}

/// Reads a file as pieces; the first damage ends it as an error.
fn read(snapshot: &Snapshot, pieces: &mpsc::Sender<Result<Piece, String>>) {
    if let Err(error) = read_pieces(snapshot, pieces) {
        // A receiver that is gone has its own error already.
        let _ = pieces.blocking_send(Err(error.to_string()));
    }
}

fn read_pieces(
    snapshot: &Snapshot,
    pieces: &mpsc::Sender<Result<Piece, String>>,
) -> Result<(), Error> {
    let mut reader = snapshot.open();
    while let Some(kind) = reader.next_section()? {
        if pieces.blocking_send(Ok(Piece::Begin(kind))).is_err() {
            return Ok(());
        }
        while let Some(chunk) = reader.next_chunk()? {
            if pieces.blocking_send(Ok(Piece::Chunk(chunk.into()))).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Shared by the state machine, the peers and the status.
pub type SharedSnapshots = Arc<Snapshots>;
