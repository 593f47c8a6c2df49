//! Notices what this node itself waits for in vain: a disk that does not finish a write of the
//! log, or a guest that does not come back from an entry.
//!
//! It only looks and tells. `FitnessTask` reacts, `status` shows it, and peers hear of it when they
//! ask whether this node could lead.
//!
//! Time counts only as far as this task itself got to run: a process that was stopped for an hour
//! has no disk that hung for an hour.

use std::fmt;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use crate::raft::ask::replica::Replica;
use crate::raft::type_config::RaftLogId;
use crate::storage::Log;
use crate::types::LogIndex;

/// How often this task looks.
const TICK: Duration = Duration::from_millis(100);
/// Whatever takes longer than this is told.
const TOLD_AFTER: Duration = Duration::from_secs(1);

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The disk has not finished a write of the log.
    Disk,
    /// The entry after this one has been committed and is not applied.
    Entry(LogIndex),
}

/// Something that has taken too long, and is not over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    /// What is waited for.
    pub cause: Cause,
    /// For how long.
    pub lasts: Duration,
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.lasts.as_secs();
        match self.cause {
            Cause::Disk => {
                write!(f, "the disk has not finished a write of the log for {seconds} s")
            }
            Cause::Entry(applied) => write!(
                f,
                "the machines have not come back from log entry {} for {seconds} s",
                applied + 1
            ),
        }
    }
}

/// What this node waits for in vain, for those who want to know.
#[derive(Debug)]
pub struct Stalls(watch::Sender<Option<Stall>>);

impl Default for Stalls {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Stalls {
    /// The one that lasts.
    pub fn current(&self) -> Option<Stall> {
        *self.0.borrow()
    }

    /// Tells of each change; while one lasts, of each look at it.
    pub fn watch(&self) -> watch::Receiver<Option<Stall>> {
        self.0.subscribe()
    }

    fn tell(&self, stall: Option<Stall>) {
        self.0.send_if_modified(|told| {
            if let (None, Some(stall)) = (&told, stall) {
                tracing::warn!("{stall}");
            }
            let changed = *told != stall;
            *told = stall;
            changed
        });
    }
}

/// For how long the same thing has been under way.
#[derive(Debug)]
struct Clock<P> {
    at: Option<P>,
    lasts: Duration,
}

impl<P: PartialEq> Clock<P> {
    fn new() -> Self {
        Self { at: None, lasts: Duration::ZERO }
    }

    /// `at` is under way, `passed` after the last look.
    fn look(&mut self, at: Option<P>, passed: Duration) -> Duration {
        if at.is_some() && at == self.at {
            self.lasts += passed.min(2 * TICK);
        } else {
            *self = Self { at, lasts: Duration::ZERO };
        }
        self.lasts
    }
}

/// Looks for as long as openraft runs.
pub async fn watch(replica: Replica, log: Log) {
    let (raft, stalls) = (&replica.shared.raft, replica.shared.local.stalls());
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut disk, mut entry) = (Clock::new(), Clock::new());
    let mut last = Instant::now();
    loop {
        interval.tick().await;
        let passed = last.elapsed();
        last = Instant::now();
        let metrics = raft.metrics();
        let pending = {
            let metrics = metrics.borrow_watched();
            if metrics.running_state.is_err() {
                return;
            }
            let index = |id: &Option<RaftLogId>| id.as_ref().map_or(0, RaftLogId::index);
            let applied = index(&metrics.last_applied);
            (index(&metrics.local_committed) > applied).then_some(applied)
        };
        let of = |cause, lasts| (lasts > TOLD_AFTER).then_some(Stall { cause, lasts });
        let disk = of(Cause::Disk, disk.look(log.at_work(), passed));
        let entry = of(Cause::Entry(pending.unwrap_or(0)), entry.look(pending, passed));
        stalls.tell(disk.or(entry));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same thing adds up; another, or none, begins anew; and what passed while this task did
    /// not get to run counts little.
    #[test]
    fn only_the_same_thing_adds_up() {
        let mut clock = Clock::new();
        let rows = [
            (Some(1), 100, 0),
            (Some(1), 100, 100),
            (Some(1), 3_600_000, 300),
            (Some(2), 100, 0),
            (Some(2), 150, 150),
            (None, 100, 0),
            (None, 100, 0),
            (Some(2), 100, 0),
        ];
        for (at, passed, lasts) in rows {
            let looked = clock.look(at, Duration::from_millis(passed));
            assert_eq!(looked, Duration::from_millis(lasts), "{at:?} after {passed} ms");
        }
    }

    /// Who watches hears of a stall, of how long it lasts, and of its end.
    #[test]
    fn a_stall_is_told() {
        let stalls = Stalls::default();
        let mut watched = stalls.watch();
        for lasts in [1, 2] {
            let stall = Stall { cause: Cause::Disk, lasts: Duration::from_secs(lasts) };
            stalls.tell(Some(stall));
            assert!(watched.has_changed().expect("it is there"));
            assert_eq!(*watched.borrow_and_update(), Some(stall));
        }
        stalls.tell(None);
        assert_eq!((stalls.current(), watched.has_changed().expect("it is there")), (None, true));
        let entry = Stall { cause: Cause::Entry(6), lasts: Duration::from_secs(3) };
        let said = "the machines have not come back from log entry 7 for 3 s";
        assert_eq!(entry.to_string(), said);
    }
}
