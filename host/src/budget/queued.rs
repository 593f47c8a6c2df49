//! What waits in a queue, counted.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Commands that wait for their entry: of one account, or of all.
#[derive(Debug, Default)]
pub struct Queued {
    commands: AtomicUsize,
    bytes: AtomicUsize,
}

impl Queued {
    /// Counts one in; how many commands and bytes there are then.
    pub fn add(&self, bytes: usize) -> (usize, usize) {
        let commands = self.commands.fetch_add(1, Ordering::Relaxed) + 1;
        (commands, self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes)
    }

    /// Counts one out.
    pub fn remove(&self, bytes: usize) {
        let commands = self.commands.fetch_sub(1, Ordering::Relaxed);
        assert!(commands > 0, "what is counted out was counted in");
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}
