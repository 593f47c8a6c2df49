//! What follows a failed attempt at a call: another one, and when, or the end of the call; and
//! which error of all attempts the caller is told.

use std::time::Duration;

use tokio::time::Instant;

use crate::client::{Call, Kind};
use crate::error::{Error, Outcome};
use crate::reason;
use crate::retry::Retry;

/// No attempt begins with less time left than this: its answer could come too late to say that
/// nothing was applied.
const ATTEMPT_MIN: Duration = Duration::from_millis(100);

/// The failed attempts of one call.
pub(crate) struct Attempts {
    kind: Kind,
    /// The client knows one node, and no other.
    is_alone: bool,
    /// No attempt begins later.
    last: Instant,
    /// Nor does one after this, where the node before was not there.
    connected_until: Instant,
    retry: Retry,
    told: Option<Error>,
}

/// What follows a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another one, at this time.
    At(Instant),
    /// Another one would do, but there is no time left for it.
    TooLate,
    /// None: it would fail as well, or do a second time what was done.
    Never,
}

impl Attempts {
    /// None yet. A long call may take long, but a node that isn't there is not waited for any
    /// longer than by a short one, which has `timeout`.
    pub(crate) fn new(call: &Call, timeout: Duration, is_alone: bool) -> Self {
        let last = call.deadline - ATTEMPT_MIN;
        let connected_until = last.min(Instant::now() + timeout);
        let retry = Retry::new();
        Self { kind: call.kind, is_alone, last, connected_until, retry, told: None }
    }

    /// Notes one. `is_led`: the leader that its error names, if it names one, is to be asked next,
    /// at once.
    pub(crate) fn after(&mut self, error: Error, is_led: bool) -> Next {
        let until = match error.reason.as_str() {
            reason::UNREACHABLE => self.connected_until,
            _ => self.last,
        };
        let next = match (self.may_repeat(&error), is_led) {
            (false, _) => None,
            (true, true) => Some(self.retry.redirected()),
            (true, false) => Some(self.retry.failed()),
        };
        if self.told.is_none() || !self.tells_little(&error) {
            self.told = Some(error);
        }
        match next {
            None => Next::Never,
            Some(at) if at >= until => Next::TooLate,
            Some(at) => Next::At(at),
        }
    }

    /// What the caller is told: the newest error that tells something, or that the time is up.
    pub(crate) fn told(self) -> Error {
        self.told.unwrap_or_else(|| match self.kind {
            Kind::Read => Error::unanswered(),
            Kind::Once | Kind::Repeatable => Error::deadline_after_sending(),
        })
    }

    fn may_repeat(&self, error: &Error) -> bool {
        // A lone node that is in no cluster will not get into one by waiting.
        if error.reason == reason::UNINITIALIZED && self.is_alone {
            return false;
        }
        error.is_transient() || (self.kind != Kind::Once && error.is_transient_if_idempotent())
    }

    /// True for an error behind which that of an earlier attempt should be shown: the node of this
    /// one is not there, or the deadline came before its answer, which does not matter to a call
    /// that may be repeated.
    fn tells_little(&self, error: &Error) -> bool {
        let late = error.reason == reason::DEADLINE_EXCEEDED && error.outcome == Outcome::Unknown;
        error.reason == reason::UNREACHABLE || (self.kind != Kind::Once && late)
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::routes::Route;

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn attempts(kind: Kind, left: Duration, is_alone: bool) -> Attempts {
        let deadline = Instant::now() + left;
        let call = Call { route: Route::Leader, kind, deadline, forwarded: false, forward: false };
        Attempts::new(&call, TIMEOUT, is_alone)
    }

    fn error(outcome: Outcome, reason: &str) -> Error {
        Error::local(outcome, reason, Code::Unavailable, reason)
    }

    /// What is repeated: what was certainly not done, and, where twice is the same as once, what
    /// may have been done.
    #[test]
    fn what_is_repeated() {
        use Kind::{Once, Read, Repeatable};
        use Outcome::{AppliedError, NotApplied, Unknown};
        let rows = [
            (NotApplied, reason::NOT_LEADER, [true, true, true]),
            (NotApplied, reason::UNREACHABLE, [true, true, true]),
            (NotApplied, reason::BAD_REQUEST, [false, false, false]),
            (Unknown, reason::LEADER_CHANGED, [false, true, true]),
            (Unknown, reason::CONNECTION_LOST, [false, true, true]),
            (Unknown, reason::DEADLINE_EXCEEDED, [false, false, false]),
            (AppliedError, reason::GUEST_TRAP, [false, false, false]),
        ];
        for (outcome, reason, expected) in rows {
            let repeats = [Once, Repeatable, Read].map(|kind| {
                let next = attempts(kind, TIMEOUT, false).after(error(outcome, reason), false);
                assert_ne!(next, Next::TooLate, "{reason}");
                next != Next::Never
            });
            assert_eq!(repeats, expected, "{reason}");
        }
        let lone = |is_alone| {
            let uninitialized = error(NotApplied, reason::UNINITIALIZED);
            attempts(Once, TIMEOUT, is_alone).after(uninitialized, false)
        };
        assert!(lone(true) == Next::Never && lone(false) != Next::Never);
    }

    /// No attempt begins where its answer would come too late; a node that is not there is waited
    /// for no longer than a short call takes.
    #[test]
    fn until_when_it_is_repeated() {
        let not_leader = || error(Outcome::NotApplied, reason::NOT_LEADER);
        let mut late = attempts(Kind::Once, ATTEMPT_MIN, false);
        assert_eq!(late.after(not_leader(), true), Next::TooLate);
        let mut long = attempts(Kind::Once, 100 * TIMEOUT, false);
        long.connected_until = Instant::now();
        assert!(matches!(long.after(not_leader(), true), Next::At(at) if at <= Instant::now()));
        let gone = error(Outcome::NotApplied, reason::UNREACHABLE);
        assert_eq!(long.after(gone, false), Next::TooLate);
    }

    /// The caller is told what a node said, rather than that another was not there or was late.
    #[test]
    fn what_is_told() {
        let told = |kind, reasons: &[(Outcome, &str)]| {
            let mut attempts = attempts(kind, TIMEOUT, false);
            for (outcome, reason) in reasons {
                attempts.after(error(*outcome, reason), false);
            }
            attempts.told().reason
        };
        let no_leader = (Outcome::NotApplied, reason::NO_LEADER);
        let overloaded = (Outcome::NotApplied, reason::OVERLOADED);
        let gone = (Outcome::NotApplied, reason::UNREACHABLE);
        let late = (Outcome::Unknown, reason::DEADLINE_EXCEEDED);
        assert_eq!(told(Kind::Once, &[no_leader, overloaded]), reason::OVERLOADED);
        assert_eq!(told(Kind::Once, &[no_leader, gone]), reason::NO_LEADER);
        assert_eq!(told(Kind::Once, &[gone]), reason::UNREACHABLE);
        assert_eq!(told(Kind::Once, &[no_leader, late]), reason::DEADLINE_EXCEEDED);
        assert_eq!(told(Kind::Read, &[no_leader, late]), reason::NO_LEADER);
        assert_eq!(told(Kind::Read, &[]), reason::DEADLINE_EXCEEDED);
    }
}
