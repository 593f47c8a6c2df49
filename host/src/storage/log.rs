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
mod draft;
mod flush;
mod head;
mod ledger;
mod preparer;
mod reading;
mod record;
mod recovery;
mod segment;
mod writer;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread::JoinHandle;

use super::blocking::may_block;
use super::lock::Lock;
use super::{Error, durable};
use crate::config::FileConfig;
use crate::types::{Incarnation, LogId, LogIndex, Vote};
use contents::{Contents, Entry};
use draft::Draft;
pub use flush::FlushDone;
use head::HEAD_BYTES;
use ledger::Ledger;
pub use record::{PAYLOAD_BYTES_MAX, Payload};
use record::{Record, Stamp};
use recovery::Recovered;
use segment::Segment;
use writer::{Files, Shared, Writer};

/// The number of the first segment of a new log.
const FIRST_SEGMENT: u64 = 1;

/// A read goes to disk, and lets writers in, after this many bytes.
const READ_SECTION_BYTES: usize = 256 << 10;

/// Where a log lies, and whose it is.
#[derive(Clone, Debug)]
pub struct LogPlace {
    /// The folder of its segments, and of nothing else.
    pub folder: PathBuf,
    /// The file that knows which segments there are; not in that folder.
    pub ledger: PathBuf,
    /// The data folder: a log of another one is refused.
    pub owner: Incarnation,
}

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
    /// The last snapshot of a peer that was taken in; the log may end before it.
    pub announced: Option<LogId>,
}

/// A log whose disk has no room for its next segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShortOfRoom {
    /// What the disk said.
    pub reason: String,
    /// What is left of the segment in use.
    pub left_bytes: u64,
    /// Length with which that was prepared.
    pub segment_bytes: u64,
}

/// What a bounded read gave.
#[derive(Debug)]
pub struct ReadStep {
    /// Entries from the start of the range on, without a gap.
    pub entries: Vec<(LogId, Payload)>,
    /// The entry after them has to be read from disk.
    pub goes_on_disk: bool,
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
    place: Arc<LogPlace>,
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
    /// Length with which the last one was prepared.
    bytes: u64,
    /// What the last one begins with ends here.
    fresh: u64,
}

/// A segment as the callers know it; its file may not be there yet.
struct InUse {
    /// The byte of the log with which it begins.
    start: u64,
    /// The highest index of an entry that was ever written to it.
    highest: Option<LogIndex>,
}

impl Log {
    /// Opens the log of a place, or creates one. What is readable afterwards is synced.
    ///
    /// # Errors
    /// `Locked` when it is open already; `Damaged`, naming file, offset and repair, for anything
    /// but a torn end, which is cut.
    pub fn open(place: &LogPlace, config: &LogConfig) -> Result<Self, Error> {
        durable::create_folder(&place.folder)?;
        let lock = Lock::take_folder(&place.folder)?;
        durable::remove_temporaries(&place.folder)?;
        let (ledger, recovered) = recovery::recover(place).map_err(Error::with_repair)?;
        let (ledger, recovered) = match recovered {
            Some(recovered) => (ledger, recovered),
            None => create(place, config, ledger)?,
        };
        Self::start(Arc::new(place.clone()), config, lock, recovered, ledger)
    }

    fn start(
        place: Arc<LogPlace>,
        config: &LogConfig,
        lock: Lock,
        recovered: Recovered,
        ledger: Ledger,
    ) -> Result<Self, Error> {
        let Recovered { contents, segments, used, prepared, unneeded } = recovered;
        let (last, _) = segments.back().expect("a log has a segment");
        let shared = Arc::new(Shared::new(
            segments.iter().map(|(segment, _)| Arc::clone(segment)),
            prepared,
            ledger,
            last.start + used,
        ));
        let (current, bytes) = (Arc::clone(last), last.bytes);
        shared.set_left(bytes, used);
        let segment_bytes = config.segment_bytes;
        let writer = Writer::new(Arc::clone(&shared), &place, segment_bytes, current, unneeded)?;
        let thread = std::thread::Builder::new().name("log-writer".to_owned());
        let writer =
            thread.spawn(|| writer.run()).map_err(|error| Error::io(&place.folder, error))?;
        let in_use = segments
            .iter()
            .map(|(segment, highest)| InUse { start: segment.start, highest: *highest });
        let segments = in_use.collect();
        let front = Mutex::new(Front { contents, segments, used, bytes, fresh: 0 });
        let (config, writer) = (config.clone(), Some(writer));
        Ok(Self { open: Arc::new(Open { front, shared, place, config, writer, _lock: lock }) })
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

    /// Notes that a snapshot of a peer is about to take the place of the log up to `last`; waits
    /// until that is synced. A start that finds the snapshot then knows why the log ends before it.
    pub fn announce_snapshot(&self, last: LogId) -> Result<(), Error> {
        self.wait_synced(|draft| draft.push(&Record::Announced(last)))
    }

    /// Waits until everything that was written so far is synced.
    pub fn wait_durable(&self) -> Result<(), Error> {
        self.wait_synced(|_| Ok(()))
    }

    /// Whether an end of the log was cut at a start, and the peers have not been asked about it.
    /// It was never acknowledged, unless the disk has lost the very last write since.
    pub fn in_doubt(&self) -> bool {
        self.open.shared.in_doubt.load(Ordering::Acquire)
    }

    /// Notes durably that the peers know of nothing that is missing here.
    pub fn clear_doubt(&self) -> Result<(), Error> {
        may_block();
        let shared = &self.open.shared;
        shared.ledger().set_doubt(false).map_err(|error| self.latch(error))?;
        shared.in_doubt.store(false, Ordering::Release);
        Ok(())
    }

    /// Why the next segment cannot be prepared, while the disk has no room for it, and how many
    /// bytes the log can still take without asking the disk for more.
    pub fn short_of_room(&self) -> Option<ShortOfRoom> {
        let shared = &self.open.shared;
        let reason = shared.no_room()?;
        let left_bytes = shared.left_bytes.load(Ordering::Relaxed);
        let segment_bytes = shared.in_use_bytes.load(Ordering::Relaxed);
        Some(ShortOfRoom { reason, left_bytes, segment_bytes })
    }

    /// Whether a segment is prepared beside the one in use.
    pub fn is_prepared(&self) -> bool {
        self.open.shared.ready() > 0
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
            let section = self.read_section(start..range.end, left.min(READ_SECTION_BYTES))?;
            let Some((last, _)) = section.last() else { break };
            assert!(last.index >= start, "entries come in order");
            start = last.index + 1;
            let read = section.iter().map(|(_, payload)| payload.bytes.len());
            left = left.saturating_sub(read.sum());
            entries.extend(section);
            if left == 0 {
                break;
            }
        }
        Ok(entries)
    }

    /// As `read_limited`, but stops at the first entry that is not in memory: it never reads from
    /// disk.
    pub fn read_cached(&self, range: Range<LogIndex>, bytes_max: usize) -> Result<ReadStep, Error> {
        let front = self.front()?;
        let found = front.contents.find(range.clone(), bytes_max, true);
        let bytes: usize = found.iter().map(Entry::payload_bytes).sum();
        let next = found.last().map_or(range.start, |entry| entry.id().index + 1);
        let goes_on_disk = bytes < bytes_max && front.contents.begins_on_disk(next..range.end);
        drop(front);
        let entries = reading::read_back(&found, &Files::new())?;
        Ok(ReadStep { entries, goes_on_disk })
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
    ) -> Result<Vec<(LogId, Payload)>, Error> {
        let front = self.front()?;
        let found = front.contents.find(range, bytes_max, false);
        let from_disk = found.iter().any(|entry| matches!(entry, Entry::OnDisk { .. }));
        // A segment that is purged meanwhile can be read as long as it is held.
        let files = if from_disk { self.open.shared.files().clone() } else { Files::new() };
        drop(front);
        if from_disk {
            may_block();
        }
        reading::read_back(&found, &files).map_err(|error| self.latch(error))
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
        may_block();
        let (sender, receiver) = mpsc::channel();
        let done = move |result| sender.send(result).expect("the receiver waits below");
        self.write(Box::new(done), change)?;
        let result = receiver.recv().expect("a FlushDone is always called");
        result.map_err(|error| Error::io(&self.open.place.folder, error))
    }

    /// Makes a change. It is written with the next one that somebody waits for.
    fn change(&self, change: impl FnOnce(&mut Draft<'_>) -> io::Result<()>) -> Result<(), Error> {
        let Open { shared, place, config, .. } = &*self.open;
        let mut front = self.front()?;
        let mut pending = shared.pending();
        if pending.stopped {
            return Err(Error::Latched { first: "its writer has stopped".to_owned() });
        }
        let segment_bytes = config.segment_bytes;
        let mut draft = Draft { front: &mut front, pending: &mut pending, shared, segment_bytes };
        change(&mut draft).map_err(|error| self.latch(Error::io(&place.folder, error)))?;
        shared.wake(&mut pending);
        drop(pending);
        front.contents.shrink(config.cache_bytes, shared.progress.written_upto());
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
        f.debug_tuple("Log").field(&self.open.place.folder).finish()
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

/// Writes the first segment of a new log.
fn create(
    place: &LogPlace,
    config: &LogConfig,
    mut ledger: Ledger,
) -> Result<(Ledger, Recovered), Error> {
    let position = as_u64(HEAD_BYTES);
    let mut first = Vec::new();
    let stamp = Stamp { position, synced_upto: 0 };
    Record::State(LogState::default()).encode(stamp, &mut first).expect("a state is short");
    let (number, stop) = (FIRST_SEGMENT, AtomicBool::new(false));
    let segment = Segment::create(place, number, &first, config.segment_bytes, &stop)?;
    ledger.add_file(number)?;
    let recovered = Recovered {
        contents: Contents::default(),
        segments: VecDeque::from([(Arc::new(segment), None)]),
        used: position + as_u64(first.len()),
        prepared: VecDeque::new(),
        unneeded: VecDeque::new(),
    };
    Ok((ledger, recovered))
}

fn as_u64(length: usize) -> u64 {
    u64::try_from(length).expect("a length in memory fits")
}
