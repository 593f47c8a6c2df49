//! What happens once a write is synced, or never will be.
//!
//! **Invariant:** every `FlushDone` is called exactly once, in the order of the writes.
//! **Invariant:** the first error stays (a failed sync may have lost pages that a second one would
//! call clean), and every later call fails with it.

use std::collections::VecDeque;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::storage::Error;

/// Called once, with the result of the sync, from the thread of the log's writer: it must not
/// block, and must not call the log.
pub type FlushDone = Box<dyn FnOnce(Result<(), io::Error>) + Send>;

/// How far the writer is, and whether anything failed.
#[derive(Debug, Default)]
pub(super) struct Progress {
    first_error: OnceLock<Error>,
    written_upto: AtomicU64,
    synced_upto: AtomicU64,
    /// Batches that the writer has begun and ended: odd while it is at one.
    batches: AtomicU64,
}

impl Progress {
    /// Everything up to this byte of the log is on disk.
    pub(super) fn new(synced_upto: u64) -> Self {
        Self {
            first_error: OnceLock::new(),
            written_upto: AtomicU64::new(synced_upto),
            synced_upto: AtomicU64::new(synced_upto),
            batches: AtomicU64::new(0),
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

    /// Up to which byte of the log everything was given to the system, and can be read from there.
    pub(super) fn written_upto(&self) -> u64 {
        self.written_upto.load(Ordering::Acquire)
    }

    pub(super) fn set_written_upto(&self, upto: u64) {
        assert!(upto >= self.written_upto(), "what was written stays so: {upto}");
        self.written_upto.store(upto, Ordering::Release);
    }

    /// Up to which byte of the log everything is known to be on disk.
    pub(super) fn synced_upto(&self) -> u64 {
        self.synced_upto.load(Ordering::Acquire)
    }

    /// The writer begins with what has waited, or has ended it.
    pub(super) fn turn(&self) {
        self.batches.fetch_add(1, Ordering::AcqRel);
    }

    /// Which batch the writer is at; nothing while it has nothing to do.
    pub(super) fn at_work(&self) -> Option<u64> {
        Some(self.batches.load(Ordering::Acquire)).filter(|batches| batches % 2 == 1)
    }

    pub(super) fn set_synced_upto(&self, upto: u64) {
        assert!(upto >= self.synced_upto(), "what was synced stays so: {upto}");
        assert!(upto <= self.written_upto(), "what is synced was written: {upto}");
        self.synced_upto.store(upto, Ordering::Release);
    }
}

/// Callbacks that wait for one sync. Those that are dropped report an error.
#[derive(Default)]
pub(super) struct Waiting(VecDeque<FlushDone>);

impl Waiting {
    pub(super) fn extend(&mut self, done: impl IntoIterator<Item = FlushDone>) {
        self.0.extend(done);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Calls all of them.
    pub(super) fn report(mut self, result: &Result<(), Error>) {
        self.call(result);
    }

    fn call(&mut self, result: &Result<(), Error>) {
        // One by one, so that where one panics the others are called while it unwinds.
        while let Some(done) = self.0.pop_front() {
            done(result.clone().map_err(Error::into_io));
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let first = "the log's writer stopped before this was synced".to_owned();
        self.call(&Err(Error::Latched { first }));
    }
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;
    use std::path::Path;
    use std::sync::mpsc;

    use super::*;

    type Called = (usize, Result<(), io::Error>);

    fn waiting(count: usize) -> (Waiting, mpsc::Receiver<Called>) {
        let (sender, receiver) = mpsc::channel();
        let mut waiting = Waiting::default();
        for number in 0..count {
            let sender = sender.clone();
            let done: FlushDone = Box::new(move |result| {
                sender.send((number, result)).expect("the test waits for it");
            });
            waiting.extend([done]);
        }
        (waiting, receiver)
    }

    /// Callbacks that are forgotten report an error all the same.
    #[test]
    fn a_forgotten_callback_reports_an_error() {
        let (waiting, receiver) = waiting(2);
        drop(waiting);
        let (_, result) = receiver.recv().unwrap();
        let error = result.unwrap_err();
        assert!(error.to_string().contains("stopped before this was synced"), "{error}");
        assert!(receiver.recv().unwrap().1.is_err());
    }

    /// Callbacks are called once each, in order.
    #[test]
    fn callbacks_are_called_once() {
        let (waiting, receiver) = waiting(3);
        waiting.report(&Ok(()));
        let called: Vec<_> =
            receiver.iter().map(|(number, result)| (number, result.is_ok())).collect();
        assert_eq!(called, [(0, true), (1, true), (2, true)]);
    }

    /// The others are called where one panics.
    #[test]
    fn a_panic_forgets_no_callback() {
        let (sender, receiver) = mpsc::channel();
        let mut all = Waiting::default();
        let panics: FlushDone = Box::new(|_| panic!("a callback that must not"));
        let after: FlushDone = Box::new(move |result| sender.send(result).expect("it is awaited"));
        all.extend([panics, after]);
        let panicked = std::panic::catch_unwind(AssertUnwindSafe(|| all.report(&Ok(()))));
        assert!(panicked.is_err());
        assert!(receiver.recv().unwrap().is_err());
    }

    /// The writer is at a batch from its begin to its end, and each has a number of its own.
    #[test]
    fn batches_are_told_apart() {
        let progress = Progress::new(0);
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(progress.at_work());
            progress.turn();
        }
        assert_eq!(seen, [None, Some(1), None, Some(3)]);
    }

    /// The first error stays the first.
    #[test]
    fn the_first_error_is_kept() {
        let progress = Progress::new(0);
        progress.check().unwrap();
        for text in ["first", "second"] {
            progress.latch(Error::io(Path::new("log"), io::Error::other(text)));
        }
        let error = progress.check().unwrap_err().to_string();
        assert!(error.contains("first") && !error.contains("second"), "{error}");
    }

    /// Nothing is called synced that was not written, and what was synced or written stays so.
    #[test]
    fn progress_goes_forward_alone() {
        type Step = fn(&Progress);
        let steps: [(Step, &str); 4] = [
            (|progress| progress.set_written_upto(30), ""),
            (|progress| progress.set_synced_upto(21), "what is synced was written: 21"),
            (|progress| progress.set_synced_upto(9), "what was synced stays so: 9"),
            (|progress| progress.set_written_upto(19), "what was written stays so: 19"),
        ];
        for (step, expected) in steps {
            let progress = Progress::new(10);
            progress.set_written_upto(20);
            let panicked = std::panic::catch_unwind(AssertUnwindSafe(|| step(&progress)));
            let text = panicked.err().and_then(|cause| cause.downcast::<String>().ok());
            assert_eq!(text.map(|text| *text).unwrap_or_default(), expected);
        }
    }
}
