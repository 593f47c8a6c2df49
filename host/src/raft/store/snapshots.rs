//! Snapshots as openraft sees them: which one is current, and how the replicated state becomes a
//! file and comes back. The file is `storage`'s, its content `machine`'s.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};

use crate::codec::{self, Reader, put_log_id, put_membership, put_option, put_text};
use crate::machine::snapshot::content::Piece;
use crate::machine::{
    CHECKPOINTS_KEPT, ContentDigest, Environment, FrozenState, HostFailure, Machines, Sealed,
    Source,
};
use crate::raft::store::convert::{
    log_id_from_raft, log_id_to_raft, membership_from_raft, membership_to_raft,
};
use crate::raft::type_config::{RaftLogId, RaftSnapshotMeta, RaftStoredMembership};
use crate::storage::snapshot::{Snapshot, SnapshotDir};
use crate::storage::{Error, Quarantine, snapshot_repair};
use crate::types::{LogId, LogIndex, Membership, StateDigest};

/// Pieces that may wait between the capture and the writer: with chunks of 256 KiB this bounds
/// what a slow disk can make a capture hold in memory.
const PIECES_AHEAD: usize = 64;
/// Snapshots kept of those that the cluster agreed on: the newest, and the one before it, up to
/// which the log is purged.
const AGREED_KEPT: usize = 2;
/// The last section of a file: one chunk, the digest of all that is replicated in those before.
/// The machines never see it.
const SECTION_DIGEST: u8 = 128;
const DIGEST_BYTES: usize = 32;

/// What the header of a snapshot says beside its log id.
#[derive(Debug, PartialEq, Eq)]
struct Meta {
    membership_log: Option<LogId>,
    membership: Membership,
    /// The engine profile that its state came about with, once that was in the log.
    engine_profile: Option<String>,
    /// The engine profile that the cluster was sealed for by then.
    sealed_for: Option<String>,
}

impl Meta {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_option(&mut bytes, self.membership_log, put_log_id);
        put_option(&mut bytes, self.engine_profile.as_deref(), put_text);
        put_option(&mut bytes, self.sealed_for.as_deref(), put_text);
        put_membership(&mut bytes, &self.membership);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, codec::Error> {
        let mut fields = Reader::new(bytes);
        let membership_log = fields.option(Reader::log_id)?;
        let engine_profile = fields.option(Reader::text)?;
        let sealed_for = fields.option(Reader::text)?;
        let membership = fields.membership()?;
        fields.finish()?;
        Ok(Self { membership_log, membership, engine_profile, sealed_for })
    }
}

/// What a build of some engine profile can make of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It goes on from this.
    From(Source),
    /// Nothing: its state came about with this other profile.
    OfAnother(String),
}

/// The snapshots of this node.
#[derive(Debug)]
pub struct Snapshots {
    dir: SnapshotDir,
    newest: watch::Sender<Option<LogIndex>>,
    /// Indexes of snapshots that are what the cluster agreed on.
    agreed: watch::Sender<BTreeSet<LogIndex>>,
    alarm: Mutex<Option<String>>,
    export_failures: Mutex<Vec<String>>,
    /// The snapshot that this node is quarantined for; it stays until a repair.
    evidence: Mutex<Option<LogIndex>>,
}

/// A snapshot under way.
pub struct Capture {
    /// What became of sending the state: sentences about guests that could not export theirs.
    pub sent: oneshot::Receiver<Result<Vec<String>, HostFailure>>,
    /// The file, once it is whole and synced.
    pub written: tokio::task::JoinHandle<Result<Snapshot, Error>>,
}

impl Snapshots {
    /// Takes over an open folder of snapshots, beside a log that was purged up to `purged` and
    /// ends with `last`.
    ///
    /// What was agreed on is in the tables, but they come back only with the log. Until then it
    /// is known of what the log has been purged for, and of what a peer sent ahead of the log.
    pub fn new(dir: SnapshotDir, purged: Option<LogIndex>, last: Option<LogIndex>) -> Self {
        let indexes: Vec<LogIndex> = dir.list().iter().filter_map(index).collect();
        let newest = indexes.iter().max().copied();
        let ahead = newest.filter(|newest| Some(*newest) > last);
        let floor = indexes.iter().filter(|index| Some(**index) <= purged).max();
        // Where what the log was purged for is gone, a repair has put in place what is here.
        let floor = floor.or(indexes.iter().min().filter(|_| purged.is_some())).copied();
        Self {
            dir,
            newest: watch::Sender::new(newest),
            agreed: watch::Sender::new(ahead.into_iter().chain(floor).collect()),
            alarm: Mutex::new(None),
            export_failures: Mutex::default(),
            evidence: Mutex::new(None),
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

    /// Indexes of the snapshots that the cluster agreed on, and a way to wait for more.
    pub fn watch_agreed(&self) -> watch::Receiver<BTreeSet<LogIndex>> {
        self.agreed.subscribe()
    }

    /// The newest snapshot that the cluster agreed on: no other may be given to a peer.
    pub fn agreed(&self) -> Option<Snapshot> {
        let agreed = self.agreed.borrow();
        let is_agreed = |snapshot: &Snapshot| index(snapshot).is_some_and(|i| agreed.contains(&i));
        let is_sound = |snapshot: &Snapshot| snapshot.damage().is_none() && is_agreed(snapshot);
        self.dir.list().into_iter().rfind(is_sound)
    }

    /// As [`Self::agreed`]; where all of them are damaged, the newest. That one is never sent, but
    /// openraft takes a snapshot that was there and is gone for a failed disk, and ends the node.
    pub fn agreed_or_damaged(&self) -> Option<Snapshot> {
        // Not borrowed while `agreed` borrows it: a writer between the two would block both.
        let sound = self.agreed();
        let agreed = self.agreed.borrow();
        let is_agreed = |snapshot: &Snapshot| index(snapshot).is_some_and(|i| agreed.contains(&i));
        sound.or_else(|| self.dir.list().into_iter().rfind(is_agreed))
    }

    /// What the snapshot of a checkpoint holds, if it is here.
    pub fn digest(&self, at: LogIndex) -> Option<StateDigest> {
        digest_of(&self.find(at)?)
    }

    fn find(&self, at: LogIndex) -> Option<Snapshot> {
        self.dir.list().into_iter().find(|snapshot| index(snapshot) == Some(at))
    }

    /// Compares the snapshot of a checkpoint, if it is here, with what the cluster agreed on. What
    /// differs is returned, to be kept as evidence.
    pub fn compare(&self, at: LogIndex, agreed: StateDigest) -> Option<Quarantine> {
        let own = self.digest(at)?;
        if own == agreed {
            self.agreed.send_if_modified(|all| all.insert(at));
            return None;
        }
        // What was only believed at the start is known now.
        self.agreed.send_if_modified(|all| all.remove(&at));
        self.keep_evidence(at);
        let name = self.find(at)?.path().file_name()?.to_string_lossy().into_owned();
        Some(Quarantine { index: at, agreed, own, snapshot: name })
    }

    /// Where received snapshots arrive.
    pub fn dir(&self) -> &SnapshotDir {
        &self.dir
    }

    /// Keeps the snapshot that this node is quarantined for.
    pub fn keep_evidence(&self, at: LogIndex) {
        *self.evidence.lock().expect("no holder panics") = Some(at);
    }

    /// Up to where the log may be purged: the snapshot before the newest that was agreed on.
    pub fn purgeable(&self) -> Option<LogIndex> {
        let agreed = self.agreed.borrow();
        // The log must lead on from a sound one.
        let sound = self.dir.list().into_iter().filter(|snapshot| snapshot.damage().is_none());
        let sound = sound.filter_map(|snapshot| index(&snapshot));
        sound.filter(|index| agreed.contains(index)).rev().nth(AGREED_KEPT - 1)
    }

    /// What is wrong with snapshots on this disk, a sentence each.
    pub fn damages(&self) -> Vec<String> {
        let found = self.dir.list().into_iter().filter_map(|snapshot| {
            let damage = snapshot.damage()?;
            Some(format!("a snapshot is damaged, and an older one takes its place: {damage}"))
        });
        found.chain(self.dir.unreadable().iter().cloned()).collect()
    }

    /// How long ago the newest snapshot was written; none of a time that is still to come.
    pub fn age(&self) -> Option<Duration> {
        let written = self.dir.newest()?.written();
        Some(SystemTime::now().duration_since(written).unwrap_or_default())
    }

    fn indexes(&self) -> impl DoubleEndedIterator<Item = LogIndex> + use<> {
        self.dir.list().into_iter().filter_map(|snapshot| index(&snapshot))
    }

    /// Removes what is no longer needed: what is older than the agreed ones kept, and of those
    /// that are not agreed on yet, what no report can be about any more.
    pub fn clean(&self) -> Result<(), Error> {
        let agreed = self.agreed.borrow().clone();
        let listed: BTreeSet<LogIndex> = self.indexes().collect();
        let (settled, open): (Vec<LogIndex>, Vec<LogIndex>) =
            listed.iter().partition(|index| agreed.contains(index));
        let newest_settled = settled.last().copied();
        // A damaged one stays as long as it is no older than those that are needed.
        let oldest = self.purgeable();
        let settled =
            settled.into_iter().filter(|index| oldest.is_none_or(|oldest| *index >= oldest));
        let open = open.into_iter().rev().take(CHECKPOINTS_KEPT);
        let open = open.filter(|index| Some(*index) > newest_settled);
        let evidence = *self.evidence.lock().expect("no holder panics");
        let kept: BTreeSet<LogIndex> = settled.chain(open).chain(evidence).collect();
        // One that has come meanwhile is in neither set, and stays.
        let gone: BTreeSet<LogIndex> = listed.difference(&kept).copied().collect();
        self.agreed.send_if_modified(|all| {
            all.retain(|index| !gone.contains(index));
            false
        });
        self.dir.retain(|snapshot| index(snapshot).is_none_or(|index| !gone.contains(&index)))
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
        profile: Option<&str>,
        sealed: Option<&Sealed>,
        frozen: FrozenState,
    ) -> Capture {
        let meta = encode_meta(membership, profile, sealed);
        let last = log_id_from_raft(last);
        let dir = self.dir.clone();
        let (pieces, receiver) = mpsc::channel(PIECES_AHEAD);
        let written = tokio::task::spawn_blocking(move || write(&dir, last, &meta, receiver));
        Capture { sent: frozen.send(pieces), written }
    }

    /// A snapshot of a peer is in place: the cluster agreed on it.
    pub fn adopt_agreed(&self, snapshot: &Snapshot) {
        self.agreed.send_modify(|all| all.extend(index(snapshot)));
        self.adopt(snapshot);
    }

    /// A snapshot is whole: it becomes the newest.
    pub fn adopt(&self, snapshot: &Snapshot) {
        *self.alarm.lock().expect("no holder panics") = None;
        let index = index(snapshot);
        tracing::info!(index, bytes = snapshot.id().length, "snapshot on disk");
        self.newest.send_modify(|newest| *newest = (*newest).max(index));
    }

    /// A snapshot could not be written for want of room: an alarm, since the log still has all.
    pub fn refused(&self, reason: String) {
        tracing::error!(%reason, "snapshot not written");
        *self.alarm.lock().expect("no holder panics") = Some(reason);
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
        match restore(environment.clone(), &snapshot, source).await {
            Ok(machines) => Ok(Some((snapshot, machines))),
            Err(failure @ HostFailure::Import(_)) => Err(failure),
            Err(failure) => {
                let repair = snapshot_repair(snapshot.path());
                Err(HostFailure::Stop(format!("{failure}. {repair}")))
            }
        }
    }
}

/// Builds the state that a snapshot holds.
pub async fn restore(
    environment: Environment,
    snapshot: &Snapshot,
    source: Source,
) -> Result<Machines, HostFailure> {
    let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
    let reader = snapshot.clone();
    let reading = tokio::task::spawn_blocking(move || read(&reader, &sender));
    let machines = Machines::restore(environment, source, pieces).await;
    reading
        .await
        .map_err(|error| HostFailure::Stop(format!("reading a snapshot panicked: {error}")))?;
    machines
}

/// What openraft must know of a snapshot.
pub fn meta_to_raft(snapshot: &Snapshot) -> Result<RaftSnapshotMeta, HostFailure> {
    let meta = decode_meta(snapshot)?;
    let membership =
        membership_to_raft(meta.membership).map_err(|reason| malformed(snapshot, &reason))?;
    Ok(RaftSnapshotMeta {
        last_log_id: snapshot.id().last.map(log_id_to_raft),
        last_membership: RaftStoredMembership::new(
            meta.membership_log.map(log_id_to_raft),
            membership,
        ),
    })
}

/// What a build of this engine profile can make of a snapshot.
pub fn fit(snapshot: &Snapshot, profile: &str) -> Result<Fit, HostFailure> {
    let Meta { engine_profile, sealed_for, .. } = decode_meta(snapshot)?;
    Ok(match engine_profile {
        Some(theirs) if theirs != profile && sealed_for.as_deref() == Some(profile) => {
            Fit::From(Source::Exports)
        }
        Some(theirs) if theirs != profile => Fit::OfAnother(theirs),
        _ => Fit::From(Source::Images),
    })
}

fn decode_meta(snapshot: &Snapshot) -> Result<Meta, HostFailure> {
    Meta::decode(snapshot.meta()).map_err(|error| malformed(snapshot, &error.to_string()))
}

fn malformed(snapshot: &Snapshot, reason: &str) -> HostFailure {
    let path = snapshot.path().display();
    HostFailure::Stop(format!("{path}: its description is damaged: {reason}"))
}

/// Index of the last entry a snapshot holds.
fn index(snapshot: &Snapshot) -> Option<LogIndex> {
    snapshot.id().last.map(|last| last.index)
}

fn encode_meta(
    membership: &RaftStoredMembership,
    profile: Option<&str>,
    sealed: Option<&Sealed>,
) -> Vec<u8> {
    let meta = Meta {
        membership_log: membership.log_id().as_ref().map(log_id_from_raft),
        membership: membership_from_raft(membership.membership()),
        engine_profile: profile.map(str::to_owned),
        sealed_for: sealed.map(|sealed| sealed.to.clone()),
    };
    meta.encode()
}

/// Writes pieces to a file until they end; a capture that is broken off leaves none.
fn write(
    dir: &SnapshotDir,
    last: LogId,
    meta: &[u8],
    mut pieces: mpsc::Receiver<Piece>,
) -> Result<Snapshot, Error> {
    let mut writer = dir.begin(Some(last), meta)?;
    let mut digest = ContentDigest::default();
    while let Some(piece) = pieces.blocking_recv() {
        digest.add(&piece);
        match piece {
            Piece::Begin(kind) => writer.section(kind)?,
            Piece::Chunk(bytes) => writer.chunk(&bytes)?,
            Piece::End => {
                writer.section(SECTION_DIGEST)?;
                writer.chunk(&digest.finish().0)?;
                return writer.finish();
            }
        }
    }
    Err(Error::Refused("the capture of a snapshot was broken off".to_owned()))
}

/// What a snapshot says its content's digest is; `None` for one that was written without it.
pub fn digest_of(snapshot: &Snapshot) -> Option<StateDigest> {
    let chunk = snapshot.last_chunk(SECTION_DIGEST, DIGEST_BYTES)?;
    StateDigest::from_slice(&chunk)
}

/// Reads all of a snapshot, and computes the digest of its content.
pub fn compute_digest(snapshot: &Snapshot) -> Result<StateDigest, Error> {
    let mut digest = ContentDigest::default();
    for_each_piece(snapshot, |piece| {
        digest.add(&piece);
        true
    })?;
    Ok(digest.finish())
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
    verify_pieces(snapshot, |piece| pieces.blocking_send(Ok(piece)).is_ok()).map(drop)
}

/// As [`for_each_piece`]; what was read to the end is compared with the digest in the file.
pub fn verify_pieces(
    snapshot: &Snapshot,
    mut take: impl FnMut(Piece) -> bool,
) -> Result<bool, Error> {
    let mut digest = ContentDigest::default();
    let is_whole = for_each_piece(snapshot, |piece| {
        digest.add(&piece);
        take(piece)
    })?;
    match digest_of(snapshot) {
        Some(written) if is_whole && written != digest.finish() => Err(Error::Refused(format!(
            "{}: its content is not what its digest says",
            snapshot.path().display()
        ))),
        _ => Ok(is_whole),
    }
}

/// Gives every piece to `take`, without the digest, until that wants no more; true at the end.
pub fn for_each_piece(
    snapshot: &Snapshot,
    mut take: impl FnMut(Piece) -> bool,
) -> Result<bool, Error> {
    let mut reader = snapshot.open();
    while let Some(kind) = reader.next_section()? {
        if kind != SECTION_DIGEST && !take(Piece::Begin(kind)) {
            return Ok(false);
        }
        while let Some(chunk) = reader.next_chunk()? {
            if kind != SECTION_DIGEST && !take(Piece::Chunk(chunk.into())) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Shared by the state machine, the peers and the status.
pub type SharedSnapshots = Arc<Snapshots>;
