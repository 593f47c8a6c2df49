//! The one thread that writes to the log's files: what waits is written together, synced once, and
//! reported. What comes meanwhile is the next to be written together.
//!
//! **Invariant:** a segment is written to only after everything in the one before it is synced, and
//! once the ledger knows it.
//! **Invariant:** a segment is removed only after the record that says that its entries are purged
//! is synced, the oldest first; where one cannot be removed, those after it stay too.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::flush::{Progress, Waiting};
use super::ledger::Ledger;
use super::preparer::Preparation;
use super::segment::Segment;
use super::{LogPlace, as_u64};
use crate::storage::Error;

/// What nobody waits for (how far the log is committed) goes to disk alone once nothing else has
/// been written for so long. It also attests what was written last: a later start does not take
/// its loss for a torn end.
const IDLE_WRITE: Duration = Duration::from_millis(50);

/// The segments that are there, by the byte of the log with which they begin.
pub(super) type Files = BTreeMap<u64, Arc<Segment>>;

/// Bytes for one segment.
#[derive(Debug)]
pub(super) struct Run {
    /// The byte of the log with which the segment begins.
    pub(super) start: u64,
    /// Where in it they go.
    pub(super) offset: u64,
    pub(super) bytes: Vec<u8>,
}

impl Run {
    fn end(&self) -> u64 {
        self.start + self.offset + as_u64(self.bytes.len())
    }
}

/// What waits to be written.
#[derive(Default)]
pub(super) struct Pending {
    pub(super) runs: Vec<Run>,
    pub(super) waiting: Waiting,
    /// Where segments begin that can go once it is.
    pub(super) unneeded: Vec<u64>,
    /// No more will come.
    pub(super) closing: bool,
    /// The writer has nothing to do, or is gone.
    pub(super) idle: bool,
    /// The writer is gone: nothing is written any more.
    pub(super) stopped: bool,
}

impl Pending {
    /// Where bytes go that follow what is there, at `offset` of the segment that begins with byte
    /// `start` of the log.
    pub(super) fn run(&mut self, start: u64, offset: u64) -> &mut Run {
        if self.runs.last().is_none_or(|run| run.start != start) {
            self.runs.push(Run { start, offset, bytes: Vec::new() });
        }
        self.runs.last_mut().expect("one was pushed")
    }
}

/// What the writer shares with the log.
pub(super) struct Shared {
    pub(super) progress: Progress,
    pending: Mutex<Pending>,
    news: Condvar,
    files: Mutex<Files>,
    ledger: Mutex<Ledger>,
    /// Whether the ledger says that the end of the log is in doubt. Its lock is held while the disk
    /// is written to, and async tasks ask.
    pub(super) in_doubt: AtomicBool,
    /// Segments that are prepared, the next one first.
    prepared: Mutex<VecDeque<Segment>>,
    /// How many of them no caller goes on in yet.
    ready: AtomicUsize,
    /// What is left of the segment that callers go on in.
    pub(super) left_bytes: AtomicU64,
    /// Length with which that was prepared.
    pub(super) in_use_bytes: AtomicU64,
    /// Why the next one cannot be prepared, while the disk has no room for it.
    no_room: Mutex<Option<String>>,
}

/// The writer's own.
pub(super) struct Writer {
    shared: Arc<Shared>,
    place: Arc<LogPlace>,
    /// Length to which segments are prepared.
    segment_bytes: u64,
    /// The one that is written to.
    current: Arc<Segment>,
    /// The one after it, until it is prepared.
    next: Option<Preparation>,
    /// Files that nothing needs any more, the oldest first.
    unneeded: VecDeque<PathBuf>,
}

impl Writer {
    /// Writes to `current`, and to those that follow it; removes what is not needed.
    pub(super) fn new(
        shared: Arc<Shared>,
        place: &Arc<LogPlace>,
        segment_bytes: u64,
        current: Arc<Segment>,
        unneeded: VecDeque<PathBuf>,
    ) -> Result<Self, Error> {
        let place = Arc::clone(place);
        let mut writer = Self { shared, place, segment_bytes, current, next: None, unneeded };
        writer.remove(&[]);
        writer.prepare_next()?;
        Ok(writer)
    }

    /// Runs until the log is closed and everything is written, or until the first error.
    pub(super) fn run(mut self) {
        // However this ends, nobody waits for ever.
        let _stopped = Stopped(Arc::clone(&self.shared));
        while let Some(Pending { runs, waiting, unneeded, .. }) = self.shared.take() {
            self.shared.progress.turn();
            let result = self.write(&runs);
            if let Err(error) = &result {
                self.shared.progress.latch(error.clone());
            }
            waiting.report(&result);
            if result.is_err() {
                return;
            }
            self.remove(&unneeded);
            self.shared.progress.turn();
        }
    }

    fn write(&mut self, runs: &[Run]) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        for run in runs {
            assert!(
                run.start + run.offset == shared.progress.written_upto()
                    || run.start != self.current.start,
                "what is written follows what was written"
            );
            if run.start != self.current.start {
                self.current.sync()?;
                self.go_on_at(run.start)?;
            }
            self.current.write(run.offset, &run.bytes)?;
            shared.progress.set_written_upto(run.end());
        }
        self.current.sync()?;
        shared.progress.set_synced_upto(shared.progress.written_upto());
        Ok(())
    }

    /// Goes on in the next segment, which begins with byte `start` of the log.
    fn go_on_at(&mut self, start: u64) -> Result<(), Error> {
        let position = self.shared.progress.written_upto();
        assert_eq!(start, position, "a segment begins where the one before it ended");
        let next = self.shared.prepared().pop_front();
        let mut next = next.expect("callers go on only in a segment that is prepared");
        assert_eq!(next.number, self.current.number + 1, "segments follow one another");
        assert!(self.shared.ledger().newest() >= next.number, "the ledger knows it");
        next.start = start;
        self.current = Arc::new(next);
        self.shared.files().insert(start, Arc::clone(&self.current));
        // Not before: the files never have a gap.
        self.prepare_next()
    }

    /// Begins to prepare the segment after the newest one, unless it is there.
    fn prepare_next(&mut self) -> Result<(), Error> {
        self.next = None;
        if self.shared.prepared().is_empty() {
            let number = self.current.number + 1;
            let (shared, bytes) = (&self.shared, self.segment_bytes);
            self.next = Some(Preparation::begin(shared, &self.place, number, bytes)?);
        }
        Ok(())
    }

    /// Removes segments, the oldest first, up to the first that cannot be removed: a log must not
    /// have a hole. What stays is tried again with the next ones, and at the next start.
    fn remove(&mut self, unneeded: &[u64]) {
        let in_use = self.current.start;
        assert!(unneeded.iter().all(|start| *start < in_use), "what is written to stays");
        let files = unneeded.iter().filter_map(|start| self.shared.files().remove(start));
        self.unneeded.extend(files.map(|segment| segment.path.clone()));
        while let Some(path) = self.unneeded.front() {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    let file = path.display();
                    tracing::warn!(%file, %error, "cannot remove a segment: later again");
                    return;
                }
                _ => self.unneeded.pop_front(),
            };
        }
    }
}

impl Shared {
    /// For a log of these segments, all of which is on disk up to byte `synced_upto`.
    pub(super) fn new(
        segments: impl Iterator<Item = Arc<Segment>>,
        prepared: VecDeque<Segment>,
        ledger: Ledger,
        synced_upto: u64,
    ) -> Self {
        Self {
            progress: Progress::new(synced_upto),
            pending: Mutex::default(),
            news: Condvar::new(),
            files: Mutex::new(segments.map(|segment| (segment.start, segment)).collect()),
            in_doubt: AtomicBool::new(ledger.in_doubt()),
            ledger: Mutex::new(ledger),
            ready: AtomicUsize::new(prepared.len()),
            prepared: Mutex::new(prepared),
            left_bytes: AtomicU64::new(0),
            in_use_bytes: AtomicU64::new(0),
            no_room: Mutex::default(),
        }
    }

    /// A panic of another thread leaves nothing half done in here.
    pub(super) fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn prepared(&self) -> MutexGuard<'_, VecDeque<Segment>> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn no_room_lock(&self) -> MutexGuard<'_, Option<String>> {
        self.no_room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A segment is prepared, and in the ledger.
    pub(super) fn add_prepared(&self, segment: Segment) {
        let number = segment.number;
        assert!(self.ledger().newest() >= number, "the ledger knows file {number}");
        assert!(!self.files().values().any(|used| used.number >= number), "{number} is new");
        self.prepared().push_back(segment);
        self.ready.fetch_add(1, Ordering::Release);
        if self.no_room_lock().take().is_some() {
            tracing::info!("there is room for the log again");
        }
    }

    /// Callers go on in a segment that was prepared with `bytes`, of which so many are used.
    pub(super) fn set_left(&self, bytes: u64, used: u64) {
        self.in_use_bytes.store(bytes, Ordering::Relaxed);
        self.left_bytes.store(bytes.saturating_sub(used), Ordering::Relaxed);
    }

    /// Takes a prepared segment to go on in; false when there is none.
    pub(super) fn take_ready(&self) -> bool {
        let less_one = |ready: usize| ready.checked_sub(1);
        self.ready.fetch_update(Ordering::Acquire, Ordering::Relaxed, less_one).is_ok()
    }

    /// How many segments are prepared that nobody goes on in yet.
    pub(super) fn ready(&self) -> usize {
        self.ready.load(Ordering::Acquire)
    }

    /// The disk has no room for the next segment.
    pub(super) fn set_no_room(&self, error: &Error) {
        let before = self.no_room_lock().replace(error.to_string());
        if before.is_none() {
            tracing::error!(%error, "no room to prepare the next file of the log");
        }
    }

    /// Why the next segment cannot be prepared, while the disk has no room for it.
    pub(super) fn no_room(&self) -> Option<String> {
        self.no_room_lock().clone()
    }

    /// Wakes the writer if there is something to do for it.
    pub(super) fn wake(&self, pending: &mut Pending) {
        if pending.idle && !pending.waiting.is_empty() {
            pending.idle = false;
            self.news.notify_one();
        }
    }

    /// Lets the writer end once everything is written.
    pub(super) fn close(&self) {
        self.pending().closing = true;
        self.news.notify_one();
    }

    /// Waits for something to write; `None` once the log is closed and nothing is left.
    fn take(&self) -> Option<Pending> {
        let mut pending = self.pending();
        // Nobody wakes the writer for what nobody waits for: it looks by itself.
        while pending.waiting.is_empty() && !pending.closing {
            pending.idle = true;
            let waited = self.news.wait_timeout_while(pending, IDLE_WRITE, |pending| {
                pending.waiting.is_empty() && !pending.closing
            });
            pending = waited.unwrap_or_else(PoisonError::into_inner).0;
            if !pending.runs.is_empty() {
                break;
            }
        }
        pending.idle = false;
        if pending.waiting.is_empty() && pending.runs.is_empty() {
            return None;
        }
        let closing = pending.closing;
        Some(std::mem::replace(&mut *pending, Pending { closing, ..Pending::default() }))
    }
}

/// Marks the writer as gone when dropped, and fails what still waits.
struct Stopped(Arc<Shared>);

impl Drop for Stopped {
    fn drop(&mut self) {
        let gone = Pending { stopped: true, ..Pending::default() };
        let mut pending = self.0.pending();
        let left = std::mem::replace(&mut *pending, gone);
        drop(pending);
        drop(left);
    }
}
