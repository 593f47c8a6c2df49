//! The replicated time: what the leader stamps into entries, and guests see (decision 0012).
//!
//! The time advances by this node's monotonic clock. The wall clock pulls it, by one part in a
//! hundred at most, so that a wall clock that jumps moves the time by next to nothing.
//!
//! A node *knows* the time once it heard it from the leader, or, when it leads, from the other
//! voters. Until then it has only the time of the last entry, which may be hours old.
//!
//! **Invariant:** what is stamped never goes back, and is never below the time of an entry that was
//! applied here. **Invariant:** nothing here is read between commit and reply.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use crate::types::TimeMs;

/// The wall clock moves the time by at most one part in so many.
const PULL_DIVISOR: u64 = 100;
/// However long nobody looked, the wall clock pulls for no longer than this, in microseconds: else
/// a jump at that moment would move the time by a hundredth of all that went by.
const PULL_US_MAX: u64 = 1_000_000;
/// A wall clock that is further off raises an alarm, in milliseconds.
const OFF_MS_MAX: i64 = 2_000;
/// How long such an alarm stands after the clock was right again.
const ALARM_DURATION: Duration = Duration::from_secs(60);
/// How far the time goes on by the wall clocks alone, after no node ran for a while.
pub const START_JUMP_MS_MAX: TimeMs = 7 * 24 * 3_600 * 1_000;
/// Whoever stamps waits so long for this node to know the time. The answer of a voter takes
/// milliseconds, and a leader that gets none commits nothing either.
const KNOWN_WITHIN: Duration = Duration::from_secs(1);

/// Where time comes from. The system's in a node, set by hand in tests.
pub trait Source: Send + Sync {
    /// Time that passed since some moment before; it never goes back.
    fn monotonic(&self) -> Duration;

    /// Time since 1970, as far as the system knows it; `None` when that is before.
    fn wall(&self) -> Option<Duration>;
}

/// The clocks of the system.
pub struct System(Instant);

impl System {
    /// Counts from now on.
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Default for System {
    fn default() -> Self {
        Self::new()
    }
}

impl Source for System {
    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    fn wall(&self) -> Option<Duration> {
        SystemTime::now().duration_since(UNIX_EPOCH).ok()
    }
}

/// The wall clock of this machine is before 1970, and no time can be told by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the clock of this machine is before 1970: set it, then start the node again")]
pub struct BeforeEpoch;

/// What setting the time came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeSet {
    /// The replicated time before, in milliseconds.
    pub before_ms: TimeMs,
    /// The time from now on.
    pub now_ms: TimeMs,
    /// How long it stands still until the wall clock has caught up, in milliseconds.
    pub stands_still_ms: u64,
}

/// The replicated time as this node knows it.
pub struct Clock {
    source: Box<dyn Source>,
    state: Mutex<State>,
    known: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    /// The time, in microseconds, at this moment of the monotonic clock.
    time_us: u64,
    at: Duration,
    /// The time is known, not only that of the last entry.
    is_known: bool,
    /// The last one that was stamped here.
    stamped_ms: TimeMs,
    stands_still: bool,
    /// By how much the wall clock was ahead of the time when it was last off, and when.
    off: Option<(i64, Duration)>,
}

impl State {
    fn time_ms(&self) -> TimeMs {
        self.time_us / 1_000
    }

    /// Moves the time on to `now`; where this node leads, its wall clock pulls.
    fn advance(&mut self, now: Duration, wall: Option<Duration>, pulls: bool) {
        let passed = micros(now.saturating_sub(self.at));
        self.at = now;
        let wall_us = wall.map(micros);
        let is_behind = wall_us.is_some_and(|wall| wall < self.time_us);
        self.stands_still &= is_behind;
        if self.stands_still {
            return;
        }
        self.time_us = self.time_us.saturating_add(passed);
        let Some(wall_us) = wall_us.filter(|_| self.is_known) else { return };
        if pulls {
            let most = passed.min(PULL_US_MAX) / PULL_DIVISOR;
            if wall_us > self.time_us {
                self.time_us += most.min(wall_us - self.time_us);
            } else {
                self.time_us -= most.min(self.time_us - wall_us);
            }
        }
        let off = millis_between(wall_us, self.time_us);
        if off.abs() > OFF_MS_MAX {
            self.off = Some((off, now));
        }
    }

    /// The time is this, or later.
    fn raise(&mut self, time_ms: TimeMs) {
        self.time_us = self.time_us.max(time_ms.saturating_mul(1_000));
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// How far `a` is ahead of `b`, both in microseconds.
fn millis_between(a: u64, b: u64) -> i64 {
    let between = i64::try_from(a.abs_diff(b) / 1_000).unwrap_or(i64::MAX);
    if a >= b { between } else { -between }
}

impl Clock {
    /// A clock that does not know the time yet.
    ///
    /// # Errors
    /// When the wall clock is before 1970.
    pub fn new(source: Box<dyn Source>) -> Result<Self, BeforeEpoch> {
        source.wall().ok_or(BeforeEpoch)?;
        let state = Mutex::new(State { at: source.monotonic(), ..State::default() });
        Ok(Self { source, state, known: watch::Sender::new(false) })
    }

    /// The wall clock of this machine.
    ///
    /// # Errors
    /// When it is before 1970.
    pub fn wall_ms(&self) -> Result<TimeMs, BeforeEpoch> {
        let wall = self.source.wall().ok_or(BeforeEpoch)?;
        Ok(TimeMs::try_from(wall.as_millis()).unwrap_or(TimeMs::MAX))
    }

    /// The replicated time, if this node knows it.
    pub fn time_ms(&self) -> Option<TimeMs> {
        let state = self.advanced(false);
        state.is_known.then(|| state.time_ms())
    }

    /// Looks at the clocks. To be called several times a second: so the time follows the wall clock
    /// of a leader that has nothing to stamp, and a jump of it is noticed.
    pub fn look(&self, leads: bool, applied_ms: TimeMs) {
        self.advanced(leads).raise(applied_ms);
    }

    /// The time is this: the leader, or a majority of the voters, said so.
    pub fn learn(&self, time_ms: TimeMs) {
        let mut state = self.advanced(false);
        state.time_us = time_ms.saturating_mul(1_000);
        state.is_known = true;
        drop(state);
        self.known.send_replace(true);
    }

    /// Nobody knows the time, since no node ran: it goes on from the last entry's to what the wall
    /// clocks say, but for a jump that is too far to be believed.
    pub fn begin(&self, last_ms: TimeMs, wall_ms: TimeMs) {
        let is_believed = last_ms == 0 || wall_ms.saturating_sub(last_ms) <= START_JUMP_MS_MAX;
        self.learn(if is_believed { wall_ms.max(last_ms) } else { last_ms });
    }

    /// The time for the next entry, where an entry with the time `applied_ms` was applied.
    pub async fn stamp(&self, applied_ms: TimeMs) -> TimeMs {
        if !*self.known.borrow() {
            let mut known = self.known.subscribe();
            let waited = known.wait_for(|known| *known);
            // Without an answer the time stands at that of the last entry.
            let _ = tokio::time::timeout(KNOWN_WITHIN, waited).await;
        }
        self.stamp_now(applied_ms)
    }

    fn stamp_now(&self, applied_ms: TimeMs) -> TimeMs {
        let mut state = self.advanced(true);
        let floor = applied_ms.max(state.stamped_ms);
        let time_ms = if state.is_known { state.time_ms().max(floor) } else { floor };
        state.raise(time_ms);
        assert!(time_ms >= state.stamped_ms && time_ms >= applied_ms, "time never goes back");
        state.stamped_ms = time_ms;
        time_ms
    }

    /// Makes the time that of the wall clock: at once where that is later. Where it is earlier, the
    /// time stands still here until the wall clock has caught up.
    pub fn set_to_wall(&self) -> Result<TimeSet, BeforeEpoch> {
        let wall_ms = self.wall_ms()?;
        let mut state = self.advanced(true);
        let before_ms = state.time_ms();
        state.raise(wall_ms);
        state.off = None;
        state.stands_still = wall_ms < before_ms;
        let stands_still_ms = before_ms.saturating_sub(wall_ms);
        Ok(TimeSet { before_ms, now_ms: state.time_ms(), stands_still_ms })
    }

    /// What an operator should know of the clock of this machine.
    pub fn alarm(&self) -> Option<String> {
        let state = self.advanced(false);
        let (off, seen) = state.off?;
        let since = state.at.saturating_sub(seen);
        if since > ALARM_DURATION {
            return None;
        }
        let side = if off > 0 { "ahead of" } else { "behind" };
        let seconds = off.unsigned_abs().saturating_add(500) / 1_000;
        let when = match since.as_secs() {
            0 => "is".to_owned(),
            ago => format!("was, {ago} s ago,"),
        };
        let stands = if state.stands_still { "; until then the time stands still" } else { "" };
        Some(format!(
            "the wall clock of this node {when} {seconds} s {side} the time of the cluster, which \
             follows it by 1 % at most: set the clock right, or, if it is right, run `lockstep \
             cluster set-time`{stands}"
        ))
    }

    fn advanced(&self, pulls: bool) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().expect("nothing panics while it holds the time");
        // Read under the lock, so that a later reading never comes before an earlier one.
        let (now, wall) = (self.source.monotonic(), self.source.wall());
        state.advance(now, wall, pulls);
        state
    }
}

#[cfg(test)]
mod tests;
