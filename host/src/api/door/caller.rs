//! Who asks: on which account, until when, and whether the request may go on to another node.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::check;
use super::error::Error;
use crate::budget::{Account, Full, Held};
use crate::raft;

/// No command or query may wait for longer, whatever it asks for.
const COMMAND_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// How long an admin request without a deadline of its own may take: modules are compiled.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(60);
/// No admin request may wait for longer.
const ADMIN_TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// The replica's deadline is a tenth earlier than the client's, at most by this, so that what is
/// certain about the command reaches the client before it gives up.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(20);
/// Shorter commands and queries are copied out of what was read.
const SHARED_BYTES_MIN: usize = 256 << 10;

/// Whether a request may go on to the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::api) enum Forwarding {
    /// As the settings of this node say.
    AsSet,
    /// The client asks for it, since it cannot reach the leader itself.
    Wanted,
    /// Another node passed the request on: it goes no further.
    Done,
}

/// Who asks.
#[derive(Clone, Debug)]
pub(in crate::api) struct Caller {
    account: Account,
    deadline: Instant,
    forwarding: Forwarding,
}

/// Bytes for a machine, as they were read, and the room that is held for them and their reply.
#[derive(Debug)]
pub(in crate::api) struct Payload {
    machine: String,
    bytes: Bytes,
    held: Result<Held, Full>,
}

impl Caller {
    /// Who sends a command or a query, and waits for `timeout`.
    pub(in crate::api) fn of_command(
        account: Account,
        timeout: Duration,
        forwarding: Forwarding,
    ) -> Self {
        Self { account, deadline: deadline_in(timeout.min(COMMAND_TIMEOUT_MAX)), forwarding }
    }

    /// Who sends an admin request.
    pub(in crate::api) fn of_admin(
        account: Account,
        timeout: Option<Duration>,
        forwarding: Forwarding,
    ) -> Self {
        let timeout = timeout.unwrap_or(ADMIN_TIMEOUT).min(ADMIN_TIMEOUT_MAX);
        Self { account, deadline: deadline_in(timeout), forwarding }
    }

    /// The same caller, for one command of a stream, which has a time limit of its own.
    pub(in crate::api) fn within(&self, timeout: Duration) -> Self {
        Self::of_command(self.account.clone(), timeout, self.forwarding)
    }

    /// What the caller holds of this node counts here.
    pub(in crate::api) fn account(&self) -> &Account {
        &self.account
    }

    /// When the replica must have answered.
    pub(in crate::api) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What is left until then.
    pub(in crate::api) fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Takes a command or query as it was read. What is read is held at once.
    pub(in crate::api) fn payload(&self, machine: String, bytes: Bytes) -> Payload {
        let held = self.account.begin(bytes.len());
        Payload { machine, bytes, held }
    }

    /// Room for a command or query that is passed on, and its reply.
    pub(super) fn hold(&self, bytes: &Bytes) -> Result<Held, Error> {
        self.account.begin(bytes.len()).map_err(overloaded)
    }

    /// Whether the request may go on to the leader, where the settings say `by_settings`.
    pub(super) fn may_go_on(&self, by_settings: bool) -> bool {
        match self.forwarding {
            Forwarding::AsSet => by_settings,
            Forwarding::Wanted => true,
            Forwarding::Done => false,
        }
    }
}

impl Payload {
    /// Checks name, size and room; `what` names the bytes in a refusal.
    pub(super) fn checked(self, what: &'static str) -> Result<(String, Bytes, Held), Error> {
        check::machine_name(&self.machine)?;
        check::payload(what, &self.bytes)?;
        let held = self.held.map_err(overloaded)?;
        Ok((self.machine, on_its_own(self.bytes), held))
    }
}

fn overloaded(_: Full) -> Error {
    raft::Error::Overloaded.into()
}

/// Bytes that keep no neighbours in memory: a message is a part of the buffer it was read into,
/// which stays as long as any part of it. Long ones are most of theirs.
fn on_its_own(bytes: Bytes) -> Bytes {
    if bytes.len() < SHARED_BYTES_MIN { Bytes::copy_from_slice(&bytes) } else { bytes }
}

fn deadline_in(timeout: Duration) -> Instant {
    Instant::now() + timeout - (timeout / 10).min(ANSWER_TIME_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::config::limits;

    fn account() -> Account {
        Budget::new(64 << 20).open()
    }

    /// The replica gets less time than the client gives, and never more than the maximum.
    #[test]
    fn deadlines_are_bounded() {
        let (day, second) = (Duration::from_secs(24 * 3600), Duration::from_secs(1));
        let left = |caller: Caller| caller.remaining();
        let command = |timeout| left(Caller::of_command(account(), timeout, Forwarding::AsSet));
        assert!(command(second) < second && command(second) > second / 2);
        assert!(command(day) <= COMMAND_TIMEOUT_MAX);
        let caller = Caller::of_command(account(), second, Forwarding::AsSet);
        assert!(left(caller.within(day)) <= COMMAND_TIMEOUT_MAX);
        let admin = |timeout| left(Caller::of_admin(account(), timeout, Forwarding::AsSet));
        assert!(admin(None) <= ADMIN_TIMEOUT && admin(None) > ADMIN_TIMEOUT / 2);
        assert!(admin(Some(day)) <= ADMIN_TIMEOUT_MAX && admin(Some(second)) < second);
    }

    /// A request goes on where the settings or the client want it, and once at most.
    #[test]
    fn a_request_goes_on_once() {
        let goes_on = |forwarding, by_settings| {
            let caller = Caller::of_command(account(), Duration::from_secs(1), forwarding);
            (caller.may_go_on(by_settings), caller.within(Duration::ZERO).may_go_on(by_settings))
        };
        let (yes, no) = ((true, true), (false, false));
        assert_eq!([false, true].map(|set| goes_on(Forwarding::AsSet, set)), [no, yes]);
        assert_eq!([false, true].map(|set| goes_on(Forwarding::Wanted, set)), [yes, yes]);
        assert_eq!([false, true].map(|set| goes_on(Forwarding::Done, set)), [no, no]);
    }

    /// Commands that are empty, too long, or for no machine are refused before they go anywhere,
    /// and so is one for which there is no room.
    #[test]
    fn payloads_are_checked() {
        let caller = Caller::of_command(account(), Duration::from_secs(1), Forwarding::AsSet);
        let check = |machine: &str, length: usize| {
            let bytes = Bytes::from(vec![b'x'; length]);
            caller.payload(machine.to_owned(), bytes).checked("the command").map(|_| ())
        };
        assert_eq!(check("kv", 1), Ok(()));
        assert_eq!(check("kv", limits::COMMAND_BYTES_MAX), Ok(()));
        assert_eq!(check("kv", 0).unwrap_err().reason, "BAD_REQUEST");
        assert_eq!(check("k v", 1).unwrap_err().reason, "BAD_REQUEST");
        assert_eq!(check("kv", limits::COMMAND_BYTES_MAX + 1).unwrap_err().reason, "TOO_LARGE");
        let everything = caller.account().hold(8 << 20).expect("it is the first");
        assert_eq!(check("kv", 1).unwrap_err().reason, "OVERLOADED");
        drop(everything);
        assert_eq!(check("kv", 1), Ok(()));
    }

    /// A short command keeps nothing of the buffer that it was read into; a long one is not copied.
    #[test]
    fn short_commands_stand_alone() {
        let shares = |length: usize| {
            let read = Bytes::from(vec![1; length]);
            on_its_own(read.clone()).as_ptr() == read.as_ptr()
        };
        assert!(!shares(SHARED_BYTES_MIN - 1) && shares(SHARED_BYTES_MIN));
    }
}
