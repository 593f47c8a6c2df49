//! When to try again: at once after a redirect, else after a random wait that grows.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;

/// The first wait is drawn from 0 to this.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// No wait is longer than this.
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Redirects followed in a row without a wait. Three lead from any node to a leader that moved
/// twice meanwhile; more is a loop.
const REDIRECTS_MAX: u32 = 3;

/// The waits of one call, or of one connection.
pub(crate) struct Retry {
    attempts: u32,
    redirects: u32,
}

impl Retry {
    pub(crate) fn new() -> Self {
        Self { attempts: 0, redirects: 0 }
    }

    /// Waits as long as it takes after `error`; false when that would pass the deadline.
    pub(crate) async fn pause(&mut self, error: &Error, deadline: Instant) -> bool {
        let until = match error.leader_addr {
            Some(_) => self.redirected(),
            None => self.failed(),
        };
        if until >= deadline {
            return false;
        }
        // Even a wait that is over takes the timer a millisecond.
        if until > Instant::now() {
            tokio::time::sleep_until(until).await;
        }
        true
    }

    /// When to go where a node pointed: at once, unless that was often.
    pub(crate) fn redirected(&mut self) -> Instant {
        if self.redirects < REDIRECTS_MAX {
            self.redirects += 1;
            return Instant::now();
        }
        self.failed()
    }

    /// When to try again.
    pub(crate) fn failed(&mut self) -> Instant {
        self.redirects = 0;
        Instant::now() + self.next_wait()
    }

    /// Full jitter: uniform from 0 to a bound that doubles, so that clients that failed together
    /// do not come back together.
    fn next_wait(&mut self) -> Duration {
        let bound = BACKOFF_MIN.saturating_mul(1 << self.attempts.min(16)).min(BACKOFF_MAX);
        self.attempts += 1;
        bound.mul_f64(fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits stay under a bound that doubles from 50 ms to 2 s, however often one waits.
    #[test]
    fn waits_are_bounded() {
        let mut retry = Retry::new();
        for attempt in 0..40_u32 {
            let bound = (50_u64 << attempt.min(10)).min(2000);
            assert!(retry.next_wait() <= Duration::from_millis(bound), "attempt {attempt}");
        }
    }
}
