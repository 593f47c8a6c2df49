//! The disk reserve: writes are refused while the data folder has less room than the reserve, so
//! that the log's own work, snapshots and a clean stop always find some. Reads go on, and writes
//! resume by themselves once there is room again.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::error::Error;
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
}
