//! The files of the log. Each is prepared ahead as zeros, and records overwrite them: a write to
//! bytes that are there needs one write to the disk, and one of a file that grows
//! waits for the journal of the file system too (docs/performance.md).
//!
//! **Invariant:** a file has its name only once its head and all of its zeros are synced.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tempfile::NamedTempFile;

use super::head::{HEAD_BYTES, Head};
use super::{LogPlace, as_u64};
use crate::storage::{Error, durable};

const EXTENSION: &str = "wal";
/// Zeros are written in pieces of this size, each one synced, so that the syncs of the segment in
/// use never wait long behind them.
const PIECE_BYTES: usize = 1 << 20;

/// Where segment `number` lies.
pub(super) fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:020}.{EXTENSION}"))
}

/// True for what is none of ours and no damage: the system puts it there.
fn is_of_the_system(name: &str) -> bool {
    name == "lost+found" || name.starts_with(".nfs")
}

/// The numbers of the segments of a folder, in order. There may be holes.
///
/// # Errors
/// `Damaged` for any other file: one that was renamed would be missed silently.
pub(super) fn list(folder: &Path) -> Result<Vec<u64>, Error> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| Error::io(folder, error))? {
        let entry = entry.map_err(|error| Error::io(folder, error))?;
        if is_of_the_system(&entry.file_name().to_string_lossy()) {
            continue;
        }
        let file = entry.path();
        let number = file.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        let number = number.filter(|number| path(folder, *number) == file);
        let foreign = || Error::damaged(&file, 0, "no file of the log has this name");
        numbers.push(number.ok_or_else(foreign)?);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// A segment that is there.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    /// The byte of the log with which it begins.
    pub(super) start: u64,
    /// Length with which it was prepared.
    pub(super) bytes: u64,
    pub(super) path: PathBuf,
    file: File,
}

impl Segment {
    /// Opens segment `number`, of which it is not yet known where it begins, and reads all of it.
    ///
    /// # Errors
    /// `Damaged` when its head is not the one it was prepared with, or it is shorter.
    pub(super) fn open(place: &LogPlace, number: u64) -> Result<(Self, Bytes), Error> {
        let path = path(&place.folder, number);
        let failed = |error| Error::io(&path, error);
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let mut bytes = vec![0; usize::try_from(length).expect("segments fit in memory")];
        file.read_exact_at(&mut bytes, 0).map_err(failed)?;
        let damaged = |offset, reason: String| Error::damaged(&path, offset, reason);
        let head = Head::decode(&bytes).map_err(|reason| damaged(0, reason.to_owned()))?;
        if head.owner != place.owner {
            let reason = "it was written in another data folder: each node has a log of its own";
            return Err(damaged(0, reason.to_owned()));
        }
        if head.number != number {
            return Err(damaged(
                0,
                format!("it is file number {} under another name", head.number),
            ));
        }
        if length < head.bytes {
            let reason = format!(
                "the file ends here, and had {} bytes from its beginning on: somebody cut it, \
                 with what it held",
                head.bytes
            );
            return Err(damaged(length, reason));
        }
        Ok((Self { number, start: 0, bytes: head.bytes, path, file }, bytes.into()))
    }

    /// Makes a segment visible that holds `records` behind its head, and zeros up to `bytes`.
    /// Once `stop` is set it is given up.
    pub(super) fn create(
        place: &LogPlace,
        number: u64,
        records: &[u8],
        bytes: u64,
        stop: &AtomicBool,
    ) -> Result<Self, Error> {
        let bytes = bytes.max(as_u64(HEAD_BYTES + records.len()));
        let mut first = Head { owner: place.owner, number, bytes }.encode().to_vec();
        first.extend_from_slice(records);
        let temporary = filled(&place.folder, bytes, stop)?;
        let written = temporary.as_file().write_all_at(&first, 0);
        written.map_err(|error| Error::io(temporary.path(), error))?;
        let path = path(&place.folder, number);
        let file = durable::publish(temporary, &path)?;
        let length = file.metadata().map_err(|error| Error::io(&path, error))?.len();
        assert_eq!(length, bytes, "a file is as long as its head says");
        Ok(Self { number, start: 0, bytes, path, file })
    }

    pub(super) fn read(&self, offset: u64, length: u64) -> Result<Bytes, Error> {
        assert!(offset >= as_u64(HEAD_BYTES), "records lie behind the head");
        let mut bytes = vec![0; usize::try_from(length).expect("segments fit in memory")];
        self.file.read_exact_at(&mut bytes, offset).map_err(|error| self.failed(error))?;
        Ok(bytes.into())
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        assert!(offset >= as_u64(HEAD_BYTES), "records lie behind the head");
        self.file.write_all_at(bytes, offset).map_err(|error| self.failed(error))
    }

    pub(super) fn sync(&self) -> Result<(), Error> {
        self.file.sync_data().map_err(|error| self.failed(error))
    }

    /// Overwrites what lies behind `offset` with zeros, durably: nothing of it may come back
    /// behind what is written there next. The file keeps its length.
    pub(super) fn clear(&self, offset: u64) -> Result<(), Error> {
        let length = self.file.metadata().map_err(|error| self.failed(error))?.len();
        assert!(offset <= length, "what is cleared was read");
        let zeros = vec![0; PIECE_BYTES];
        let mut offset = offset;
        while offset < length {
            let piece = piece(&zeros, length - offset);
            self.write(offset, piece)?;
            offset += as_u64(piece.len());
        }
        self.file.sync_all().map_err(|error| self.failed(error))
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
        let piece = piece(&zeros, bytes - length);
        let file = temporary.as_file();
        let written = file.write_all_at(piece, length).and_then(|()| file.sync_data());
        written.map_err(|error| Error::io(temporary.path(), error))?;
        length += as_u64(piece.len());
    }
    Ok(temporary)
}

/// As many of these zeros as are left to write.
fn piece(zeros: &[u8], left: u64) -> &[u8] {
    &zeros[..usize::try_from(left).map_or(zeros.len(), |left| left.min(zeros.len()))]
}
