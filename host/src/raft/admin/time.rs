//! What operators ask of the replicated time: that it be what the clocks say (decision 0012).

use std::time::Instant;

use crate::machine::Proposal;
use crate::raft::ask::error::Error;
use crate::raft::ask::replica::Replica;
use crate::raft::clock::TimeSet;
use crate::types::TimeMs;

/// The clock of the leader and that of the operator may differ by so much, in milliseconds.
const CLOCKS_DIFFER_MS_MAX: TimeMs = 5_000;

impl Replica {
    /// Sets the replicated time to the wall clock of this leader, which the clock of the operator
    /// must confirm: a time that is too late cannot be taken back.
    pub async fn set_time(&self, operator_ms: TimeMs, deadline: Instant) -> Result<TimeSet, Error> {
        self.check_leader()?;
        self.shared.space.check()?;
        let refused = |reason: String| Err(Error::Refused(reason));
        let clock = &self.shared.clock;
        let wall_ms = match clock.wall_ms() {
            Ok(wall_ms) => wall_ms,
            Err(error) => return refused(error.to_string()),
        };
        let differ_ms = wall_ms.abs_diff(operator_ms);
        if differ_ms > CLOCKS_DIFFER_MS_MAX {
            return refused(format!(
                "the clock of the leader and the one of the machine that asks differ by {} s: set \
                 right the one that is wrong, or hand leadership to a node whose clock is right",
                differ_ms / 1_000
            ));
        }
        if clock.time_ms().is_none() {
            return refused("this leader does not know the time yet: try again".to_owned());
        }
        let set = clock.set_to_wall().map_err(|error| Error::Refused(error.to_string()))?;
        let time_ms = clock.stamp(self.shared.directory.time_ms()).await;
        self.write(&Proposal::Tick { time_ms }, deadline).await?;
        tracing::warn!(?set, "the time was set by an operator");
        Ok(set)
    }
}
