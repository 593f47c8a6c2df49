//! Whoever calls the disk waits for it. So nobody may do that on a thread that serves async tasks:
//! all tasks of that thread would wait too. Builds with debug assertions check it, once the process
//! serves ([`forbid_on_async_workers`]). Each test of whole clusters so does.

use std::sync::atomic::{AtomicBool, Ordering};

static IS_FORBIDDEN: AtomicBool = AtomicBool::new(false);

/// From here on, calls of the disk on an async worker end in a panic, in builds with debug
/// assertions. Tests of single parts call the disk from wherever they are, and do not ask for this.
pub fn forbid_on_async_workers() {
    IS_FORBIDDEN.store(true, Ordering::Relaxed);
}

/// To be called where the calling thread may wait for the disk.
#[track_caller]
pub(super) fn may_block() {
    if cfg!(debug_assertions) && IS_FORBIDDEN.load(Ordering::Relaxed) {
        check();
    }
}

/// Panics on a thread that serves async tasks.
fn check() {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        // Such a thread may not do this, and one that may block may.
        runtime.block_on(std::future::ready(()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread that serves tasks is told apart from all others.
    #[tokio::test(flavor = "multi_thread")]
    async fn async_workers_are_told_apart() {
        assert!(tokio::spawn(async { check() }).await.unwrap_err().is_panic());
        tokio::task::spawn_blocking(check).await.unwrap();
        std::thread::spawn(check).join().unwrap();
    }
}
