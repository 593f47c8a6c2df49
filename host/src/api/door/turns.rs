//! What only few may do at once: some run, some wait, and whoever is beyond is refused.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::Error;
use crate::raft;

/// A bounded queue before a bounded number. Clones share it.
#[derive(Clone)]
pub(in crate::api) struct Turns {
    running: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

/// One of those who may go on, until it is dropped.
pub(in crate::api) struct Turn {
    _running: OwnedSemaphorePermit,
    _place: OwnedSemaphorePermit,
}

impl Turns {
    /// So many may go on at once, and so many more may wait.
    pub(super) fn new(running_max: usize, waiting_max: usize) -> Self {
        let places = Arc::new(Semaphore::new(running_max + waiting_max));
        Self { running: Arc::new(Semaphore::new(running_max)), places }
    }

    /// Waits for a turn until `deadline`.
    pub(super) async fn take(&self, deadline: Instant) -> Result<Turn, Error> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let _place = place.map_err(|_| raft::Error::Overloaded)?;
        let running = Arc::clone(&self.running).acquire_owned();
        let running = tokio::time::timeout_at(deadline.into(), running).await;
        let running = running.map_err(|_| raft::Error::DeadlineBeforeProposal)?;
        let _running = running.map_err(|_| raft::Error::ShuttingDown)?;
        Ok(Turn { _running, _place })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;

    use super::*;

    /// Some run, some wait, the next is refused; whoever ends makes room for who waits.
    #[tokio::test]
    async fn turns_are_bounded() {
        let turns = Turns::new(1, 1);
        let deadline = Instant::now() + Duration::from_secs(60);
        let first = turns.take(deadline).await.ok().unwrap();
        let second = turns.take(deadline);
        tokio::pin!(second);
        assert!(second.as_mut().now_or_never().is_none(), "it waits");
        let third = turns.take(deadline).await.err();
        assert_eq!(third, Some(raft::Error::Overloaded.into()));
        drop(first);
        assert!(second.await.is_ok());
    }
}
