//! What is needed for a snapshot alone, and cannot be had now: it is tried again for as long as
//! whoever makes the snapshot wants.

use crate::machine::HostFailure;

/// Asked where something that is needed for a snapshot alone cannot be had, with the reason: it
/// waits, and says whether to try again.
pub type Retry = Box<dyn FnMut(&str) -> bool + Send>;

/// Why a state was not sent to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsent {
    /// What is needed for a snapshot alone cannot be had: a module's file, a fork, a thread.
    #[error("{0}")]
    Lacks(String),
    /// The host failed.
    #[error(transparent)]
    Host(#[from] HostFailure),
}

/// What is needed for a snapshot, once it can be had.
pub(super) fn had<T>(retry: &mut Retry, get: impl Fn() -> Result<T, Unsent>) -> Result<T, Unsent> {
    loop {
        match get() {
            Err(Unsent::Lacks(reason)) if retry(&reason) => {}
            got => return got,
        }
    }
}
