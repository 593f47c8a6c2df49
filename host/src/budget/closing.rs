//! A word that is said once, looked at often, and waited for now and then.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Whether an account is closed. That is looked at far more often than it is waited for, and a look
/// at a token alone takes a lock.
#[derive(Debug, Default)]
pub(super) struct Closing {
    said: AtomicBool,
    token: CancellationToken,
}

impl Closing {
    pub(super) fn say(&self) {
        self.said.store(true, Ordering::Relaxed);
        self.token.cancel();
    }

    pub(super) fn is_said(&self) -> bool {
        self.said.load(Ordering::Relaxed)
    }

    pub(super) fn wait(&self) -> WaitForCancellationFutureOwned {
        self.token.clone().cancelled_owned()
    }
}
