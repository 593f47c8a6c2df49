//! The one table from errors to what a client sees: class, reason, outcome, message. An adapter has
//! a code of its protocol for each class, and carries the rest as it stands.
//!
//! The message is short; what only an operator should see is logged.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use lockstep_client::{LogPlace, Outcome as Certain, reason};

use crate::raft;
use crate::types::Outcome;

/// When who was refused for want of room may try again.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// The kind of an error, for the codes that protocols have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::api) enum Class {
    /// Not now, or not here: another node or a later try may do.
    Unavailable,
    /// The state of the cluster or of a machine forbids it.
    Precondition,
    /// Too much, or too large.
    Exhausted,
    /// The request is malformed, whatever the state.
    Invalid,
    /// What was named is not there.
    NotFound,
    /// What was to be made is there.
    Exists,
    /// The time was up.
    Late,
    /// This version cannot do it.
    Unsupported,
    /// The node has failed.
    Failed,
}

/// An error as clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::api) struct Error {
    /// Its kind.
    pub(in crate::api) class: Class,
    /// One of [`lockstep_client::reason`], or one of a newer leader.
    pub(in crate::api) reason: Cow<'static, str>,
    /// What is certain about the command.
    pub(in crate::api) outcome: Certain,
    /// For people.
    pub(in crate::api) message: String,
    /// Id, where it is known, and client address of the leader.
    pub(in crate::api) leader: Option<(Option<u64>, String)>,
    /// Where the command stands in the log that failed.
    pub(in crate::api) place: Option<LogPlace>,
}

impl Error {
    /// An error that an adapter finds by itself.
    pub(in crate::api) fn new(
        class: Class,
        reason: &'static str,
        outcome: Certain,
        message: impl Into<String>,
    ) -> Self {
        Self {
            class,
            reason: Cow::Borrowed(reason),
            outcome,
            message: message.into(),
            leader: None,
            place: None,
        }
    }

    /// A malformed request.
    pub(in crate::api) fn invalid(message: impl Into<String>) -> Self {
        raft::Error::Invalid(message.into()).into()
    }

    /// Something over its limit, in bytes.
    pub(in crate::api) fn too_large(what: &'static str, length: u64, limit: u64) -> Self {
        raft::Error::TooLarge { what, length, limit }.into()
    }

    /// Sessions are reserved in the protocol; pretending to honour one would be a false promise.
    pub(in crate::api) fn sessions_unsupported() -> Self {
        Self::new(
            Class::Unsupported,
            reason::SESSIONS_UNSUPPORTED,
            Certain::NotApplied,
            "this version has no sessions: leave `session` out",
        )
    }

    /// When whoever got it may try again, if that is the only cure.
    pub(in crate::api) fn retry_after(&self) -> Option<Duration> {
        (self.reason == reason::OVERLOADED).then_some(RETRY_AFTER)
    }

    /// What goes with it, by the names that all protocols share.
    pub(in crate::api) fn metadata(&self) -> BTreeMap<String, String> {
        let mut metadata =
            BTreeMap::from([(reason::OUTCOME.to_owned(), self.outcome.as_str().to_owned())]);
        if let Some((id, address)) = &self.leader {
            metadata.insert(reason::LEADER_ADDR.to_owned(), address.clone());
            if let Some(id) = id {
                metadata.insert(reason::LEADER_ID.to_owned(), id.to_string());
            }
        }
        if let Some(after) = self.retry_after() {
            let ms = after.as_millis().to_string();
            metadata.insert(reason::RETRY_AFTER_MS.to_owned(), ms);
        }
        if let Some(LogPlace { index, position }) = self.place {
            metadata.insert(reason::LOG_INDEX.to_owned(), index.to_string());
            metadata.insert(reason::LOG_POSITION.to_owned(), position.to_string());
        }
        metadata
    }

    /// The same error of a read, which is never applied: nothing about it is in doubt.
    pub(super) fn of_read(error: raft::Error) -> Self {
        let error = match error {
            // A leader logs the time for a guest that uses it, and lost its leadership meanwhile.
            raft::Error::LeaderChanged => raft::Error::NoLeader,
            error => error,
        };
        Self { outcome: Certain::NotApplied, ..error.into() }
    }

    /// Says where the failed command stands in the log.
    pub(in crate::api) fn at(self, index: u64, position: usize) -> Self {
        let position = u64::try_from(position).expect("an entry bounds its commands");
        Self { place: Some(LogPlace { index, position }), ..self }
    }
}

impl From<raft::Error> for Error {
    fn from(error: raft::Error) -> Self {
        let (class, reason) = class_and_reason(&error);
        let outcome = match error.certainty() {
            raft::Certainty::NotApplied => Certain::NotApplied,
            raft::Certainty::Unknown => Certain::Unknown,
            raft::Certainty::Applied => Certain::AppliedError,
        };
        let message = match &error {
            raft::Error::Stopped(full) => {
                tracing::debug!(reason = full, "a request met a replica that has stopped");
                "this node stops or has stopped; its log says why".to_owned()
            }
            _ => error.to_string(),
        };
        let leader = match error {
            raft::Error::NotLeader { leader: (id, member) } => {
                Some((Some(id.0), member.client_addr))
            }
            _ => None,
        };
        Self { leader, ..Self::new(class, reason, outcome, message) }
    }
}

/// The table.
fn class_and_reason(error: &raft::Error) -> (Class, &'static str) {
    use raft::Error::*;
    match error {
        NotLeader { .. } => (Class::Unavailable, reason::NOT_LEADER),
        NoLeader => (Class::Unavailable, reason::NO_LEADER),
        Recovering => (Class::Unavailable, reason::RECOVERING),
        Uninitialized => (Class::Precondition, reason::UNINITIALIZED),
        Overloaded => (Class::Exhausted, reason::OVERLOADED),
        DiskFull(_) => (Class::Exhausted, reason::DISK_FULL),
        Halted(_) => (Class::Precondition, reason::HALTED),
        Sealed(_) => (Class::Precondition, reason::SEALED),
        Invalid(_) => (Class::Invalid, reason::BAD_REQUEST),
        TooLarge { .. } => (Class::Exhausted, reason::TOO_LARGE),
        NoSuchMachine(_) => (Class::NotFound, reason::NO_SUCH_MACHINE),
        MachineExists(_) => (Class::Exists, reason::MACHINE_EXISTS),
        Restoring(_) => (Class::Precondition, reason::RESTORING),
        NotRestoring(_) => (Class::Precondition, reason::NOT_RESTORING),
        ImportFailed(_) => (Class::Precondition, reason::IMPORT_FAILED),
        ModuleRefused(_) => (Class::Invalid, reason::MODULE_REFUSED),
        ModuleNotReady(_) => (Class::Precondition, reason::MODULE_NOT_READY),
        Refused(_) => (Class::Precondition, reason::REFUSED),
        AlreadyInitialized(_) => (Class::Precondition, reason::ALREADY_INITIALIZED),
        Parked(_) => (Class::Precondition, reason::PARKED),
        DeadlineBeforeProposal | DeadlineAfterProposal => (Class::Late, reason::DEADLINE_EXCEEDED),
        LeaderChanged => (Class::Unavailable, reason::LEADER_CHANGED),
        ShuttingDown => (Class::Unavailable, reason::SHUTTING_DOWN),
        Stopped(_) => (Class::Failed, reason::STOPPED),
    }
}

/// The guest's reply and whether the guest rejected the request; an error when it gave none.
pub(super) fn guest_reply(outcome: Outcome, machine: &str) -> Result<(bytes::Bytes, bool), Error> {
    let applied = |reason, message: String| {
        Err(Error::new(Class::Precondition, reason, Certain::AppliedError, message))
    };
    match outcome {
        Outcome::Accepted(reply) => Ok((reply, false)),
        Outcome::Rejected(reply) => Ok((reply, true)),
        Outcome::Trapped(trap) => {
            applied(reason::GUEST_TRAP, format!("the guest of machine {machine:?} trapped: {trap}"))
        }
        Outcome::OutOfFuel { limit, fuel } => applied(
            reason::OUT_OF_FUEL,
            format!("the guest of machine {machine:?} used up its fuel of {fuel} ({limit})"),
        ),
        Outcome::TooLarge { length, limit } => applied(
            reason::REPLY_TOO_LARGE,
            format!("the guest's reply has {length} bytes, the limit is {limit}"),
        ),
        // Nothing ran. Who asks again finds that replies are known to be long: fewer go together.
        Outcome::NotReached => Err(raft::Error::Overloaded.into()),
        // Removed while the command was under way: nothing ran, and nothing will.
        Outcome::NoSuchMachine => Err(raft::Error::NoSuchMachine(machine.to_owned()).into()),
    }
}

#[cfg(test)]
mod tests {
    use crate::types::{Member, NodeId};

    use super::*;

    fn leader() -> (NodeId, Member) {
        (NodeId(3), Member { client_addr: "127.0.0.1:7403".into(), ..Member::default() })
    }

    /// Not leader: the client learns where the leader is.
    #[test]
    fn not_leader_names_the_leader() {
        let error = raft::Error::NotLeader { leader: leader() };
        let metadata = Error::from(error).metadata();
        assert_eq!(metadata["leader_id"], "3");
        assert_eq!(metadata["leader_addr"], "127.0.0.1:7403");
    }

    /// What stopped a node may name its files: that goes to the log, not to the client.
    #[test]
    fn clients_do_not_see_what_stopped_a_node() {
        let failure = Error::from(raft::Error::Stopped("/secret/path".into()));
        assert!(!failure.message.contains("secret"), "{}", failure.message);
    }

    /// A guest's failure is APPLIED_ERROR; its answers, accepted or rejected, are no errors.
    #[test]
    fn guest_outcomes() {
        let bytes = bytes::Bytes::from_static(b"v");
        assert_eq!(guest_reply(Outcome::Accepted(bytes.clone()), "m"), Ok((bytes.clone(), false)));
        assert_eq!(guest_reply(Outcome::Rejected(bytes.clone()), "m"), Ok((bytes, true)));
        let rows = [
            (Outcome::Trapped("unreachable".into()), "GUEST_TRAP"),
            (Outcome::OutOfFuel { limit: "fuel_per_command", fuel: 9 }, "OUT_OF_FUEL"),
            (Outcome::TooLarge { length: 2, limit: 1 }, "REPLY_TOO_LARGE"),
        ];
        for (outcome, reason) in rows {
            let error = guest_reply(outcome, "m").unwrap_err();
            assert_eq!(error.reason, reason);
            assert_eq!(error.outcome, Certain::AppliedError, "{reason}");
            assert_eq!(error.class, Class::Precondition, "{reason}");
        }
        let crowded = guest_reply(Outcome::NotReached, "m").unwrap_err();
        assert_eq!((crowded.class, crowded.outcome), (Class::Exhausted, Certain::NotApplied));
        let gone = guest_reply(Outcome::NoSuchMachine, "m").unwrap_err();
        assert_eq!((gone.class, gone.outcome), (Class::NotFound, Certain::NotApplied));
    }
}
