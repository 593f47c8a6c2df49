//! Snapshot files: how they are written, listed, read, sent and received.
//!
//! A snapshot is a header with the log id and the caller's own description, then sections of
//! chunks, then a footer (docs/formats.md, "Snapshot"). What the chunks mean is the caller's
//! business; their boundaries are kept, because a guest's import must see the chunks of its export.
//!
//! **Invariant:** a file named `*.snapshot` was whole and synced when it got that name.
//! **Invariant:** a snapshot never takes the place of one with a later log id: each has a name of
//! its own, and `newest` goes by log id, not by time of writing.
//! **Invariant:** a handle keeps its file open, so `retain` never breaks a read or a transfer.

mod format;
mod incoming;
mod reader;
mod writer;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tempfile::NamedTempFile;

use super::{Error, durable, space};
use crate::types::LogId;
pub use format::CHUNK_BYTES_MAX;
pub use incoming::{ArrivedSnapshot, IncomingSnapshot};
pub use reader::SnapshotReader;
pub use writer::SnapshotWriter;

const EXTENSION: &str = "snapshot";
/// A file is synced each time it has grown by this much. One sync of all of it at the end
/// would hold up the syncs of the log, which share the file system's journal with it.
const SYNC_BYTES: u64 = 8 << 20;

/// What identifies a snapshot file, byte for byte, between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotId {
    /// The last log entry it contains; `None` for the state before the first.
    pub last: Option<LogId>,
    /// CRC32C of the file up to its footer.
    pub file_crc32c: u32,
    /// Length of the whole file, in bytes.
    pub length: u64,
}

/// Order of snapshots, and their names: by index, then by term and node.
type Place = Option<(u64, u64, u64)>;

fn place(last: Option<LogId>) -> Place {
    last.map(|id| (id.index, id.term, id.node.0))
}

fn file_name(last: Option<LogId>) -> String {
    match last {
        Some(id) => format!("{:020}-{}-{}.{EXTENSION}", id.index, id.term, id.node),
        None => format!("empty.{EXTENSION}"),
    }
}

/// The folder of snapshots. Clones share one list; it is the only writer of the folder.
#[derive(Clone, Debug)]
pub struct SnapshotDir {
    folder: Arc<Path>,
    keep_free_bytes: u64,
    list: Arc<Mutex<BTreeMap<Place, Snapshot>>>,
}

impl SnapshotDir {
    /// Opens the folder, creating it if need be; removes what was left half written, and lists
    /// what is complete. Header and footer of each file are checked here, the rest as it is read.
    ///
    /// # Errors
    /// `Damaged`, with the repair, when a complete file's header or footer is not what was written.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        durable::create_folder(folder)?;
        durable::remove_temporaries(folder)?;
        let mut list = BTreeMap::new();
        for entry in std::fs::read_dir(folder).map_err(|error| Error::io(folder, error))? {
            let path = entry.map_err(|error| Error::io(folder, error))?.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                let file = File::open(&path).map_err(|error| Error::io(&path, error))?;
                let snapshot = Snapshot::load(file, path).map_err(Error::with_snapshot_repair)?;
                list.insert(place(snapshot.id().last), snapshot);
            }
        }
        let list = Arc::new(Mutex::new(list));
        Ok(Self { folder: folder.into(), keep_free_bytes: 0, list })
    }

    /// Leaves so much of the disk free: a snapshot that is written here ends as on a full disk
    /// before that, since on a really full one the log would fail, and with it the node.
    pub fn keeping_free(self, bytes: u64) -> Self {
        Self { keep_free_bytes: bytes, ..self }
    }

    fn check_room(&self) -> Result<(), Error> {
        if space::free(&self.folder)?.bytes >= self.keep_free_bytes {
            return Ok(());
        }
        let reason = format!("less than {} bytes are free", self.keep_free_bytes);
        Err(Error::io(&self.folder, io::Error::new(io::ErrorKind::StorageFull, reason)))
    }

    /// The snapshot with the latest log id.
    pub fn newest(&self) -> Option<Snapshot> {
        self.locked().last_key_value().map(|(_, snapshot)| snapshot.clone())
    }

    /// Every complete snapshot, oldest log id first.
    pub fn list(&self) -> Vec<Snapshot> {
        self.locked().values().cloned().collect()
    }

    /// The snapshot with exactly this id, byte for byte.
    pub fn find(&self, id: &SnapshotId) -> Option<Snapshot> {
        self.locked().get(&place(id.last)).filter(|snapshot| snapshot.id() == id).cloned()
    }

    /// Removes all that are not to be kept. Open handles of the removed ones stay readable.
    pub fn retain(&self, keep: impl Fn(&Snapshot) -> bool) -> Result<(), Error> {
        let mut list = self.locked();
        let removed: Vec<Place> =
            list.iter().filter(|(_, snapshot)| !keep(snapshot)).map(|(place, _)| *place).collect();
        for place in &removed {
            let path = list[place].path();
            std::fs::remove_file(path).map_err(|error| Error::io(path, error))?;
            list.remove(place);
        }
        if removed.is_empty() { Ok(()) } else { durable::sync_folder(&self.folder) }
    }

    /// Starts a snapshot of the state after `last`. `meta` is the caller's own description, given
    /// back by [`Snapshot::meta`] without reading the rest of the file.
    pub fn begin(&self, last: Option<LogId>, meta: &[u8]) -> Result<SnapshotWriter, Error> {
        SnapshotWriter::begin(self.clone(), last, meta)
    }

    /// Starts or resumes receiving the snapshot `id`: what an earlier call for the same id has
    /// stored is kept, what is there of any other id is removed.
    pub fn receive(&self, id: SnapshotId) -> Result<IncomingSnapshot, Error> {
        IncomingSnapshot::start(self.clone(), id)
    }

    /// Bytes of the snapshot `id` that are here, of the whole file or of what has arrived of it.
    /// Nothing is changed by asking.
    pub fn arrived_bytes(&self, id: &SnapshotId) -> Result<u64, Error> {
        match self.find(id) {
            Some(_) => Ok(id.length),
            None => incoming::arrived_bytes(self, id),
        }
    }

    /// Gives a whole, synced-to-be file its name. One written here does not replace one that is
    /// there for the same log id; one received does, since the cluster agreed on it.
    fn admit(&self, temporary: NamedTempFile, replace: bool) -> Result<Snapshot, Error> {
        let file = temporary.reopen().map_err(|error| Error::io(temporary.path(), error))?;
        let last = Snapshot::load(file, temporary.path().to_owned())?.id().last;
        let path = self.folder.join(file_name(last));
        // The long sync comes before the lock, for which readers of the list wait.
        temporary.as_file().sync_all().map_err(|error| Error::io(&path, error))?;
        let mut list = self.locked();
        if let Some(present) = list.get(&place(last)).filter(|_| !replace) {
            return Ok(present.clone());
        }
        let file = durable::publish(temporary, &path)?;
        let snapshot = Snapshot::load(file, path)?;
        list.insert(place(last), snapshot.clone());
        Ok(snapshot)
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<Place, Snapshot>> {
        self.list.lock().expect("nothing panics while it holds the list")
    }
}

/// A complete snapshot. Cheap to clone; keeps its file open.
#[derive(Clone, Debug)]
pub struct Snapshot(Arc<SnapshotInner>);

#[derive(Debug)]
struct SnapshotInner {
    file: File,
    path: PathBuf,
    id: SnapshotId,
    meta: Bytes,
}

impl Snapshot {
    /// Opens a file wherever it lies; header and footer are checked here, the rest as it is read.
    ///
    /// # Errors
    /// `Damaged` when it is no snapshot, or its header or footer is not what was written.
    pub fn open_file(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|error| Error::io(path, error))?;
        Self::load(file, path.to_owned())
    }

    /// Reads and checks header and footer.
    fn load(file: File, path: PathBuf) -> Result<Self, Error> {
        let length = file.metadata().map_err(|error| Error::io(&path, error))?.len();
        let header = format::read_header(&file, &path, length)?;
        let file_crc32c = format::read_footer(&file, &path, length)?;
        let id = SnapshotId { last: header.last, file_crc32c, length };
        Ok(Self(Arc::new(SnapshotInner { file, path, id, meta: header.meta })))
    }

    /// What identifies it.
    pub fn id(&self) -> &SnapshotId {
        &self.0.id
    }

    /// The caller's own description, as given to [`SnapshotDir::begin`].
    pub fn meta(&self) -> &Bytes {
        &self.0.meta
    }

    /// Where it lies, unless [`SnapshotDir::retain`] has removed it.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The chunk of its last section, if that is one of `kind` with one incompressible chunk of
    /// `bytes` bytes. It costs one short read.
    pub fn last_chunk(&self, kind: u8, bytes: usize) -> Result<Option<Vec<u8>>, Error> {
        format::read_last_chunk(&self.0.file, &self.0.path, self.0.id.length, kind, bytes)
    }

    /// Reads its sections from the first one, verifying each chunk.
    pub fn open(&self) -> SnapshotReader {
        SnapshotReader::new(self.clone())
    }

    /// Its bytes as they lie in the file, from `offset` on; unverified, for sending.
    pub fn raw_reader(&self, offset: u64) -> RawReader {
        RawReader { snapshot: self.clone(), offset }
    }

    /// Reads all of it and checks every checksum.
    pub fn verify(&self) -> Result<(), Error> {
        let mut reader = self.open();
        while reader.next_section()?.is_some() {
            while reader.next_chunk()?.is_some() {}
        }
        Ok(())
    }
}

/// Reads a snapshot's file by position, so that many can read one handle.
#[derive(Debug)]
pub struct RawReader {
    snapshot: Snapshot,
    offset: u64,
}

impl RawReader {
    /// Position of the next byte it will give.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

impl Read for RawReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.snapshot.0.file.read_at(buffer, self.offset)?;
        self.offset += u64::try_from(count).expect("a usize fits");
        Ok(count)
    }
}
