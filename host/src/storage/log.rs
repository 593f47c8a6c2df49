//! The log, the vote and the committed log id, in one write-ahead log of our own: segments of zeros
//! that records overwrite (`log/segment.rs`), one writer that groups what waits (`log/writer.rs`),
//! and a recovery that tells a torn end from damage (`log/recovery.rs`). Why not a library:
//! docs/decisions/0010-own-log.md.
//!
//! Writes go to disk in the order of the calls, whatever they write. What one call writes is
//! readable when it returns, and durable when its `FlushDone` says so.
//!
//! **Invariant:** the entries are `(purged, last]` without a gap.
//! **Invariant:** after the first error nothing is written any more until the log is opened again.

mod contents;
mod flush;
mod record;
mod recovery;
mod segment;
mod writer;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread::JoinHandle;

use super::lock::Lock;
use super::{Error, durable};
use crate::config::FileConfig;
use crate::types::{LogId, LogIndex, Vote};
use contents::{Contents, Entry};
pub use flush::FlushDone;
use flush::Progress;
pub(super) use record::FIRST_RECORD_BYTES;
pub use record::{PAYLOAD_BYTES_MAX, Payload};
use record::{Record, Stamp};
use recovery::Recovered;
use segment::Segment;
use writer::{Files, Pending, Shared, Writer};

/// The number of the first segment of a new log.
const FIRST_SEGMENT: u64 = 1;

/// A read goes to disk, and lets writers in, after this many bytes.
const READ_SECTION_BYTES: usize = 256 << 10;

/// How the log is kept.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Size at which a segment is closed, in bytes. The log is freed by whole segments.
    pub segment_bytes: u64,
    /// Payloads kept in memory, in bytes, beside those that are not written yet.
    pub cache_bytes: usize,
}

impl From<&FileConfig> for LogConfig {
    fn from(config: &FileConfig) -> Self {
        Self { segment_bytes: config.log_segment_bytes, cache_bytes: config.log_cache_bytes }
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

/// The log. Clones are handles of one log; the last one that is dropped closes it, and everything
/// that was written goes to disk first.
#[derive(Clone)]
pub struct Log {
    open: Arc<Open>,
}

/// A log that is open.
struct Open {
    front: Mutex<Front>,
    shared: Arc<Shared>,
    folder: Arc<Path>,
    config: LogConfig,
    writer: Option<JoinHandle<()>>,
    /// Goes last: nobody opens the folder before the writer is gone.
    _lock: Lock,
}

/// What callers change, one at a time: what the log holds, and where the next record goes.
struct Front {
    contents: Contents,
    /// The segments in use; the last is written to.
    segments: VecDeque<InUse>,
    /// Where in the last one the next record goes.
    used: u64,
}

/// A segment as the callers know it; its file may not be there yet.
struct InUse {
    /// The byte of the log with which it begins.
    start: u64,
    /// The highest index of an entry that was ever written to it.
    highest: Option<LogIndex>,
}

impl Log {
    /// Opens the log in `folder`, or creates one. What is readable afterwards is synced.
    ///
    /// # Errors
    /// `Locked` when it is open already; `Damaged`, naming file, offset and repair, for anything
    /// but a torn end, which is cut.
    pub fn open(folder: &Path, config: &LogConfig) -> Result<Self, Error> {
        durable::create_folder(folder)?;
        let lock = Lock::take_folder(folder)?;
        durable::remove_temporaries(folder)?;
        let recovered = match recovery::recover(folder).map_err(Error::with_repair)? {
            Some(recovered) => recovered,
            None => create(folder, config)?,
        };
        Self::start(folder.into(), config, lock, recovered)
    }

    fn start(
        folder: Arc<Path>,
        config: &LogConfig,
        lock: Lock,
        recovered: Recovered,
    ) -> Result<Self, Error> {
        let Recovered { contents, segments, used } = recovered;
        let (last, _) = segments.back().expect("a log has a segment");
        let shared = Arc::new(Shared::new(
            segments.iter().map(|(segment, _)| Arc::clone(segment)),
            last.start + used,
        ));
        let current = Arc::clone(last);
        let writer = Writer::new(Arc::clone(&shared), &folder, config.segment_bytes, current);
        let thread = std::thread::Builder::new().name("log-writer".to_owned());
        let writer = thread.spawn(|| writer.run()).map_err(|error| Error::io(&folder, error))?;
        let in_use = segments
            .iter()
            .map(|(segment, highest)| InUse { start: segment.start, highest: *highest });
        let front = Mutex::new(Front { contents, segments: in_use.collect(), used });
        let (config, writer) = (config.clone(), Some(writer));
        Ok(Self { open: Arc::new(Open { front, shared, folder, config, writer, _lock: lock }) })
    }

    /// Where the log stands.
    ///
    /// # Errors
    /// Any call fails once one has failed.
    pub fn state(&self) -> Result<LogState, Error> {
        Ok(self.front()?.contents.state())
    }

    /// Appends entries that follow the last one. They are readable on return; `done` is called
    /// once they are synced or never will be.
    pub fn append(
        &self,
        entries: impl IntoIterator<Item = (LogId, Payload)>,
        done: FlushDone,
    ) -> Result<(), Error> {
        self.write(done, |draft| {
            entries
                .into_iter()
                .try_for_each(|(id, payload)| draft.push(&Record::Entry(id, payload)))
        })
    }

    /// Saves a vote that is not less than the last one; `done` is called once it is synced or
    /// never will be.
    pub fn save_vote(&self, vote: Vote, done: FlushDone) -> Result<(), Error> {
        self.write(done, |draft| draft.push(&Record::Vote(vote)))
    }

    /// Remembers how far the log is committed. It is written with the next write: a restart that
    /// finds an older one applies the rest again as soon as it learns of it.
    pub fn save_committed(&self, committed: Option<LogId>) -> Result<(), Error> {
        let Some(committed) = committed else { return Ok(()) };
        self.change(|draft| {
            let state = draft.front.contents.state();
            let is_news = state.committed < Some(committed) && Some(committed) <= state.last;
            if is_news { draft.push(&Record::Committed(committed)) } else { Ok(()) }
        })
    }

    /// Removes the entries after `last`, or all of them.
    pub fn truncate_after(&self, last: Option<LogId>, done: FlushDone) -> Result<(), Error> {
        self.write(done, |draft| {
            let end = draft.front.contents.state().last.map(|id| id.index);
            let is_after_end = end <= last.map(|id| id.index);
            if is_after_end { Ok(()) } else { draft.push(&Record::Truncated(last)) }
        })
    }

    /// Removes the entries up to and including `upto`, which may be after the last one. Disk
    /// space is freed by whole segments.
    pub fn purge(&self, upto: LogId, done: FlushDone) -> Result<(), Error> {
        self.write(done, |draft| {
            if Some(upto) <= draft.front.contents.state().purged {
                return Ok(());
            }
            draft.push(&Record::Purged(upto))?;
            let unneeded = draft.front.take_unneeded(upto.index);
            draft.pending.unneeded.extend(unneeded);
            Ok(())
        })
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

    /// Which write to disk is under way, by a number of its own; nothing while none is. One that
    /// stays the same for long hangs, or the disk is slow.
    pub fn at_work(&self) -> Option<u64> {
        self.open.shared.progress.at_work()
    }

    /// Waits until all that was written is synced, and leaves a mark that says so: a later start
    /// takes no damage for a torn end. For the end of the process.
    pub fn sync(&self) -> Result<(), Error> {
        self.wait_synced(|_| Ok(()))?;
        self.wait_synced(|draft| draft.push(&Record::State(draft.front.contents.state())))
    }

    /// One short section under the lock; what is not in memory is read after it.
    fn read_section(
        &self,
        range: Range<LogIndex>,
        bytes_max: usize,
        stops_at_disk: bool,
    ) -> Result<ReadStep, Error> {
        let front = self.front()?;
        let found = front.contents.find(range, bytes_max, stops_at_disk);
        let from_disk = found.iter().any(|entry| matches!(entry, Entry::OnDisk { .. }));
        // A segment that is purged meanwhile can be read as long as it is held.
        let files = if from_disk { self.open.shared.files().clone() } else { Files::new() };
        drop(front);
        let entries = read_back(&found, &files).map_err(|error| self.latch(error))?;
        Ok(ReadStep { entries, from_disk })
    }

    /// Makes a change and asks for its sync. `done` is called in any case.
    fn write(
        &self,
        done: FlushDone,
        change: impl FnOnce(&mut Draft<'_>) -> io::Result<()>,
    ) -> Result<(), Error> {
        let mut done = Some(done);
        let written = self.change(|draft| {
            change(draft)?;
            draft.pending.waiting.extend(done.take());
            Ok(())
        });
        if let (Err(error), Some(done)) = (&written, done) {
            done(Err(error.clone().into_io()));
        }
        written
    }

    /// As `write`, and waits for the sync.
    fn wait_synced(
        &self,
        change: impl FnOnce(&mut Draft<'_>) -> io::Result<()>,
    ) -> Result<(), Error> {
        let (sender, receiver) = mpsc::channel();
        let done = move |result| sender.send(result).expect("the receiver waits below");
        self.write(Box::new(done), change)?;
        let result = receiver.recv().expect("a FlushDone is always called");
        result.map_err(|error| Error::io(&self.open.folder, error))
    }

    /// Makes a change. It is written with the next one that somebody waits for.
    fn change(&self, change: impl FnOnce(&mut Draft<'_>) -> io::Result<()>) -> Result<(), Error> {
        let Open { shared, folder, config, .. } = &*self.open;
        let mut front = self.front()?;
        let mut pending = shared.pending();
        if pending.stopped {
            return Err(Error::Latched { first: "its writer has stopped".to_owned() });
        }
        let (progress, segment_bytes) = (&shared.progress, config.segment_bytes);
        let mut draft = Draft { front: &mut front, pending: &mut pending, progress, segment_bytes };
        change(&mut draft).map_err(|error| self.latch(Error::io(folder, error)))?;
        shared.wake(&mut pending);
        drop(pending);
        front.contents.shrink(config.cache_bytes, progress.written_upto());
        Ok(())
    }

    fn latch(&self, error: Error) -> Error {
        self.open.shared.progress.latch(error)
    }

    fn front(&self) -> Result<MutexGuard<'_, Front>, Error> {
        self.open.shared.progress.check()?;
        let panicked = "a thread panicked while it held the log";
        self.open.front.lock().map_err(|_| Error::Latched { first: panicked.to_owned() })
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Log").field(&self.open.folder).finish()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.close();
        if let Some(writer) = self.writer.take() {
            // One that panicked has failed everything that waited.
            writer.join().ok();
        }
    }
}

impl Front {
    /// The segments that hold nothing which is not purged, once everything up to `purged` is.
    fn take_unneeded(&mut self, purged: LogIndex) -> Vec<u64> {
        let mut unneeded = Vec::new();
        while self.segments.len() > 1
            && let Some(first) = self
                .segments
                .pop_front_if(|first| first.highest.is_none_or(|index| index <= purged))
        {
            unneeded.push(first.start);
        }
        unneeded
    }
}

/// A change that is being made.
struct Draft<'a> {
    front: &'a mut Front,
    pending: &'a mut Pending,
    progress: &'a Progress,
    segment_bytes: u64,
}

impl Draft<'_> {
    /// Takes in a record, and hands it to the writer.
    fn push(&mut self, record: &Record) -> io::Result<()> {
        if self.front.used >= self.segment_bytes {
            let last = self.front.segments.back().expect("a log has a segment");
            let start = last.start + self.front.used;
            self.front.segments.push_back(InUse { start, highest: None });
            self.front.used = 0;
            self.encode(&Record::State(self.front.contents.state()))?;
        }
        self.encode(record)
    }

    fn encode(&mut self, record: &Record) -> io::Result<()> {
        let Front { contents, segments, used } = &mut *self.front;
        let segment = segments.back_mut().expect("a log has a segment");
        let run = self.pending.run(segment.start, *used);
        let length = run.bytes.len();
        let position = segment.start + *used;
        let stamp = Stamp { position, synced_upto: self.progress.synced_upto() };
        record.encode(stamp, &mut run.bytes)?;
        if let Err(reason) = contents.apply(record, position) {
            run.bytes.truncate(length);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        *used += as_u64(run.bytes.len() - length);
        if let Record::Entry(id, _) = record {
            segment.highest = segment.highest.max(Some(id.index));
        }
        Ok(())
    }
}

/// Writes the first segment of a new log.
fn create(folder: &Path, config: &LogConfig) -> Result<Recovered, Error> {
    let mut first = Vec::new();
    let stamp = Stamp { position: 0, synced_upto: 0 };
    Record::State(LogState::default()).encode(stamp, &mut first).expect("a state is short");
    let segment = Segment::create(folder, FIRST_SEGMENT, 0, &first, config.segment_bytes)?;
    let used = as_u64(first.len());
    let segments = VecDeque::from([(Arc::new(segment), None)]);
    Ok(Recovered { contents: Contents::default(), segments, used })
}

/// The entries, those on disk by one read for as many as lie in one segment.
fn read_back(found: &[Entry], files: &Files) -> Result<Vec<(LogId, Payload)>, Error> {
    let mut entries = Vec::with_capacity(found.len());
    let mut rest = found;
    while let Some(entry) = rest.first() {
        let position = match entry {
            Entry::InMemory(id, payload) => {
                entries.push((*id, payload.clone()));
                rest = &rest[1..];
                continue;
            }
            Entry::OnDisk { position, .. } => *position,
        };
        let (_, segment) = files.range(..=position).next_back().ok_or_else(|| {
            Error::Refused(format!("byte {position} of the log lies in no segment"))
        })?;
        let end = files.range(position + 1..).next().map_or(u64::MAX, |(start, _)| *start);
        let is_in_it = |entry: &&Entry| match entry {
            Entry::OnDisk { position, .. } => *position < end,
            Entry::InMemory(..) => false,
        };
        let (run, after) = rest.split_at(rest.iter().take_while(is_in_it).count());
        read_run(segment, run, &mut entries)?;
        rest = after;
    }
    Ok(entries)
}

/// Reads entries that lie in one segment.
fn read_run(
    segment: &Segment,
    run: &[Entry],
    entries: &mut Vec<(LogId, Payload)>,
) -> Result<(), Error> {
    let places = || {
        run.iter().filter_map(|entry| match entry {
            Entry::OnDisk { id, position, payload_bytes } => Some((*id, *position, *payload_bytes)),
            Entry::InMemory(..) => None,
        })
    };
    let Some((first, last)) = places().next().zip(places().last()) else { return Ok(()) };
    let bytes = last.1 - first.1 + Record::entry_bytes(last.2);
    let bytes = segment.read(first.1 - segment.start, bytes)?;
    for (id, position, _) in places() {
        let offset = usize::try_from(position - first.1).expect("what was read fits in memory");
        let damaged = |reason| segment.damaged(position - segment.start, reason);
        let read = record::decode(&bytes, offset, position);
        match read.map_err(|unreadable| damaged(unreadable.reason))?.record {
            Record::Entry(found, payload) if found == id => entries.push((id, payload)),
            _ => return Err(damaged(format!("entry {id} is not there any more"))),
        }
    }
    Ok(())
}

fn as_u64(length: usize) -> u64 {
    u64::try_from(length).expect("a length in memory fits")
}
