//! A snapshot that arrives from a peer, as raw bytes, and may arrive in several attempts.
//!
//! What has arrived stays in a temporary file named by the snapshot's id, until the next start of
//! the daemon. Nothing of it is trusted before `finish` has read the whole file back.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempPath};

use super::{SYNC_BYTES, Snapshot, SnapshotDir, SnapshotId};
use crate::storage::blocking::{SlowDrop, may_block};
use crate::storage::durable::TEMPORARY_PREFIX;
use crate::storage::{Error, durable};

const INCOMING: &str = "incoming-";

/// A transfer under way. Dropped, it keeps what has arrived, for [`SnapshotDir::receive`] of the
/// same id to go on from.
#[derive(Debug)]
pub struct IncomingSnapshot {
    dir: SnapshotDir,
    id: SnapshotId,
    /// A later transfer may have removed it.
    file: SlowDrop<File>,
    path: PathBuf,
    offset: u64,
    synced: u64,
}

impl IncomingSnapshot {
    pub(super) fn start(dir: SnapshotDir, id: SnapshotId) -> Result<Self, Error> {
        let path = dir.folder.join(file_name(&id));
        remove_others(&dir, &path)?;
        // The bytes of an id are the same whoever sends them, so an attempt that is still
        // running beside this one can only write what this one would.
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| Error::io(&path, error))?;
        let offset = file.metadata().map_err(|error| Error::io(&path, error))?.len();
        Ok(Self { dir, id, file: SlowDrop::new(file), path, offset, synced: 0 })
    }

    /// The snapshot that it will be.
    pub fn id(&self) -> &SnapshotId {
        &self.id
    }

    /// Bytes that have arrived: where the sender must go on.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Stores the bytes that follow [`IncomingSnapshot::offset`].
    ///
    /// # Errors
    /// `Refused` when they reach past the announced length.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        may_block();
        let end = self.offset + u64::try_from(bytes.len()).expect("a usize fits");
        if end > self.id.length {
            return Err(Error::Refused(format!(
                "{end} bytes arrived for a snapshot of {}",
                self.id.length
            )));
        }
        let written = self.file.write_all_at(bytes, self.offset);
        written.map_err(|error| Error::io(&self.path, error))?;
        self.offset = end;
        assert!(self.synced <= self.offset, "what is synced was written");
        if end - self.synced >= SYNC_BYTES {
            self.file.sync_data().map_err(|error| Error::io(&self.path, error))?;
            self.synced = end;
        }
        Ok(())
    }

    /// Verifies the whole file against the id. The file has no name of its own yet.
    ///
    /// # Errors
    /// `Refused` when bytes are missing: the transfer can go on later. `Damaged` when the file is
    /// not the one announced: it is removed, and a new transfer starts from nothing.
    pub fn verify(self) -> Result<ArrivedSnapshot, Error> {
        if self.offset != self.id.length {
            return Err(Error::Refused(format!(
                "only {} of {} bytes have arrived",
                self.offset, self.id.length
            )));
        }
        let temporary =
            TempPath::try_from_path(&self.path).map_err(|error| Error::io(&self.path, error))?;
        let temporary = NamedTempFile::from_parts(self.file.into_inner(), temporary);
        let file = temporary.reopen().map_err(|error| Error::io(temporary.path(), error))?;
        let snapshot = Snapshot::load(file, self.path.clone())?;
        if snapshot.id() != &self.id {
            return Err(Error::damaged(&self.path, 0, "another snapshot than the one announced"));
        }
        snapshot.verify()?;
        Ok(ArrivedSnapshot { dir: self.dir, temporary, snapshot })
    }

    /// Verifies the whole file, and makes it visible and durable.
    ///
    /// # Errors
    /// As of [`IncomingSnapshot::verify`] and [`ArrivedSnapshot::keep`].
    pub fn finish(self) -> Result<Snapshot, Error> {
        self.verify()?.keep()
    }

    /// Gives up the transfer and removes what has arrived.
    pub fn discard(self) -> Result<(), Error> {
        std::fs::remove_file(&self.path).map_err(|error| Error::io(&self.path, error))
    }
}

/// A snapshot that has arrived whole. Dropped, it is removed: a start never finds it.
#[derive(Debug)]
pub struct ArrivedSnapshot {
    dir: SnapshotDir,
    temporary: NamedTempFile,
    snapshot: Snapshot,
}

impl ArrivedSnapshot {
    /// What has arrived, to be looked at.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Makes it visible and durable, in place of one with the same log id.
    pub fn keep(self) -> Result<Snapshot, Error> {
        let names = [self.snapshot.path(), self.temporary.path()].map(Path::file_name);
        assert_eq!(names[0], names[1], "it is the file that was verified");
        let folder = durable::open_folder(&self.dir.folder)?;
        self.dir.admit(&folder, self.temporary, self.snapshot.id(), true)
    }
}

/// Bytes of the snapshot `id` that have arrived. Nothing is changed by asking.
pub(super) fn arrived_bytes(dir: &SnapshotDir, id: &SnapshotId) -> Result<u64, Error> {
    may_block();
    let path = dir.folder.join(file_name(id));
    match std::fs::metadata(&path) {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(Error::io(&path, error)),
    }
}

fn file_name(id: &SnapshotId) -> String {
    let last = match id.last {
        Some(last) => format!("{}-{}-{}", last.index, last.term, last.node),
        None => "empty".to_owned(),
    };
    format!("{TEMPORARY_PREFIX}{INCOMING}{last}-{:08x}-{}", id.file_crc32c, id.length)
}

/// Removes the parts of every other transfer: the sender has moved on to a newer snapshot.
fn remove_others(dir: &SnapshotDir, keep: &Path) -> Result<(), Error> {
    may_block();
    let folder = &dir.folder;
    let prefix = format!("{TEMPORARY_PREFIX}{INCOMING}");
    let mut removed = false;
    for entry in std::fs::read_dir(folder).map_err(|error| Error::io(folder, error))? {
        let entry = entry.map_err(|error| Error::io(folder, error))?;
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with(&prefix) && path != keep {
            std::fs::remove_file(&path).map_err(|error| Error::io(&path, error))?;
            removed = true;
        }
    }
    if removed { durable::sync_folder(folder) } else { Ok(()) }
}
