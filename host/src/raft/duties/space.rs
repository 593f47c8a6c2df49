//! The disk reserve: writes are refused while the data folder has less room than the reserve, so
//! that the log's own work, snapshots and a clean stop always find some. Reads go on, and writes
//! resume by themselves once there is room again.
//!
//! Room is bytes, files, and whatever else the disk may refuse to give: where the log cannot
//! prepare its next file, it uses up what it has, and before that is all, writes are refused too.
//!
//! A follower cannot refuse writes of clients that it never sees. It takes the leader's entries
//! until only half of its reserve is left, and then refuses them before openraft has them: to
//! openraft a log that cannot be written is the end of the node. The leader sees a node that lags.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::machine::ModuleLibrary;
use crate::raft::ask::error::Error;
use crate::storage::space::Free;
use crate::storage::{self, Log};

/// Time between two looks at the disk.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Files that are kept in reserve: segments, snapshots and modules in the making.
const FILES_RESERVE: u64 = 64;
/// Of a log that cannot prepare its next file, clients are refused this share of the last one, and
/// peers half of that.
const LOG_RESERVE_DIVISOR: u64 = 2;

/// Room on the disk of the data folder, as of the last look.
#[derive(Debug)]
pub struct Space {
    folder: PathBuf,
    reserve: u64,
    free: AtomicU64,
    files: AtomicU64,
    log: OnceLock<Log>,
}

impl Space {
    /// Looks at the disk of `folder`; `reserve` is in bytes.
    pub fn new(folder: PathBuf, reserve: u64) -> Result<Self, storage::Error> {
        let Free { bytes, files } = storage::space::free(&folder)?;
        let (free, files) = (AtomicU64::new(bytes), AtomicU64::new(files));
        Ok(Self { folder, reserve, free, files, log: OnceLock::new() })
    }

    /// Looks at the room of this log as well.
    #[must_use]
    pub fn of_log(self, log: Log) -> Self {
        Self { log: OnceLock::from(log), ..self }
    }

    /// Looks at the disk again and again, and has the library save what there was no room for;
    /// ends only with the task that runs it.
    pub async fn run(&self, library: Arc<dyn ModuleLibrary>) {
        let mut ticks = tokio::time::interval(LOOK_INTERVAL);
        loop {
            ticks.tick().await;
            let folder = self.folder.clone();
            // A disk that hangs does not answer this either.
            let free = tokio::task::spawn_blocking(move || storage::space::free(&folder)).await;
            match free {
                Ok(Ok(free)) => self.note(free),
                Ok(Err(error)) => tracing::error!(%error, "cannot tell how much room there is"),
                Err(error) => tracing::error!(%error, "looking at the disk panicked"),
            }
            if self.check().is_ok() && library.alarm().is_some() {
                let library = Arc::clone(&library);
                let saved = tokio::task::spawn_blocking(move || library.save_rest()).await;
                if let Err(error) = saved {
                    tracing::error!(%error, "saving modules panicked");
                }
            }
        }
    }

    fn note(&self, Free { bytes, files }: Free) {
        let before = self.is_short();
        self.free.store(bytes, Ordering::Relaxed);
        self.files.store(files, Ordering::Relaxed);
        match (before, self.is_short()) {
            (false, true) => {
                let reserve = self.reserve;
                tracing::error!(bytes, files, reserve, "disk nearly full: writes refused");
            }
            (true, false) => {
                tracing::info!(bytes, files, "room on the disk again: writes accepted")
            }
            _ => {}
        }
    }

    fn is_short(&self) -> bool {
        self.free.load(Ordering::Relaxed) < self.reserve
            || self.files.load(Ordering::Relaxed) < FILES_RESERVE
    }

    /// Refuses a write while the disk is nearly full.
    pub fn check(&self) -> Result<(), Error> {
        let (free, files) = (self.free.load(Ordering::Relaxed), self.files.load(Ordering::Relaxed));
        if free < self.reserve {
            let text = format!("{free} bytes are free, {} are kept in reserve", self.reserve);
            return Err(Error::DiskFull(text));
        }
        if files < FILES_RESERVE {
            let text = format!("room for {files} files, {FILES_RESERVE} are kept in reserve");
            return Err(Error::DiskFull(text));
        }
        match self.log_below(LOG_RESERVE_DIVISOR) {
            Some(reason) => Err(Error::DiskFull(format!("no room for the log to grow: {reason}"))),
            None => Ok(()),
        }
    }

    /// Why the log cannot grow, once less is left of its last file than a share of it.
    fn log_below(&self, divisor: u64) -> Option<String> {
        let short = self.log.get()?.short_of_room()?;
        (short.left_bytes < short.segment_bytes / divisor).then_some(short.reason)
    }

    /// What an operator should look at, from before writes are refused on.
    pub fn alarm(&self) -> Option<String> {
        let refused = self.check().err().map(|error| error.to_string());
        refused.or_else(|| {
            let short = self.log.get()?.short_of_room()?;
            Some(format!(
                "no room to prepare the next file of the log: writes are refused once its last \
                 {} bytes are half used up: {}",
                short.left_bytes, short.reason
            ))
        })
    }

    /// What peers may not fill, in bytes: half of the reserve. The node's own votes, snapshots in
    /// the making and modules (at most 32 MiB) live on it.
    pub fn floor(&self) -> u64 {
        self.reserve / 2
    }

    /// Takes room for so many bytes of a peer, until the next look at the disk says what is
    /// really left. False when it would go below the floor; nothing is taken then.
    #[must_use]
    pub fn take(&self, bytes: u64) -> bool {
        let no_files = self.files.load(Ordering::Relaxed) < FILES_RESERVE / 2;
        if no_files || self.log_below(2 * LOG_RESERVE_DIVISOR).is_some() {
            return false;
        }
        let left = |free: u64| free.checked_sub(bytes).filter(|left| *left >= self.floor());
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(reserve: u64, free: u64, files: u64) -> Space {
        let (free, files) = (AtomicU64::new(free), AtomicU64::new(files));
        Space { folder: PathBuf::from("/"), reserve, free, files, log: OnceLock::new() }
    }

    /// Clients are refused below the reserve and peers below half of it, counting what was taken
    /// since the last look; the next look decides anew.
    #[test]
    fn peers_may_use_half_of_the_reserve() {
        let space = space(100, 130, 1000);
        let note = |bytes| space.note(Free { bytes, files: 1000 });
        assert!(space.check().is_ok());
        assert!(space.take(40));
        let text = "90 bytes are free, 100 are kept in reserve".to_owned();
        assert_eq!(space.check(), Err(Error::DiskFull(text)));
        assert!(!space.take(41), "49 would be left");
        assert!(space.take(40), "what was refused was not taken");
        assert!(!space.take(1) && space.take(0));
        note(60);
        assert!(space.take(10) && !space.take(1));
        note(49);
        assert!(!space.take(0));
        note(100);
        assert!(space.check().is_ok());
    }

    /// Without a reserve, peers are refused what does not fit.
    #[test]
    fn no_reserve_is_still_a_limit() {
        let space = space(0, 5, 1000);
        assert!(!space.take(6) && space.take(5) && !space.take(1));
    }

    /// A disk that has bytes, and no room for files, is full as well.
    #[test]
    fn files_are_kept_in_reserve() {
        let space = space(0, 1000, FILES_RESERVE);
        assert!(space.check().is_ok() && space.take(1));
        space.note(Free { bytes: 1000, files: FILES_RESERVE - 1 });
        let error = space.check().unwrap_err().to_string();
        assert!(error.contains("room for 63 files, 64 are kept in reserve"), "{error}");
        assert!(space.take(1), "peers may go on");
        space.note(Free { bytes: 1000, files: FILES_RESERVE / 2 - 1 });
        assert!(!space.take(1));
    }
}
