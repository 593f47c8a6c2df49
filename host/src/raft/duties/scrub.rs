//! Checks the snapshots on this disk again and again, slowly: one that rots is noticed before it is
//! needed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::raft::store::snapshots::SharedSnapshots;

/// Bytes that are read in a second, at most.
const BYTES_PER_SECOND: u64 = 16 << 20;

/// Sets its flag when it is dropped: a check on a thread ends with the task that waits for it.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Checks all snapshots, then waits for `interval`, for as long as the node runs.
pub async fn run(snapshots: SharedSnapshots, interval: Duration) {
    let stop = StopOnDrop(Arc::default());
    loop {
        for snapshot in snapshots.dir().list() {
            let (file, stop) = (snapshot.clone(), Arc::clone(&stop.0));
            let check = move || file.check_on_disk(BYTES_PER_SECOND, &stop);
            match tokio::task::spawn_blocking(check).await {
                Ok(Ok(())) => {}
                // One that is no longer wanted is removed, and listed no more.
                Ok(Err(error)) if error.is_not_found() => {
                    if snapshots.dir().find(snapshot.id()).is_some() {
                        let noted = tokio::task::spawn_blocking(move || snapshot.note_gone());
                        if let Err(error) = noted.await {
                            tracing::error!(%error, "noting a snapshot that is gone panicked");
                        }
                    }
                }
                Ok(Err(error)) => tracing::error!(%error, "a snapshot cannot be checked"),
                Err(error) => tracing::error!(%error, "checking a snapshot panicked"),
            }
        }
        tokio::time::sleep(interval).await;
    }
}
