//! Errors of the door as gRPC carries them.
//!
//! Each goes out with a `google.rpc.ErrorInfo` (domain `lockstep`); in a stream the same fields go
//! into a `Failure`. ABORTED is used nowhere: it invites clients to repeat what may have been
//! applied.

use lockstep_client::{Outcome as Certain, reason};
use lockstep_proto::v1;
use tonic::{Code, Status};
use tonic_types::{ErrorInfo, RetryInfo, StatusExt as _};

use crate::api::door::{Class, Error};

/// When gRPC itself found an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Before anything was done: in the request.
    Before,
    /// Later, or nobody knows.
    Later,
}

/// An error that gRPC found by itself, with the details that it lacks.
pub(super) fn found(status: &Status, found: Found) -> Error {
    let (class, reason) = match (class(status.code()), found) {
        (Class::Exhausted, _) => (Class::Exhausted, reason::TOO_LARGE),
        (Class::Unsupported, _) => (Class::Unsupported, reason::UNIMPLEMENTED),
        (Class::Late, _) => (Class::Late, reason::DEADLINE_EXCEEDED),
        (Class::Failed, Found::Before) => (Class::Invalid, reason::BAD_REQUEST),
        (class, Found::Before) => (class, reason::BAD_REQUEST),
        (class, Found::Later) => (class, reason::INTERNAL),
    };
    let outcome = match found {
        Found::Before => Certain::NotApplied,
        Found::Later => Certain::Unknown,
    };
    Error::new(class, reason, outcome, status.message())
}

/// Why no more of a request is read: an error of the layer that receives it.
pub(super) fn of_request(status: Status) -> Status {
    match status.details() {
        [] => found(&status, Found::Before).into(),
        _ => status,
    }
}

/// As one command of a stream gets it.
pub(super) fn failure(error: Error) -> v1::Failure {
    let metadata = error.metadata().into_iter().collect();
    let Error { class, reason, message, .. } = error;
    v1::Failure { code: code(class).into(), message, reason: reason.into_owned(), metadata }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let retry_after = error.retry_after();
        let info = ErrorInfo {
            metadata: error.metadata().into_iter().collect(),
            reason: error.reason.into_owned(),
            domain: reason::DOMAIN.to_owned(),
        };
        let mut details = vec![info.into()];
        if retry_after.is_some() {
            details.push(RetryInfo::new(retry_after).into());
        }
        Self::with_error_details_vec(code(error.class), error.message, details)
    }
}

/// An error that another node gave to a request passed on to it is the client's as it stands.
impl From<lockstep_client::Error> for Error {
    fn from(error: lockstep_client::Error) -> Self {
        let lockstep_client::Error { outcome, reason, message, code, leader_addr, place } = error;
        let leader = leader_addr.map(|address| (None, address));
        Self { class: class(code), reason: reason.into(), outcome, message, leader, place }
    }
}

fn code(class: Class) -> Code {
    match class {
        Class::Unavailable => Code::Unavailable,
        Class::Precondition => Code::FailedPrecondition,
        Class::Exhausted => Code::ResourceExhausted,
        Class::Invalid => Code::InvalidArgument,
        Class::NotFound => Code::NotFound,
        Class::Exists => Code::AlreadyExists,
        Class::Late => Code::DeadlineExceeded,
        Class::Unsupported => Code::Unimplemented,
        Class::Failed => Code::Internal,
    }
}

/// The other way, for what another node or gRPC itself says.
fn class(code: Code) -> Class {
    match code {
        Code::Unavailable => Class::Unavailable,
        Code::FailedPrecondition => Class::Precondition,
        Code::ResourceExhausted | Code::OutOfRange => Class::Exhausted,
        Code::InvalidArgument => Class::Invalid,
        Code::NotFound => Class::NotFound,
        Code::AlreadyExists => Class::Exists,
        Code::DeadlineExceeded | Code::Cancelled => Class::Late,
        Code::Unimplemented => Class::Unsupported,
        _ => Class::Failed,
    }
}

#[cfg(test)]
mod tests {
    use lockstep_client::LogPlace;

    use super::*;
    use crate::raft;
    use crate::types::{ClusterId, Member, NodeId};

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
            let by_stream = lockstep_client::Error::from_failure(failure(wire));
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
        let error = Error::from(raft::Error::LeaderChanged).at(7, 3);
        let place = Some(LogPlace { index: 7, position: 3 });
        let by_status = lockstep_client::Error::from_status(&Status::from(error.clone()));
        let by_stream = lockstep_client::Error::from_failure(failure(error));
        assert_eq!((by_status.place, by_stream.place), (place, place));
        let passed_on = failure(Error::from(by_stream));
        assert_eq!(lockstep_client::Error::from_failure(passed_on).place, place);
    }

    /// Each class has a code of its own, by which another node knows the class again.
    #[test]
    fn classes_pass_through_codes() {
        use Class::*;
        let all = [
            Unavailable,
            Precondition,
            Exhausted,
            Invalid,
            NotFound,
            Exists,
            Late,
            Unsupported,
            Failed,
        ];
        for of in all {
            assert_eq!(class(code(of)), of);
        }
    }
}
