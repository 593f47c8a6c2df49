//! Whoever calls the disk waits for it. So nobody may do that on a thread that serves async tasks:
//! all tasks of that thread would wait too. Builds with debug assertions check it, once the process
//! serves ([`forbid_on_async_workers`]). Each test of whole clusters so does.

use std::ops::{Deref, DerefMut};
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

/// What is slow to drop: the last handle of a file without a name, whose bytes the system frees as
/// the handle is closed. Dropped where async tasks may run, it is let go on another thread.
#[derive(Debug)]
pub(super) struct SlowDrop<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> SlowDrop<T> {
    pub(super) fn new(inner: T) -> Self {
        Self(Some(inner))
    }

    pub(super) fn into_inner(mut self) -> T {
        self.0.take().expect("only a drop takes it")
    }
}

impl<T: Send + 'static> Deref for SlowDrop<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("only a drop takes it")
    }
}

impl<T: Send + 'static> DerefMut for SlowDrop<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("only a drop takes it")
    }
}

impl<T: Send + 'static> Drop for SlowDrop<T> {
    fn drop(&mut self) {
        let Some(inner) = self.0.take() else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // A runtime that ends drops it at once.
            runtime.spawn_blocking(move || drop(inner));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is slow to drop is never dropped on a thread that serves tasks, and at once elsewhere.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_slow_to_drop_is_dropped_elsewhere() {
        struct Slow(std::sync::mpsc::Sender<std::thread::ThreadId>);
        impl Drop for Slow {
            fn drop(&mut self) {
                check();
                self.0.send(std::thread::current().id()).unwrap();
            }
        }
        let (sender, dropped) = std::sync::mpsc::channel();
        let slow = || SlowDrop::new(Slow(sender.clone()));
        let first = slow();
        let worker = tokio::spawn(async move {
            drop(first);
            std::thread::current().id()
        });
        let worker = worker.await.unwrap();
        let dropped_on = tokio::task::spawn_blocking(move || (dropped.recv().unwrap(), dropped));
        let (by, dropped) = dropped_on.await.unwrap();
        assert_ne!(by, worker);
        let other = slow();
        let thread = std::thread::spawn(move || {
            drop(other);
            std::thread::current().id()
        });
        assert_eq!(thread.join().unwrap(), dropped.try_recv().unwrap());
    }

    /// A thread that serves tasks is told apart from all others.
    #[tokio::test(flavor = "multi_thread")]
    async fn async_workers_are_told_apart() {
        assert!(tokio::spawn(async { check() }).await.unwrap_err().is_panic());
        tokio::task::spawn_blocking(check).await.unwrap();
        std::thread::spawn(check).join().unwrap();
    }
}
