//! The files of the log. A segment is named by its number; the last one is written to, and the
//! next one is prepared beside it.
//!
//! **Invariant:** behind what was written, a segment is zeros or ends. Zeros are written ahead
//! because a sync of bytes that are there needs one write to the disk, and one of a file that grows
//! waits for the journal of the file system too (docs/performance.md).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use bytes::Bytes;
use tempfile::NamedTempFile;

use super::as_u64;
use crate::storage::{Error, durable};

const EXTENSION: &str = "wal";
/// Zeros are written in pieces of this size, each one synced, so that the syncs of the segment in
/// use never wait long behind them.
const PIECE_BYTES: usize = 1 << 20;

/// Where segment `number` lies.
pub(super) fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:020}.{EXTENSION}"))
}

/// The numbers of the segments of a folder, in order.
///
/// # Errors
/// `Damaged` when one is missing in between, and for any other file: one that was renamed would be
/// missed silently.
pub(super) fn list(folder: &Path) -> Result<Vec<u64>, Error> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| Error::io(folder, error))? {
        let file = entry.map_err(|error| Error::io(folder, error))?.path();
        let number = file.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        let number = number.filter(|number| path(folder, *number) == file);
        let foreign = || Error::damaged(&file, 0, "no file of the log has this name");
        numbers.push(number.ok_or_else(foreign)?);
    }
    numbers.sort_unstable();
    for pair in numbers.windows(2) {
        if pair[0] + 1 != pair[1] {
            let reason = format!("the next file, number {}, is missing", pair[0] + 1);
            return Err(Error::damaged(&path(folder, pair[0]), 0, reason));
        }
    }
    Ok(numbers)
}

/// A segment with something in it.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    /// The byte of the log with which it begins.
    pub(super) start: u64,
    pub(super) path: PathBuf,
    file: File,
}

impl Segment {
    /// Opens segment `number`, of which it is not yet known where it begins.
    pub(super) fn open(folder: &Path, number: u64) -> Result<Self, Error> {
        let path = path(folder, number);
        let opened = OpenOptions::new().read(true).write(true).open(&path);
        let file = opened.map_err(|error| Error::io(&path, error))?;
        Ok(Self { number, start: 0, path, file })
    }

    /// Makes a segment visible that begins with `records`. Where there is no room for zeros, up to
    /// a length of `bytes`, it grows as it is written to.
    pub(super) fn create(
        folder: &Path,
        number: u64,
        start: u64,
        records: &[u8],
        bytes: u64,
    ) -> Result<Self, Error> {
        let temporary = match filled(folder, bytes, &AtomicBool::new(false)) {
            Err(error) if is_full(&error) => durable::temporary_in(folder),
            filled => filled,
        }?;
        let written = temporary.as_file().write_all_at(records, 0);
        written.map_err(|error| Error::io(temporary.path(), error))?;
        let path = path(folder, number);
        let file = durable::publish(temporary, &path)?;
        Ok(Self { number, start, path, file })
    }

    /// All of it.
    pub(super) fn read_whole(&self) -> Result<Bytes, Error> {
        let length = self.file.metadata().map_err(|error| self.failed(error))?.len();
        self.read(0, length)
    }

    pub(super) fn read(&self, offset: u64, length: u64) -> Result<Bytes, Error> {
        let mut bytes = vec![0; usize::try_from(length).expect("segments fit in memory")];
        self.file.read_exact_at(&mut bytes, offset).map_err(|error| self.failed(error))?;
        Ok(bytes.into())
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all_at(bytes, offset).map_err(|error| self.failed(error))
    }

    pub(super) fn sync(&self) -> Result<(), Error> {
        self.file.sync_data().map_err(|error| self.failed(error))
    }

    /// Removes what lies behind `length`, durably: nothing of it may come back behind what is
    /// written there next, and whether `sync` covers a length that shrank is left to the system.
    pub(super) fn cut(&self, length: u64) -> Result<(), Error> {
        let cut = self.file.set_len(length).and_then(|()| self.file.sync_all());
        cut.map_err(|error| self.failed(error))
    }

    pub(super) fn damaged(&self, offset: u64, reason: impl Into<String>) -> Error {
        Error::damaged(&self.path, offset, reason)
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::io(&self.path, error)
    }
}

/// A temporary file of `bytes` zeros.
fn filled(folder: &Path, bytes: u64, stop: &AtomicBool) -> Result<NamedTempFile, Error> {
    let temporary = durable::temporary_in(folder)?;
    let zeros = vec![0; PIECE_BYTES];
    let mut length = 0;
    while length < bytes {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Refused("the log is being closed".to_owned()));
        }
        let left = usize::try_from(bytes - length).unwrap_or(PIECE_BYTES);
        let piece = &zeros[..left.min(PIECE_BYTES)];
        let file = temporary.as_file();
        let written = file.write_all_at(piece, length).and_then(|()| file.sync_data());
        written.map_err(|error| Error::io(temporary.path(), error))?;
        length += as_u64(piece.len());
    }
    Ok(temporary)
}

/// A segment that is being prepared on a thread of its own; dropped, it is given up.
#[derive(Debug)]
pub(super) struct Preparation {
    folder: Arc<Path>,
    number: u64,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<File, Error>>>,
}

impl Preparation {
    /// Begins to prepare segment `number`.
    pub(super) fn begin(folder: &Arc<Path>, number: u64, bytes: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (folder, stops, place) = (Arc::clone(folder), Arc::clone(&stop), path(folder, number));
        let prepare = {
            let folder = Arc::clone(&folder);
            move || durable::publish(filled(&folder, bytes, &stops)?, &place)
        };
        let thread = std::thread::Builder::new().name("log-preparer".to_owned()).spawn(prepare);
        // Without a thread the segment is created when it is needed.
        Self { folder, number, stop, thread: thread.ok() }
    }

    /// Waits for the segment, which is to begin with byte `start` of the log. Where there is no
    /// room for zeros, it grows as it is written to.
    pub(super) fn finish(mut self, start: u64) -> Result<Segment, Error> {
        let number = self.number;
        match self.join() {
            Some(Ok(file)) => Ok(Segment { number, start, path: path(&self.folder, number), file }),
            Some(Err(error)) if !is_full(&error) => Err(error),
            _ => Segment::create(&self.folder, number, start, &[], 0),
        }
    }

    /// What came of it; `None` when there was no thread for it, or it panicked.
    fn join(&mut self) -> Option<Result<File, Error>> {
        self.thread.take()?.join().ok()
    }
}

/// The disk, or what this process may have of it, is full.
fn is_full(error: &Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    let Error::Io { source, .. } = error else { return false };
    matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

impl Drop for Preparation {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.join();
    }
}
