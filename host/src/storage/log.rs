//! The log, the vote and the committed log id, in one write-ahead log: raft-log behind our own
//! envelopes (`log/record.rs`), our own recovery (`log/recovery.rs`) and our own report of what is
//! synced (`log/flush.rs`). Why raft-log: docs/decisions/0001-log-store.md.
//!
//! Writes go to disk in the order of the calls, whatever they write. What one call writes is
//! readable when it returns, and durable when its `FlushDone` says so.
//!
//! **Invariant:** the entries are `(purged, last]` without a gap.
//! **Invariant:** after the first error nothing is written any more until the log is opened again.

mod flush;
mod record;
mod recovery;

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};
use std::time::Duration;

use raft_log::api::raft_log_writer::RaftLogWriter as _;
use raft_log::chunked_wal::ChunkedWal;
use raft_log::codeq::Span as _;
use raft_log::{Callback as _, RaftLog};

use super::{Error, durable};
use crate::config::FileConfig;
use crate::types::{LogId, LogIndex, Vote};
pub use flush::FlushDone;
use flush::{Flushed, Progress};
use record::{LogTypes, RecordLogId, RecordPayload, RecordVote, SyncedMark};
pub use record::{PAYLOAD_BYTES_MAX, Payload};
pub(super) use recovery::FIRST_RECORD_BYTES;

/// Replay reads a chunk through a buffer of this size.
const REPLAY_BUFFER_BYTES: usize = 1 << 20;
/// A reader lets writers in after this many bytes.
const READ_SECTION_BYTES: usize = 256 << 10;

/// How the log is kept.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// How long the writer waits for more to share one sync. What is queued already shares it
    /// at any value but zero, which means a sync for each write, however many are queued.
    pub flush_wait: Duration,
    /// Size at which a chunk is closed, in bytes. The log is freed by whole chunks.
    pub chunk_bytes: u64,
    /// Payloads kept in memory beside those of the open chunk, in bytes.
    pub cache_bytes: usize,
}

impl From<&FileConfig> for LogConfig {
    fn from(config: &FileConfig) -> Self {
        Self {
            flush_wait: Duration::from_micros(config.log_flush_wait_us),
            chunk_bytes: config.log_chunk_bytes,
            cache_bytes: config.log_cache_bytes,
        }
    }
}

/// Where the log stands. What is not yet synced counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The last vote.
    pub vote: Option<Vote>,
    /// The last entry that was removed from the front.
    pub purged: Option<LogId>,
    /// The last entry, or `purged` when there is none.
    pub last: Option<LogId>,
    /// As last saved; may be behind what is committed.
    pub committed: Option<LogId>,
}

/// What a bounded read gave.
#[derive(Debug)]
pub struct ReadStep {
    /// Entries from the start of the range on, without a gap.
    pub entries: Vec<(LogId, Payload)>,
    /// The last of them had to be read from disk, and so will those after it.
    pub from_disk: bool,
}

/// The log. Clones are handles of one log.
#[derive(Clone, Debug)]
pub struct Log {
    raft_log: Arc<RwLock<RaftLog<LogTypes>>>,
    progress: Arc<Progress>,
    folder: Arc<Path>,
}

impl Log {
    /// Opens the log in `folder`, or creates one. What is readable afterwards is synced.
    ///
    /// # Errors
    /// `Damaged`, naming file, offset and repair, for anything but a torn end, which is cut.
    pub fn open(folder: &Path, config: &LogConfig) -> Result<Self, Error> {
        Self::open_undamaged(folder, config).map_err(Error::with_repair)
    }

    fn open_undamaged(folder: &Path, config: &LogConfig) -> Result<Self, Error> {
        durable::create_folder(folder)?;
        let config = raft_log_config(folder, config)?;
        let lock = ChunkedWal::<raft_log::RaftWalTypes<LogTypes>>::acquire_lock(&config.wal);
        let lock = lock.map_err(|error| Error::io(folder, error))?;
        recovery::cut_torn_tail(folder)?;
        drop(lock);
        let raft_log = RaftLog::open(Arc::new(config)).map_err(|error| explain(folder, error))?;
        check_front(folder, &raft_log)?;
        let log = Self {
            raft_log: Arc::new(RwLock::new(raft_log)),
            progress: Arc::new(Progress::new(folder)),
            folder: folder.into(),
        };
        // After a crash of the process alone, what was read may be in memory only.
        log.wait_synced(|raft_log| Ok(raft_log.stat().open_chunk.global_end))?;
        Ok(log)
    }

    /// Where the log stands.
    ///
    /// # Errors
    /// Any call fails once one has failed.
    pub fn state(&self) -> Result<LogState, Error> {
        let raft_log = self.reading()?;
        let state = raft_log.log_state();
        Ok(LogState {
            vote: state.vote().map(|record| record.vote),
            purged: state.purged().map(|id| id.0),
            last: state.last().map(|id| id.0),
            committed: state.committed().map(|id| id.0),
        })
    }

    /// Appends entries that follow the last one. They are readable on return; `done` is called
    /// once they are synced or never will be.
    pub fn append(
        &self,
        entries: impl IntoIterator<Item = (LogId, Payload)>,
        done: FlushDone,
    ) -> Result<(), Error> {
        let synced_upto = self.progress.synced_upto();
        let records = entries
            .into_iter()
            .map(|(id, payload)| (RecordLogId(id), RecordPayload { payload, synced_upto }));
        self.write(done, |raft_log| Ok(raft_log.append(records)?.end().0))
    }

    /// Saves a vote that is not less than the last one; `done` is called once it is synced or
    /// never will be.
    pub fn save_vote(&self, vote: Vote, done: FlushDone) -> Result<(), Error> {
        let synced_upto = self.progress.synced_upto();
        let record = RecordVote { vote, synced_upto };
        self.write(done, |raft_log| Ok(raft_log.save_vote(record)?.end().0))
    }

    /// Remembers how far the log is committed. It is written with the next write: a restart that
    /// finds an older one applies the rest again as soon as it learns of it.
    pub fn save_committed(&self, committed: Option<LogId>) -> Result<(), Error> {
        let Some(committed) = committed.map(RecordLogId) else { return Ok(()) };
        let mut raft_log = self.writing()?;
        let state = raft_log.log_state();
        let is_news = state.committed() < Some(&committed) && Some(&committed) <= state.last();
        if is_news {
            raft_log.commit(committed).map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    /// Removes the entries after `last`, or all of them.
    pub fn truncate_after(&self, last: Option<LogId>, done: FlushDone) -> Result<(), Error> {
        let end = last.map_or(0, |id| id.index + 1);
        self.write(done, |raft_log| {
            let is_after_end = raft_log.log_state().last().is_none_or(|id| id.0.index < end);
            if is_after_end { Ok(0) } else { Ok(raft_log.truncate(end)?.end().0) }
        })
    }

    /// Removes the entries up to and including `upto`, which may be after the last one. Disk
    /// space is freed by whole chunks.
    pub fn purge(&self, upto: LogId, done: FlushDone) -> Result<(), Error> {
        self.write(done, |raft_log| Ok(raft_log.purge(RecordLogId(upto))?.end().0))
    }

    /// Entries of the range, as far as the log holds them.
    pub fn read(&self, range: Range<LogIndex>) -> Result<Vec<(LogId, Payload)>, Error> {
        self.read_limited(range, usize::MAX)
    }

    /// Entries from the start of the range, until they are `bytes_max` long; at least one, if the
    /// log holds it. May read from disk.
    pub fn read_limited(
        &self,
        range: Range<LogIndex>,
        bytes_max: usize,
    ) -> Result<Vec<(LogId, Payload)>, Error> {
        let mut entries = Vec::new();
        let mut left = bytes_max;
        let mut start = range.start;
        while start < range.end {
            let section =
                self.read_section(start..range.end, left.min(READ_SECTION_BYTES), false)?;
            let Some((last, _)) = section.entries.last() else { break };
            start = last.index + 1;
            let read = section.entries.iter().map(|(_, payload)| payload.bytes.len());
            left = left.saturating_sub(read.sum());
            entries.extend(section.entries);
            if left == 0 {
                break;
            }
        }
        Ok(entries)
    }

    /// As `read_limited`, but stops after the first entry that is not in memory.
    pub fn read_cached(&self, range: Range<LogIndex>, bytes_max: usize) -> Result<ReadStep, Error> {
        self.read_section(range, bytes_max, true)
    }

    /// Waits until all that was written is synced, and leaves a mark that says so: a later start
    /// takes no damage for a torn end. For the end of the process.
    pub fn sync(&self) -> Result<(), Error> {
        self.wait_synced(|raft_log| Ok(raft_log.stat().open_chunk.global_end))?;
        let mark = SyncedMark(self.progress.synced_upto());
        self.wait_synced(|raft_log| Ok(raft_log.save_user_data(Some(mark))?.end().0))
    }

    /// Bytes that the log takes on disk.
    pub fn bytes_on_disk(&self) -> Result<u64, Error> {
        Ok(self.reading()?.on_disk_size())
    }

    /// One short section under the lock.
    fn read_section(
        &self,
        range: Range<LogIndex>,
        bytes_max: usize,
        stops_at_disk: bool,
    ) -> Result<ReadStep, Error> {
        let raft_log = self.reading()?;
        let mut step = ReadStep { entries: Vec::new(), from_disk: false };
        let mut bytes = 0;
        if range.is_empty() {
            return Ok(step);
        }
        for entry in raft_log.read(range.start, range.end) {
            let (id, record) = entry.map_err(|error| self.failed(error))?;
            bytes += record.payload.bytes.len();
            // A payload in memory is shared with the cache.
            step.from_disk |= record.payload.bytes.is_unique();
            step.entries.push((id.0, record.payload));
            if bytes >= bytes_max || (stops_at_disk && step.from_disk) {
                break;
            }
        }
        Ok(step)
    }

    /// Makes a change, which returns where the log ends, and asks for its sync. `done` is called
    /// in any case.
    fn write(
        &self,
        done: FlushDone,
        change: impl FnOnce(&mut RaftLog<LogTypes>) -> io::Result<u64>,
    ) -> Result<(), Error> {
        let mut flushed = Flushed::new(self.progress.clone(), done);
        let mut raft_log = self.writing()?;
        match change(&mut raft_log) {
            Ok(upto) => flushed.upto = upto,
            Err(error) => {
                let failed = self.failed(error);
                flushed.send(Err(failed.clone().into_io()));
                return Err(failed);
            }
        }
        raft_log.flush(true, Some(flushed)).map_err(|error| {
            // Where the writer has stopped, it knows why.
            self.failed(raft_log.wait_worker_idle().err().unwrap_or(error))
        })
    }

    /// As `write`, and waits for the sync.
    fn wait_synced(
        &self,
        change: impl FnOnce(&mut RaftLog<LogTypes>) -> io::Result<u64>,
    ) -> Result<(), Error> {
        let (sender, receiver) = mpsc::channel();
        let done = move |result| sender.send(result).expect("the receiver waits below");
        self.write(Box::new(done), change)?;
        let result = receiver.recv().expect("a FlushDone is always called");
        result.map_err(|error| Error::io(&self.folder, error))
    }

    fn failed(&self, error: io::Error) -> Error {
        self.progress.latch(Error::io(&self.folder, error))
    }

    fn reading(&self) -> Result<RwLockReadGuard<'_, RaftLog<LogTypes>>, Error> {
        self.progress.check()?;
        self.raft_log.read().map_err(|_| panicked())
    }

    fn writing(&self) -> Result<RwLockWriteGuard<'_, RaftLog<LogTypes>>, Error> {
        self.progress.check()?;
        self.raft_log.write().map_err(|_| panicked())
    }
}

fn raft_log_config(folder: &Path, config: &LogConfig) -> Result<raft_log::Config, Error> {
    let dir = folder.to_str().ok_or_else(|| {
        Error::Refused(format!("{}: the folder's name must be UTF-8", folder.display()))
    })?;
    let mut raft_log = raft_log::Config::new(dir);
    raft_log.log_cache_capacity = Some(config.cache_bytes);
    raft_log.log_cache_max_items = Some(usize::MAX);
    raft_log.wal.read_buffer_size = Some(REPLAY_BUFFER_BYTES);
    raft_log.wal.chunk_max_size = Some(usize::try_from(config.chunk_bytes).unwrap_or(usize::MAX));
    raft_log.wal.flush_batch_wait = Some(config.flush_wait);
    // `recovery` has cut what may be cut.
    raft_log.wal.truncate_incomplete_record = Some(false);
    Ok(raft_log)
}

/// Says which file and where, when raft-log refuses to open.
fn explain(folder: &Path, error: io::Error) -> Error {
    match recovery::find_damage(folder) {
        Ok(Some(damaged)) => damaged,
        Ok(None) if error.kind() == io::ErrorKind::InvalidData => {
            Error::damaged(folder, 0, error.to_string())
        }
        Ok(None) => Error::io(folder, error),
        Err(found) => found,
    }
}

/// Refuses a log whose first chunks are gone although their entries were not purged.
fn check_front(folder: &Path, raft_log: &RaftLog<LogTypes>) -> Result<(), Error> {
    let stat = raft_log.stat();
    let first_chunk = stat.closed_chunks.first().unwrap_or(&stat.open_chunk);
    let state = raft_log.log_state();
    let first = state.purged().map_or(0, |id| id.0.index + 1);
    let is_whole = first_chunk.global_start == 0
        || state.last() <= state.purged()
        || raft_log.read(first, first + 1).next().is_some();
    if is_whole {
        return Ok(());
    }
    Err(Error::damaged(folder, 0, format!("the chunk that holds entry {first} is missing")))
}

fn panicked() -> Error {
    Error::Latched { first: "a thread panicked while it held the log".to_owned() }
}
