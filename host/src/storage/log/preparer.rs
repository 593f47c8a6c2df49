//! Prepares the segment after the one in use, on a thread of its own: neither callers nor the
//! writer wait for it.
//!
//! Where the disk has no room, or no file can be opened, it tries again until that has passed.
//! Meanwhile the log says so ([`Log::short_of_room`](super::Log::short_of_room)), and the segment
//! in use goes on growing.
//! Anything else that the disk refuses closes the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::LogPlace;
use super::segment::Segment;
use super::writer::Shared;
use crate::storage::Error;

/// Time between two tries to prepare a segment on a disk without room, or without a descriptor.
const RETRY: Duration = Duration::from_millis(250);

/// A segment that is being prepared; dropped, it is given up.
#[derive(Debug)]
pub(super) struct Preparation {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Preparation {
    /// Begins to prepare segment `number` with a length of `bytes`.
    pub(super) fn begin(
        shared: &Arc<Shared>,
        place: &Arc<LogPlace>,
        number: u64,
        bytes: u64,
    ) -> Result<Self, Error> {
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, owned, stops) = (Arc::clone(shared), Arc::clone(place), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("log-preparer".to_owned());
        let thread = thread.spawn(move || prepare(&shared, &owned, number, bytes, &stops));
        let thread = thread.map_err(|error| Error::io(&place.folder, error))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Preparation {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // One that panicked has nothing that anybody waits for.
            thread.join().ok();
        }
    }
}

fn prepare(shared: &Shared, place: &LogPlace, number: u64, bytes: u64, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let prepared = Segment::create(place, number, &[], bytes, stop)
            .and_then(|segment| shared.ledger().add_file(number).map(|()| segment));
        match prepared {
            Ok(segment) => return shared.add_prepared(segment),
            Err(Error::Refused(_)) => return,
            Err(error) if error.may_pass() => {
                shared.set_no_room(&error);
                std::thread::park_timeout(RETRY);
            }
            Err(error) => {
                shared.progress.latch(error);
                return;
            }
        }
    }
}
