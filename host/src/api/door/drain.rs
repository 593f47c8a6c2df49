//! How a server is drained: who is under way is let through, and who comes after is refused.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::raft;

/// What is under way, and whether more may begin. Clones share it.
#[derive(Clone, Debug, Default)]
pub(in crate::api) struct Drain {
    begun: CancellationToken,
    under_way: TaskTracker,
}

impl Drain {
    /// Refuses what is new from now on.
    pub(in crate::api) fn begin(&self) {
        self.under_way.close();
        self.begun.cancel();
    }

    /// Once it has begun, completes when what was under way is through.
    pub(in crate::api) async fn drained(&self) {
        self.under_way.wait().await;
    }

    /// One more thing under way, until it is dropped.
    pub(in crate::api) fn enter(&self) -> Result<TaskTrackerToken, raft::Error> {
        // Counted before it is looked at: nothing slips in between. A look takes no lock: there is
        // one for each command.
        let token = self.under_way.token();
        if self.is_begun() { Err(raft::Error::ShuttingDown) } else { Ok(token) }
    }

    /// Says when it has begun.
    pub(in crate::api) fn token(&self) -> CancellationToken {
        self.begun.clone()
    }

    /// True once what is new is refused.
    pub(in crate::api) fn is_begun(&self) -> bool {
        self.under_way.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    /// After it has begun nothing enters, and it completes when the last that entered has left.
    #[tokio::test]
    async fn a_drain_waits_for_what_entered() {
        let drain = Drain::default();
        let first = drain.enter().expect("it has not begun");
        drain.begin();
        assert!(drain.token().is_cancelled() && drain.is_begun() && drain.enter().is_err());
        assert!(drain.drained().now_or_never().is_none());
        drop(first);
        drain.drained().await;
    }
}
