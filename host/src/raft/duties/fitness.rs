//! What a node does that must not lead: it stands in no election, and where it leads it hands
//! leadership to a voter that could lead.
//!
//! A node must not lead while it is parked, and while it waits in vain for its own disk or for a
//! guest. The state machine decides what parks, and `stall` sees what is waited for; this task
//! alone reacts. Transfers to such a node are refused where they arrive (`network::handler`).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use openraft::async_runtime::WatchReceiver as _;

use super::stall::{Cause, Stall};
use crate::raft::admin::Successor;
use crate::raft::ask::replica::Replica;
use crate::types::{LogIndex, NodeId};

/// How long one attempt to hand leadership over may take.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two attempts.
const RETRY: Duration = Duration::from_secs(1);
/// A leader whose disk has not finished a write for so long gives up leadership.
const DISK_PATIENCE: Duration = Duration::from_millis(1200);
/// A leader gives up leadership whose guest has not come back for so long from an entry that a
/// majority had applied when this was first told.
const GUEST_PATIENCE: Duration = Duration::from_millis(1600);
/// What is told by then is told for the first time.
const FIRST_TOLD: Duration = Duration::from_millis(1200);
/// Time between two looks at who has come past the entry: this part of how long it has taken.
const LOOK_PART: u32 = 10;
/// But no longer than this.
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Where the majority came past the entry later, it was slow as well: the leader may take so many
/// times as long.
const SLOWER_MAX: u32 = 3;

/// Follows the directory and the stalls for as long as the node runs.
pub struct FitnessTask {
    replica: Replica,
    /// A majority that was seen to have come past the entry that this node waits for.
    ahead: BTreeSet<NodeId>,
    /// How long a guest may take, given when that was seen.
    patience: Duration,
    /// The next look at that comes when the stall has lasted for so long.
    next_look: Duration,
    /// Not before this is handing over tried again.
    not_before: Instant,
}

impl FitnessTask {
    /// A task for this node.
    pub fn new(replica: Replica) -> Self {
        let (ahead, patience) = (BTreeSet::new(), GUEST_PATIENCE);
        let (next_look, not_before) = (Duration::ZERO, Instant::now());
        Self { replica, ahead, patience, next_look, not_before }
    }

    /// Runs until openraft or the apply path is gone.
    pub async fn run(mut self) {
        let replica = self.replica.clone();
        let shared = &replica.shared;
        let mut views = shared.directory.watch();
        let mut stalls = shared.local.stalls().watch();
        let mut metrics = shared.raft.metrics();
        let mut votes = shared.local.votes();
        loop {
            let may_stand = votes.borrow_and_update().may_go_to(shared.local.last());
            let parked = views.borrow_and_update().parked.is_some();
            let stall = *stalls.borrow_and_update();
            shared.raft.runtime_config().elect(!parked && stall.is_none() && may_stand);
            let is_due = Instant::now() >= self.not_before && shared.raft.is_leader();
            match stall {
                _ if !is_due => {}
                _ if parked => self.hand_over("a parked leader", Successor::Any).await,
                Some(stall) => self.give_up(stall).await,
                None => {
                    self.ahead.clear();
                    self.next_look = Duration::ZERO;
                }
            }
            let retry = tokio::time::sleep_until(self.not_before.into());
            let waits = Instant::now() < self.not_before;
            let goes_on = tokio::select! {
                changed = views.changed() => changed.is_ok(),
                changed = stalls.changed() => changed.is_ok(),
                changed = votes.changed() => changed.is_ok(),
                changed = metrics.changed(), if parked && !waits => changed.is_ok(),
                () = retry, if waits => true,
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Gives up leadership once a stall has lasted for too long, if a majority is better off.
    async fn give_up(&mut self, stall: Stall) {
        let (applied, is_late) = match stall.cause {
            Cause::Disk => (None, stall.lasts >= DISK_PATIENCE),
            Cause::Entry(applied) => {
                self.look_ahead(applied, stall.lasts).await;
                (Some(applied), !self.ahead.is_empty() && stall.lasts >= self.patience)
            }
        };
        if !is_late {
            return;
        }
        let mut majority = self.replica.fit_voters(applied).await;
        if applied.is_some() {
            majority.retain(|node| self.ahead.contains(node));
        }
        if self.replica.membership().is_majority(&majority) {
            let who = "a leader that waits for its disk or a guest";
            self.hand_over(who, Successor::OneOf(&majority)).await;
        } else {
            self.not_before = Instant::now() + RETRY;
        }
    }

    /// Notes the first majority that has come past the entry after `applied`, and what follows from
    /// how long that took.
    async fn look_ahead(&mut self, applied: LogIndex, lasts: Duration) {
        if !self.ahead.is_empty() || lasts < self.next_look {
            return;
        }
        self.next_look = next_look(lasts);
        let fit = self.replica.fit_voters(Some(applied)).await;
        if self.replica.membership().is_majority(&fit) {
            self.ahead = fit;
            self.patience = guest_patience(lasts);
        }
    }

    async fn hand_over(&mut self, who: &str, to: Successor<'_>) {
        let deadline = Instant::now() + HANDOVER_TIMEOUT;
        match self.replica.hand_over(to, deadline).await {
            Ok(leader) => tracing::info!(%leader, "{who} handed leadership over"),
            Err(error) => {
                tracing::warn!(%error, "{who} cannot hand leadership over");
                self.not_before = Instant::now() + RETRY;
            }
        }
    }
}

/// How long a guest may take in all, of which a majority was seen to have come past the entry when
/// this node had waited for so long.
fn guest_patience(seen_after: Duration) -> Duration {
    if seen_after <= FIRST_TOLD { GUEST_PATIENCE } else { seen_after * SLOWER_MAX }
}

/// When to look again who has come past the entry. A look costs a question to every voter. What
/// follows from it is a multiple of how long the entry has taken, so it may come later the longer
/// that is.
fn next_look(lasts: Duration) -> Duration {
    lasts + (lasts / LOOK_PART).min(LOOK_PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Voters are asked less and less often, and a majority is seen at most a tenth too late.
    #[test]
    fn voters_are_asked_less_and_less_often() {
        let (tick, mut next, mut looks) = (Duration::from_millis(100), Duration::ZERO, Vec::new());
        for lasts in (11..=600).map(|ticks| tick * ticks) {
            if lasts >= next {
                looks.push(lasts);
                next = next_look(lasts);
            }
        }
        assert!(looks.len() < 80, "{} looks in a minute", looks.len());
        for pair in looks.windows(2) {
            let late = pair[1] - pair[0];
            assert!(late <= (pair[0] / LOOK_PART).min(LOOK_PAUSE_MAX) + tick, "{pair:?}");
        }
    }

    /// Who was past the entry from the first was quick, and is not waited for long; where all were
    /// slow, the leader may be the slowest.
    #[test]
    fn a_slow_majority_excuses_a_slow_leader() {
        let rows = [(1_000, 1_600), (1_200, 1_600), (1_300, 3_900), (10_000, 30_000)];
        for (seen_ms, patience_ms) in rows {
            let patience = guest_patience(Duration::from_millis(seen_ms));
            assert_eq!(patience, Duration::from_millis(patience_ms), "seen after {seen_ms} ms");
        }
    }
}
