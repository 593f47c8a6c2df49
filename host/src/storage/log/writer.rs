//! The one thread that writes to the log's files: what waits is written together, synced once, and
//! reported. What comes meanwhile is the next to be written together.
//!
//! **Invariant:** a segment is written to only after everything in the one before it is synced.
//! **Invariant:** a segment is removed only after the record that says that its entries are purged
//! is synced, the oldest first.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::as_u64;
use super::flush::{Progress, Waiting};
use super::segment::{Preparation, Segment};
use crate::storage::Error;

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
}

/// The writer's own.
pub(super) struct Writer {
    shared: Arc<Shared>,
    folder: Arc<Path>,
    /// Length to which segments are prepared.
    segment_bytes: u64,
    /// The one that is written to.
    current: Arc<Segment>,
    /// The one after it; `None` for a moment.
    next: Option<Preparation>,
}

impl Writer {
    /// Writes to `current`, and to those that follow it.
    pub(super) fn new(
        shared: Arc<Shared>,
        folder: &Arc<Path>,
        segment_bytes: u64,
        current: Arc<Segment>,
    ) -> Self {
        let next = Some(Preparation::begin(folder, current.number + 1, segment_bytes));
        Self { shared, folder: Arc::clone(folder), segment_bytes, current, next }
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
        let next = self.next.take().expect("one is prepared as long as nothing has failed");
        self.current = Arc::new(next.finish(start)?);
        self.shared.files().insert(start, Arc::clone(&self.current));
        // Not before: the files never have a gap.
        self.next =
            Some(Preparation::begin(&self.folder, self.current.number + 1, self.segment_bytes));
        Ok(())
    }

    /// Removes segments. What stays behind here takes room, and goes with a purge after a restart.
    fn remove(&self, unneeded: &[u64]) {
        for start in unneeded {
            let Some(segment) = self.shared.files().remove(start) else { continue };
            if let Err(error) = std::fs::remove_file(&segment.path) {
                let file = segment.path.display();
                tracing::warn!(%file, %error, "cannot remove a segment of the log");
            }
        }
    }
}

impl Shared {
    /// For a log of these segments, all of which is on disk up to byte `synced_upto`.
    pub(super) fn new(segments: impl Iterator<Item = Arc<Segment>>, synced_upto: u64) -> Self {
        Self {
            progress: Progress::new(synced_upto),
            pending: Mutex::default(),
            news: Condvar::new(),
            files: Mutex::new(segments.map(|segment| (segment.start, segment)).collect()),
        }
    }

    /// A panic of another thread leaves nothing half done in here.
    pub(super) fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
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
        while pending.waiting.is_empty() && !pending.closing {
            pending.idle = true;
            pending = self.news.wait(pending).unwrap_or_else(PoisonError::into_inner);
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
