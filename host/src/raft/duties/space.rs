//! The disk reserve: writes are refused while the data folder has less room than the reserve, so
//! that the log's own work, snapshots and a clean stop always find some. Reads go on, and writes
//! resume by themselves once there is room again.
//!
//! A follower cannot refuse writes of clients that it never sees. It takes the leader's entries
//! until only half of its reserve is left, and then refuses them before openraft has them: to
//! openraft a log that cannot be written is the end of the node. The leader sees a node that lags.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::raft::ask::error::Error;
use crate::storage;

/// Time between two looks at the disk.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Room on the disk of the data folder, as of the last look.
#[derive(Debug)]
pub struct Space {
    folder: PathBuf,
    reserve: u64,
    free: AtomicU64,
}

impl Space {
    /// Looks at the disk of `folder`; `reserve` is in bytes.
    pub fn new(folder: PathBuf, reserve: u64) -> Result<Self, storage::Error> {
        let free = storage::space::free_bytes(&folder)?;
        Ok(Self { folder, reserve, free: AtomicU64::new(free) })
    }

    /// Looks at the disk again and again; ends only with the task that runs it.
    pub async fn run(&self) {
        let mut ticks = tokio::time::interval(LOOK_INTERVAL);
        loop {
            ticks.tick().await;
            match storage::space::free_bytes(&self.folder) {
                Ok(free) => self.note(free),
                Err(error) => tracing::error!(%error, "cannot tell how much room the disk has"),
            }
        }
    }

    fn note(&self, free: u64) {
        let before = self.free.swap(free, Ordering::Relaxed);
        match (before < self.reserve, free < self.reserve) {
            (false, true) => {
                tracing::error!(free, reserve = self.reserve, "disk nearly full: writes refused");
            }
            (true, false) => tracing::info!(free, "room on the disk again: writes accepted"),
            _ => {}
        }
    }

    /// Refuses a write while the disk is nearly full.
    pub fn check(&self) -> Result<(), Error> {
        let free = self.free.load(Ordering::Relaxed);
        if free < self.reserve {
            return Err(Error::DiskFull { free, reserve: self.reserve });
        }
        Ok(())
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
        let left = |free: u64| free.checked_sub(bytes).filter(|left| *left >= self.floor());
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients are refused below the reserve and peers below half of it, counting what was taken
    /// since the last look; the next look decides anew.
    #[test]
    fn peers_may_use_half_of_the_reserve() {
        let free = AtomicU64::new(130);
        let space = Space { folder: PathBuf::from("/"), reserve: 100, free };
        assert!(space.check().is_ok());
        assert!(space.take(40));
        assert_eq!(space.check(), Err(Error::DiskFull { free: 90, reserve: 100 }));
        assert!(!space.take(41), "49 would be left");
        assert!(space.take(40), "what was refused was not taken");
        assert!(!space.take(1) && space.take(0));
        space.note(60);
        assert!(space.take(10) && !space.take(1));
        space.note(49);
        assert!(!space.take(0));
        space.note(100);
        assert!(space.check().is_ok());
    }

    /// Without a reserve, peers are refused what does not fit.
    #[test]
    fn no_reserve_is_still_a_limit() {
        let space = Space { folder: PathBuf::from("/"), reserve: 0, free: AtomicU64::new(5) };
        assert!(!space.take(6) && space.take(5) && !space.take(1));
    }
}
