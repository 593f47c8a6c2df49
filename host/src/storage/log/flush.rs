//! What happens once a write is synced, or never will be.
//!
//! **Invariant:** every `FlushDone` is called exactly once. raft-log forgets the callbacks that
//! are queued behind a failure, so the guard that carries them reports an error when it is dropped.
//! **Invariant:** the first error stays (a failed sync may have lost pages that a second one would
//! call clean), and every later call fails with it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::storage::Error;

/// Called once, with the result of the sync, from the thread of the log's writer: it must not
/// block, and must not call the log.
pub type FlushDone = Box<dyn FnOnce(Result<(), io::Error>) + Send>;

/// What the log and its callbacks share.
#[derive(Debug)]
pub(super) struct Progress {
    folder: PathBuf,
    first_error: OnceLock<Error>,
    synced_upto: AtomicU64,
}

impl Progress {
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            first_error: OnceLock::new(),
            synced_upto: AtomicU64::new(0),
        }
    }

    /// Fails when anything failed before.
    pub(super) fn check(&self) -> Result<(), Error> {
        match self.first_error.get() {
            Some(first) => Err(Error::Latched { first: first.to_string() }),
            None => Ok(()),
        }
    }

    /// Keeps the first error, and gives `error` back.
    pub(super) fn latch(&self, error: Error) -> Error {
        if self.first_error.set(error.clone()).is_ok() {
            tracing::error!(%error, "the log failed and stays closed until restart");
        }
        error
    }

    /// Up to which byte of the log everything is known to be on disk.
    pub(super) fn synced_upto(&self) -> u64 {
        self.synced_upto.load(Ordering::Acquire)
    }

    pub(super) fn set_synced_upto(&self, upto: u64) {
        self.synced_upto.fetch_max(upto, Ordering::AcqRel);
    }
}

/// Carries a `FlushDone` through raft-log.
pub(super) struct Flushed {
    progress: Arc<Progress>,
    done: Option<FlushDone>,
    /// End of what the flush covers, in bytes of the log.
    pub(super) upto: u64,
}

impl Flushed {
    pub(super) fn new(progress: Arc<Progress>, done: FlushDone) -> Self {
        Self { progress, done: Some(done), upto: 0 }
    }

    fn report(&mut self, result: Result<(), io::Error>) {
        let Some(done) = self.done.take() else { return };
        match &result {
            Ok(()) => self.progress.set_synced_upto(self.upto),
            Err(error) => {
                let error = io::Error::new(error.kind(), error.to_string());
                self.progress.latch(Error::io(&self.progress.folder, error));
            }
        }
        done(result);
    }
}

impl raft_log::Callback for Flushed {
    fn send(mut self, result: Result<(), io::Error>) {
        self.report(result);
    }
}

impl Drop for Flushed {
    fn drop(&mut self) {
        self.report(Err(io::Error::other("the log's writer stopped before this was synced")));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use raft_log::Callback as _;

    use super::*;

    fn guard(progress: &Arc<Progress>) -> (Flushed, mpsc::Receiver<Result<(), io::Error>>) {
        let (sender, receiver) = mpsc::channel();
        let done = move |result| sender.send(result).expect("the test waits for it");
        let mut flushed = Flushed::new(progress.clone(), Box::new(done));
        flushed.upto = 100;
        (flushed, receiver)
    }

    /// A callback that raft-log forgets reports an error all the same, and latches it.
    #[test]
    fn a_forgotten_callback_reports_an_error() {
        let progress = Arc::new(Progress::new(Path::new("log")));
        let (flushed, receiver) = guard(&progress);
        drop(flushed);
        let error = receiver.recv().unwrap().unwrap_err();
        assert!(error.to_string().contains("stopped before this was synced"), "{error}");
        assert!(matches!(progress.check(), Err(Error::Latched { .. })));
        assert_eq!(progress.synced_upto(), 0);
    }

    /// A callback is called once, whatever happens to its guard afterwards.
    #[test]
    fn a_callback_is_called_once() {
        let progress = Arc::new(Progress::new(Path::new("log")));
        let (flushed, receiver) = guard(&progress);
        flushed.send(Ok(()));
        receiver.recv().unwrap().unwrap();
        assert!(receiver.recv().is_err(), "the sender is gone with the callback");
        assert_eq!(progress.synced_upto(), 100);
        progress.check().unwrap();
    }

    /// The first error stays the first.
    #[test]
    fn the_first_error_is_kept() {
        let progress = Arc::new(Progress::new(Path::new("log")));
        guard(&progress).0.send(Err(io::Error::other("first")));
        guard(&progress).0.send(Err(io::Error::other("second")));
        let error = progress.check().unwrap_err().to_string();
        assert!(error.contains("first") && !error.contains("second"), "{error}");
    }
}
