//! Whether it pays to hold the next entry back for clients that were just answered.
//!
//! Clients that wait for a reply before they send the next command fall into two halves: while the
//! entry of one is on its way, the commands of the other gather, and each waits for two entries in
//! a row. Held back for a part of the time that an entry takes, the next entry holds the commands
//! of both. Where the commands do not come back, as from clients that send by a clock, the wait is
//! vain; after each such one the next is put off twice as long.
//!
//! PostgreSQL's `commit_delay` does the like with a time that is set by hand.

use std::time::{Duration, Instant};

use crate::config::limits;

/// Fewer commands than these are not waited for: they are as likely to be by chance.
const COMMANDS_MIN: usize = 4;
/// The wait is at most the time that the last entry took, divided by this.
const WAIT_DIVISOR: u32 = 2;
/// Longest wait: where an entry takes longer than twice this, it isn't clients that are waited for.
const WAIT_MAX: Duration = Duration::from_millis(2);
/// Entries that are not held back after many vain waits.
const PUT_OFF_MAX: u32 = 1024;

/// An entry that was answered.
#[derive(Debug)]
pub(in crate::raft) struct Answered {
    /// Commands in it.
    pub(in crate::raft) commands: usize,
    /// From its proposal to the answers.
    pub(in crate::raft) took: Duration,
    /// Length of its longest reply, in bytes.
    pub(in crate::raft) longest_reply: usize,
}

/// What to wait for before the next entry is closed.
#[derive(Debug, Default)]
pub(in crate::raft) struct Returning {
    expected: usize,
    until: Option<Instant>,
    /// Entries still to go without a wait.
    put_off: u32,
    /// How many that will be after the next vain wait.
    put_off_next: u32,
}

impl Returning {
    /// Notes that an entry was answered while `queued` commands were waiting: those and, soon, as
    /// many as were answered can share the next.
    pub(in crate::raft) fn expect(&mut self, answered: &Answered, queued: usize) {
        let all = answered.commands + queued;
        // Some stragglers are not worth a wait.
        self.expected = (all - all / 8).min(limits::ENTRY_COMMANDS_MAX);
        self.until = Some(Instant::now() + (answered.took / WAIT_DIVISOR).min(WAIT_MAX));
    }

    /// How many commands the next entry may wait for, and until when; nothing if it should not.
    /// Each answered entry is asked about once.
    pub(in crate::raft) fn worth_waiting_for(&mut self) -> Option<(usize, Instant)> {
        let until = self.until.take()?;
        if self.expected < COMMANDS_MIN {
            return None;
        }
        if self.put_off > 0 {
            self.put_off -= 1;
            return None;
        }
        (Instant::now() < until).then_some((self.expected, until))
    }

    /// The commands came.
    pub(in crate::raft) fn satisfy(&mut self) {
        self.put_off_next = 0;
    }

    /// They did not come in time.
    pub(in crate::raft) fn disappoint(&mut self) {
        self.put_off_next = (2 * self.put_off_next).clamp(1, PUT_OFF_MAX);
        self.put_off = self.put_off_next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(commands: usize) -> Answered {
        Answered { commands, took: Duration::from_secs(1), longest_reply: 5 }
    }

    /// It waits for those answered and those queued, less a few stragglers, once for each entry.
    #[test]
    fn clients_that_were_answered_are_waited_for() {
        for (commands, queued, expected) in [(32, 32, 56), (1, 0, 0), (3, 1, 4), (200, 200, 256)] {
            let mut returning = Returning::default();
            assert_eq!(returning.worth_waiting_for(), None, "before any answer");
            returning.expect(&answered(commands), queued);
            let count = returning.worth_waiting_for().map_or(0, |(count, _)| count);
            assert_eq!(count, expected, "{commands} answered, {queued} queued");
            assert_eq!(returning.worth_waiting_for(), None, "a second time");
        }
    }

    /// Vain waits become rare, and one that was not vain makes them common again.
    #[test]
    fn vain_waits_become_rare() {
        let mut returning = Returning::default();
        let waits = |returning: &mut Returning, entries: u32| {
            let mut waits = 0;
            for _ in 0..entries {
                returning.expect(&answered(32), 32);
                if returning.worth_waiting_for().is_some() {
                    returning.disappoint();
                    waits += 1;
                }
            }
            waits
        };
        let many = waits(&mut returning, 10_000);
        assert!(many < 25, "{many} waits");
        returning.put_off = 0;
        returning.satisfy();
        assert_eq!(waits(&mut returning, 3), 2, "the first, and the third after one without");
    }
}
