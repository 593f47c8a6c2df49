//! The one table from errors to what a client sees: gRPC code, reason, outcome, message.
//!
//! Each error goes out with a `google.rpc.ErrorInfo` (domain `lockstep`); in a stream the same
//! fields go into a `Failure`. The message is short; what only an operator should see is logged.

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep_client::{LogPlace, Outcome as Certain, reason};
use lockstep_proto::v1;
use tonic::{Code, Status};
use tonic_types::{ErrorInfo, RetryInfo, StatusExt as _};

use crate::raft;
use crate::types::Outcome;

/// When who was refused for want of room may try again.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// An error as clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Error {
    code: Code,
    reason: String,
    outcome: Certain,
    message: String,
    /// Id, where it is known, and client address of the leader.
    leader: Option<(Option<u64>, String)>,
    /// Where the command stands in the log that failed.
    place: Option<LogPlace>,
}

/// When gRPC itself found an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Before anything was done: in the request.
    Before,
    /// Later, or nobody knows.
    Later,
}

impl Error {
    /// An error that gRPC found by itself, with the details that it lacks.
    pub(super) fn found(status: &Status, found: Found) -> Self {
        let (code, reason) = match (status.code(), found) {
            (Code::OutOfRange | Code::ResourceExhausted, _) => {
                (Code::ResourceExhausted, reason::TOO_LARGE)
            }
            (Code::Unimplemented, _) => (Code::Unimplemented, reason::UNIMPLEMENTED),
            (Code::DeadlineExceeded | Code::Cancelled, _) => {
                (Code::DeadlineExceeded, reason::DEADLINE_EXCEEDED)
            }
            (Code::Internal | Code::Unknown, Found::Before) => {
                (Code::InvalidArgument, reason::BAD_REQUEST)
            }
            (code, Found::Before) => (code, reason::BAD_REQUEST),
            (code, Found::Later) => (code, reason::INTERNAL),
        };
        let outcome = match found {
            Found::Before => Certain::NotApplied,
            Found::Later => Certain::Unknown,
        };
        Self::new(code, reason, outcome, status.message())
    }

    /// Why no more of a request is read: an error of the layer that receives it.
    pub(super) fn of_request(status: Status) -> Status {
        match status.details() {
            [] => Self::found(&status, Found::Before).into(),
            _ => status,
        }
    }

    fn new(code: Code, reason: &str, outcome: Certain, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
            outcome,
            message: message.into(),
            leader: None,
            place: None,
        }
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        let mut metadata =
            BTreeMap::from([(reason::OUTCOME.to_owned(), self.outcome.as_str().to_owned())]);
        if let Some((id, address)) = &self.leader {
            metadata.insert(reason::LEADER_ADDR.to_owned(), address.clone());
            if let Some(id) = id {
                metadata.insert(reason::LEADER_ID.to_owned(), id.to_string());
            }
        }
        if self.reason == reason::OVERLOADED {
            let ms = RETRY_AFTER.as_millis().to_string();
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
    pub(super) fn at(self, index: u64, position: usize) -> Self {
        let position = u64::try_from(position).expect("an entry bounds its commands");
        Self { place: Some(LogPlace { index, position }), ..self }
    }

    /// As one command of a stream gets it.
    pub(super) fn into_failure(self) -> v1::Failure {
        let metadata = self.metadata().into_iter().collect();
        let Self { code, reason, message, .. } = self;
        v1::Failure { code: code.into(), message, reason, metadata }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let is_overloaded = error.reason == reason::OVERLOADED;
        let info = ErrorInfo {
            metadata: error.metadata().into_iter().collect(),
            reason: error.reason,
            domain: reason::DOMAIN.to_owned(),
        };
        let mut details = vec![info.into()];
        if is_overloaded {
            details.push(RetryInfo::new(Some(RETRY_AFTER)).into());
        }
        Self::with_error_details_vec(error.code, error.message, details)
    }
}

impl From<raft::Error> for Error {
    fn from(error: raft::Error) -> Self {
        let (code, reason) = code_and_reason(&error);
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
        Self { leader, ..Self::new(code, reason, outcome, message) }
    }
}

/// The table. ABORTED is used nowhere: it invites clients to repeat what may have been applied.
fn code_and_reason(error: &raft::Error) -> (Code, &'static str) {
    use raft::Error::*;
    match error {
        NotLeader { .. } => (Code::Unavailable, reason::NOT_LEADER),
        NoLeader => (Code::Unavailable, reason::NO_LEADER),
        Recovering => (Code::Unavailable, reason::RECOVERING),
        Uninitialized => (Code::FailedPrecondition, reason::UNINITIALIZED),
        Overloaded => (Code::ResourceExhausted, reason::OVERLOADED),
        DiskFull(_) => (Code::ResourceExhausted, reason::DISK_FULL),
        Halted(_) => (Code::FailedPrecondition, reason::HALTED),
        Sealed(_) => (Code::FailedPrecondition, reason::SEALED),
        Invalid(_) => (Code::InvalidArgument, reason::BAD_REQUEST),
        TooLarge { .. } => (Code::ResourceExhausted, reason::TOO_LARGE),
        NoSuchMachine(_) => (Code::NotFound, reason::NO_SUCH_MACHINE),
        MachineExists(_) => (Code::AlreadyExists, reason::MACHINE_EXISTS),
        Restoring(_) => (Code::FailedPrecondition, reason::RESTORING),
        NotRestoring(_) => (Code::FailedPrecondition, reason::NOT_RESTORING),
        ImportFailed(_) => (Code::FailedPrecondition, reason::IMPORT_FAILED),
        ModuleRefused(_) => (Code::InvalidArgument, reason::MODULE_REFUSED),
        ModuleNotReady(_) => (Code::FailedPrecondition, reason::MODULE_NOT_READY),
        Refused(_) => (Code::FailedPrecondition, reason::REFUSED),
        AlreadyInitialized(_) => (Code::FailedPrecondition, reason::ALREADY_INITIALIZED),
        Parked(_) => (Code::FailedPrecondition, reason::PARKED),
        DeadlineBeforeProposal | DeadlineAfterProposal => {
            (Code::DeadlineExceeded, reason::DEADLINE_EXCEEDED)
        }
        LeaderChanged => (Code::Unavailable, reason::LEADER_CHANGED),
        ShuttingDown => (Code::Unavailable, reason::SHUTTING_DOWN),
        Stopped(_) => (Code::Internal, reason::STOPPED),
    }
}

/// An error that the leader gave to a request passed on to it is the client's as it stands.
impl From<lockstep_client::Error> for Error {
    fn from(error: lockstep_client::Error) -> Self {
        let lockstep_client::Error { outcome, reason, message, code, leader_addr, place } = error;
        let leader = leader_addr.map(|address| (None, address));
        Self { code, reason, outcome, message, leader, place }
    }
}

/// The guest's reply and whether the guest rejected the request; an error when it gave none.
pub(super) fn guest_reply(outcome: Outcome, machine: &str) -> Result<(bytes::Bytes, bool), Error> {
    let applied = |reason, message: String| {
        Err(Error::new(Code::FailedPrecondition, reason, Certain::AppliedError, message))
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
        // Removed while the command was under way: nothing ran, and nothing will.
        Outcome::NoSuchMachine => Err(raft::Error::NoSuchMachine(machine.to_owned()).into()),
    }
}

/// Sessions are reserved in the protocol; pretending to honour one would be a false promise.
pub(super) fn sessions_unsupported() -> Error {
    Error::new(
        Code::Unimplemented,
        reason::SESSIONS_UNSUPPORTED,
        Certain::NotApplied,
        "this version has no sessions: leave `session` out",
    )
}

#[cfg(test)]
mod tests {
    use crate::types::{ClusterId, Member, NodeId};

    use super::*;

    fn leader() -> (NodeId, Member) {
        (NodeId(3), Member { client_addr: "127.0.0.1:7403".into(), ..Member::default() })
    }

    /// Every error of the replica has a code, a reason and an outcome, and reaches the client
    /// library through a status and through a stream's failure unchanged.
    #[test]
    fn every_replica_error_reaches_the_client() {
        use raft::Error::*;
        let (not_applied, unknown) = (Certain::NotApplied, Certain::Unknown);
        let applied = Certain::AppliedError;
        let rows = [
            (NotLeader { leader: leader() }, Code::Unavailable, "NOT_LEADER", not_applied),
            (NoLeader, Code::Unavailable, "NO_LEADER", not_applied),
            (Recovering, Code::Unavailable, "RECOVERING", not_applied),
            (Uninitialized, Code::FailedPrecondition, "UNINITIALIZED", not_applied),
            (Overloaded, Code::ResourceExhausted, "OVERLOADED", not_applied),
            (DiskFull("why".into()), Code::ResourceExhausted, "DISK_FULL", not_applied),
            (Halted("x".into()), Code::FailedPrecondition, "HALTED", not_applied),
            (Sealed("x".into()), Code::FailedPrecondition, "SEALED", not_applied),
            (Invalid("x".into()), Code::InvalidArgument, "BAD_REQUEST", not_applied),
            (
                TooLarge { what: "x", length: 2, limit: 1 },
                Code::ResourceExhausted,
                "TOO_LARGE",
                not_applied,
            ),
            (NoSuchMachine("x".into()), Code::NotFound, "NO_SUCH_MACHINE", not_applied),
            (MachineExists("x".into()), Code::AlreadyExists, "MACHINE_EXISTS", not_applied),
            (Restoring("x".into()), Code::FailedPrecondition, "RESTORING", not_applied),
            (NotRestoring("x".into()), Code::FailedPrecondition, "NOT_RESTORING", not_applied),
            (ImportFailed("x".into()), Code::FailedPrecondition, "IMPORT_FAILED", applied),
            (ModuleRefused("x".into()), Code::InvalidArgument, "MODULE_REFUSED", not_applied),
            (ModuleNotReady("x".into()), Code::FailedPrecondition, "MODULE_NOT_READY", not_applied),
            (Refused("x".into()), Code::FailedPrecondition, "REFUSED", not_applied),
            (
                AlreadyInitialized(ClusterId([7; 16])),
                Code::FailedPrecondition,
                "ALREADY_INITIALIZED",
                not_applied,
            ),
            (Parked("x".into()), Code::FailedPrecondition, "PARKED", not_applied),
            (DeadlineBeforeProposal, Code::DeadlineExceeded, "DEADLINE_EXCEEDED", not_applied),
            (DeadlineAfterProposal, Code::DeadlineExceeded, "DEADLINE_EXCEEDED", unknown),
            (LeaderChanged, Code::Unavailable, "LEADER_CHANGED", unknown),
            (ShuttingDown, Code::Unavailable, "SHUTTING_DOWN", not_applied),
            (Stopped("x".into()), Code::Internal, "STOPPED", unknown),
        ];
        for (error, code, reason, outcome) in rows {
            let wire = Error::from(error.clone());
            let by_status = lockstep_client::Error::from_status(&Status::from(wire.clone()));
            let by_stream = lockstep_client::Error::from_failure(wire.into_failure());
            assert_eq!(by_status, by_stream, "{error:?}");
            assert_eq!(by_status.code, code, "{error:?}");
            assert_eq!(by_status.reason, reason, "{error:?}");
            assert_eq!(by_status.outcome, outcome, "{error:?}");
        }
    }

    /// Where a failed command stands in the log reaches the client by a status and by a stream, and
    /// by way of another node.
    #[test]
    fn the_place_of_a_failure_reaches_the_client() {
        let error = guest_reply(Outcome::Trapped("x".into()), "m").unwrap_err().at(7, 3);
        let place = Some(LogPlace { index: 7, position: 3 });
        let by_status = lockstep_client::Error::from_status(&Status::from(error.clone()));
        let by_stream = lockstep_client::Error::from_failure(error.into_failure());
        assert_eq!((by_status.place, by_stream.place), (place, place));
        let passed_on = Error::from(by_stream).into_failure();
        assert_eq!(lockstep_client::Error::from_failure(passed_on).place, place);
    }

    /// Not leader: the client learns where the leader is.
    #[test]
    fn not_leader_names_the_leader() {
        let error = raft::Error::NotLeader { leader: leader() };
        let failure = Error::from(error).into_failure();
        assert_eq!(failure.metadata["leader_id"], "3");
        assert_eq!(failure.metadata["leader_addr"], "127.0.0.1:7403");
    }

    /// What stopped a node may name its files: that goes to the log, not to the client.
    #[test]
    fn clients_do_not_see_what_stopped_a_node() {
        let failure = Error::from(raft::Error::Stopped("/secret/path".into())).into_failure();
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
            assert_eq!(error.code, Code::FailedPrecondition, "{reason}");
        }
        let gone = guest_reply(Outcome::NoSuchMachine, "m").unwrap_err();
        assert_eq!((gone.code, gone.outcome), (Code::NotFound, Certain::NotApplied));
    }
}
