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
//! **Invariant:** a snapshot that was found damaged says so from then on, to all who hold it.

mod format;
mod incoming;
mod reader;
mod writer;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tempfile::NamedTempFile;

use super::blocking::{SlowDrop, may_block};
use super::{Error, Log, durable, space};
use crate::types::LogId;
pub use format::CHUNK_BYTES_MAX;
pub use incoming::{ArrivedSnapshot, IncomingSnapshot};
pub use reader::{Part, SnapshotReader};
pub use writer::SnapshotWriter;

const EXTENSION: &str = "snapshot";
/// A file is synced each time it has grown by this much. One sync of all of it at the end
/// would hold up the syncs of the log, which share the file system's journal with it.
const SYNC_BYTES: u64 = 8 << 20;

/// A slow check looks so often whether it should end.
const STOP_INTERVAL: Duration = Duration::from_millis(100);

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
    /// The log of the same node.
    log: Option<Log>,
    /// Held for a moment only: async tasks look at it.
    list: Arc<Mutex<BTreeMap<Place, Snapshot>>>,
    /// Held by whoever changes the folder, for as long as the disk takes.
    changing: Arc<Mutex<()>>,
    /// What is wrong with older files, a sentence each.
    unreadable: Arc<[String]>,
}

impl SnapshotDir {
    /// Opens the folder, creating it if need be; removes what was left half written, and lists
    /// what is complete. Header and footer of each file are checked here, the rest as it is read.
    ///
    /// # Errors
    /// `Damaged`, with the repair, when header or footer of the newest file is not what was
    /// written, or it lies under another's name. An older one is left out, with a reason to tell
    /// ([`SnapshotDir::unreadable`]).
    pub fn open(folder: &Path) -> Result<Self, Error> {
        durable::create_folder(folder)?;
        durable::remove_temporaries(folder)?;
        let mut list = BTreeMap::new();
        let mut unreadable: BTreeMap<PathBuf, Error> = BTreeMap::new();
        for entry in std::fs::read_dir(folder).map_err(|error| Error::io(folder, error))? {
            let path = entry.map_err(|error| Error::io(folder, error))?.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                match Snapshot::open_named(&path) {
                    Ok(snapshot) => drop(list.insert(place(snapshot.id().last), snapshot)),
                    Err(error @ Error::Damaged { .. }) => drop(unreadable.insert(path, error)),
                    Err(error) => return Err(error),
                }
            }
        }
        // The names of snapshots are in the order of their indexes.
        let newest = list.values().map(|snapshot: &Snapshot| snapshot.path()).max();
        let older = |path: &PathBuf| newest.is_some_and(|newest| path.as_path() < newest);
        let (older, newer): (BTreeMap<_, _>, BTreeMap<_, _>) =
            unreadable.into_iter().partition(|(path, _)| older(path));
        if let Some(error) = newer.into_values().next_back() {
            return Err(error.with_snapshot_repair());
        }
        let unreadable = older.into_values().map(|error| error.with_snapshot_repair().to_string());
        let (list, changing) = (Arc::new(Mutex::new(list)), Arc::default());
        let (folder, unreadable) = (folder.into(), unreadable.collect());
        Ok(Self { folder, keep_free_bytes: 0, log: None, list, changing, unreadable })
    }

    /// Leaves so much of the disk free: a snapshot that is written here ends as on a full disk
    /// before that, since on a really full one the log would fail, and with it the node.
    pub fn keeping_free(self, bytes: u64) -> Self {
        Self { keep_free_bytes: bytes, ..self }
    }

    /// Keeps the order of this log and the snapshots: one of this node's state gets its name when
    /// the log is synced up to it, and one of a peer once the log knows that it comes.
    #[must_use]
    pub fn beside(self, log: Log) -> Self {
        Self { log: Some(log), ..self }
    }

    /// What was wrong with older files when the folder was opened, with the repair, a sentence
    /// each.
    pub fn unreadable(&self) -> &[String] {
        &self.unreadable
    }

    /// Where the snapshots lie.
    pub fn path(&self) -> &Path {
        &self.folder
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
        let _turn = self.turn_to_change();
        let (kept, removed): (Vec<_>, Vec<_>) = self.list().into_iter().partition(keep);
        if let Some(log) = self.log.as_ref().filter(|_| !removed.is_empty()) {
            let (newest, purged) =
                (kept.last().and_then(|kept| kept.id().last), log.state()?.purged);
            assert!(purged <= newest, "the log is purged up to {purged:?}, beside {newest:?}");
        }
        let is_changed = !removed.is_empty();
        for snapshot in removed {
            let path = snapshot.path();
            assert_eq!(path.parent(), Some(&*self.folder), "only files of the folder are removed");
            std::fs::remove_file(path).map_err(|error| Error::io(path, error))?;
            self.locked().remove(&place(snapshot.id().last));
        }
        if is_changed { durable::sync_folder(&self.folder) } else { Ok(()) }
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
    /// there for the same log id; one received does, since the cluster agreed on it. The file must
    /// be `id`, as whoever wrote it has counted. `folder` is this one, opened before: no descriptor
    /// is needed here, at the end of long work.
    fn admit(
        &self,
        folder: &File,
        temporary: NamedTempFile,
        id: &SnapshotId,
        replace: bool,
    ) -> Result<Snapshot, Error> {
        let (whole, _) = identify(temporary.as_file(), temporary.path())?;
        assert_eq!(&whole, id, "header and footer say what was written");
        let last = id.last;
        let path = self.folder.join(file_name(last));
        temporary.as_file().sync_all().map_err(|error| Error::io(&path, error))?;
        match (&self.log, last) {
            (Some(log), Some(last)) if replace => log.announce_snapshot(last)?,
            (Some(log), _) => log.wait_durable()?,
            (None, _) => {}
        }
        self.check_beside_log(last)?;
        let _turn = self.turn_to_change();
        let present = self.locked().get(&place(last)).cloned();
        if let Some(present) = present.filter(|_| !replace) {
            return Ok(present);
        }
        let file = durable::publish_in(folder, temporary, &path)?;
        let snapshot = Snapshot::load(file, path)?;
        assert_eq!(snapshot.id(), id, "a file is the same under each of its names");
        self.locked().insert(place(last), snapshot.clone());
        Ok(snapshot)
    }

    /// `snapshot <= applied <= committed <= last`: the log holds what a snapshot covers, or knows
    /// that a peer's comes.
    fn check_beside_log(&self, last: Option<LogId>) -> Result<(), Error> {
        let Some(state) = self.log.as_ref().map(Log::state).transpose()? else { return Ok(()) };
        let is_held = last <= state.last || last <= state.announced;
        assert!(is_held, "a snapshot of {last:?} beside a log up to {:?}", state.last);
        Ok(())
    }

    /// Waits until nobody else changes the folder.
    fn turn_to_change(&self) -> MutexGuard<'_, ()> {
        may_block();
        // Whoever panicked has left the folder and the list as a crash would.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// Whoever has a snapshot may be the last that does, after it was removed.
    file: SlowDrop<File>,
    path: PathBuf,
    id: SnapshotId,
    meta: Bytes,
    /// The end of the file before its footer, where a short last section lies.
    tail: Vec<u8>,
    /// When the file was written.
    written: SystemTime,
    /// What is wrong with it, once that was found.
    damage: OnceLock<String>,
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

    /// Opens a file of a folder of snapshots, which must lie under its own name.
    fn open_named(path: &Path) -> Result<Self, Error> {
        let snapshot = Self::open_file(path)?;
        let name = file_name(snapshot.id().last);
        if path.file_name().is_some_and(|found| found == name.as_str()) {
            return Ok(snapshot);
        }
        Err(Error::damaged(path, 0, format!("it is the snapshot {name} under another name")))
    }

    /// Reads and checks header and footer.
    fn load(file: File, path: PathBuf) -> Result<Self, Error> {
        let (id, meta) = identify(&file, &path)?;
        let written = file.metadata().and_then(|metadata| metadata.modified());
        let written = written.map_err(|error| Error::io(&path, error))?;
        let tail = format::read_tail(&file, &path, id.length)?;
        let damage = OnceLock::new();
        let file = SlowDrop::new(file);
        Ok(Self(Arc::new(SnapshotInner { file, path, id, meta, tail, written, damage })))
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
    /// `bytes` bytes, a short one. It was read when the file was opened.
    pub fn last_chunk(&self, kind: u8, bytes: usize) -> Option<Vec<u8>> {
        format::last_chunk(&self.0.tail, kind, bytes)
    }

    /// When its file was written, by the clock of that time.
    pub fn written(&self) -> SystemTime {
        self.0.written
    }

    /// What was found to be wrong with it, if anything was.
    pub fn damage(&self) -> Option<&str> {
        self.0.damage.get().map(String::as_str)
    }

    /// As [`Snapshot::verify`]; damage is remembered.
    pub fn check(&self) -> Result<(), Error> {
        self.remember(self.verify())
    }

    /// Checks the file that lies under this snapshot's name now, `bytes_per_second` at most, and
    /// from the disk rather than from memory. Damage is remembered. It ends early, with success,
    /// once `stop` says so.
    pub fn check_on_disk(&self, bytes_per_second: u64, stop: &AtomicBool) -> Result<(), Error> {
        self.remember(self.verify_on_disk(bytes_per_second, stop))
    }

    fn verify_on_disk(&self, bytes_per_second: u64, stop: &AtomicBool) -> Result<(), Error> {
        let there = Self::open_named(self.path())?;
        if there.id() != self.id() {
            return Err(Error::damaged(self.path(), 0, "another snapshot took its place"));
        }
        // A hint: what is not heeded makes the check weaker, and nothing wrong.
        rustix::fs::fadvise(&*there.0.file, 0, None, rustix::fs::Advice::DontNeed).ok();
        let (mut reader, started) = (there.open(), Instant::now());
        while reader.next_part()?.is_some() {
            let due = Duration::from_secs_f64(
                f64::from(u32::try_from(reader.offset() >> 10).unwrap_or(u32::MAX)) * 1024.0
                    / f64::from(u32::try_from(bytes_per_second).unwrap_or(u32::MAX)),
            );
            while let Some(left) = due.checked_sub(started.elapsed())
                && !stop.load(Ordering::Relaxed)
            {
                std::thread::park_timeout(left.min(STOP_INTERVAL));
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Notes that nothing lies under this snapshot's name any more. It looks at what lies beside.
    pub fn note_gone(&self) {
        let gone = Error::damaged(self.path(), 0, "the file is gone");
        self.remember(Err(gone)).expect_err("it was just damaged");
    }

    fn remember(&self, checked: Result<(), Error>) -> Result<(), Error> {
        if let Err(error @ Error::Damaged { .. }) = &checked {
            let text = error.clone().with_snapshot_repair().to_string();
            if self.0.damage.set(text.clone()).is_ok() {
                tracing::error!("a snapshot is damaged: {text}");
            }
        }
        checked
    }

    /// Reads its sections from the first one, verifying each chunk.
    pub fn open(&self) -> SnapshotReader {
        SnapshotReader::new(self.clone())
    }

    /// Its bytes as they lie in the file, from `offset` on: `bytes_max` of them or what is left,
    /// and none at the end. Unverified, for sending.
    ///
    /// # Errors
    /// `Damaged` when the file has become shorter.
    pub fn raw_chunk(&self, offset: u64, bytes_max: usize) -> Result<Bytes, Error> {
        may_block();
        let length = self.id().length;
        assert!(offset <= length, "byte {offset} is asked for, and there are {length}");
        let left = length - offset;
        let count = usize::try_from(left).map_or(bytes_max, |left| left.min(bytes_max));
        let mut chunk = vec![0; count];
        format::read_at(&self.0.file, self.path(), &mut chunk, offset)?;
        Ok(chunk.into())
    }

    /// Reads all of it and checks every checksum.
    pub fn verify(&self) -> Result<(), Error> {
        let mut reader = self.open();
        while reader.next_part()?.is_some() {}
        Ok(())
    }
}

/// Reads and checks header and footer: what the file is, and the caller's own description.
fn identify(file: &File, path: &Path) -> Result<(SnapshotId, Bytes), Error> {
    may_block();
    let length = file.metadata().map_err(|error| Error::io(path, error))?.len();
    let header = format::read_header(file, path, length)?;
    let file_crc32c = format::read_footer(file, path, length)?;
    Ok((SnapshotId { last: header.last, file_crc32c, length }, header.meta))
}

/// Reads a snapshot's file by position, so that many can read one handle.
#[derive(Debug)]
struct RawReader {
    snapshot: Snapshot,
    offset: u64,
}

impl RawReader {
    fn new(snapshot: Snapshot) -> Self {
        Self { snapshot, offset: 0 }
    }
}

impl Read for RawReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.snapshot.0.file.read_at(buffer, self.offset)?;
        self.offset += u64::try_from(count).expect("a usize fits");
        Ok(count)
    }
}
