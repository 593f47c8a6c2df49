//! What an error says: above all, whether the command may have been applied.
//!
//! Every error of a node carries a `google.rpc.ErrorInfo`; an error without one comes from the
//! transport, and is UNKNOWN unless it is certain that nothing was sent.

use std::error::Error as StdError;

use lockstep_proto::v1::Failure;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::dial::root;
use crate::reason;

/// What is certain about a command that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was not applied and never will be: safe to send again.
    NotApplied,
    /// It was applied, and came to this error on every node.
    AppliedError,
    /// It may have been applied, or may still be.
    Unknown,
}

impl Outcome {
    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotApplied => "NOT_APPLIED",
            Self::AppliedError => "APPLIED_ERROR",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// Reads its name; a name this version does not know promises nothing, so it is `Unknown`.
    pub fn from_name(name: &str) -> Self {
        match name {
            "NOT_APPLIED" => Self::NotApplied,
            "APPLIED_ERROR" => Self::AppliedError,
            _ => Self::Unknown,
        }
    }
}

/// A failed call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What is certain about the command.
    pub outcome: Outcome,
    /// One of [`crate::reason`], or a newer one.
    pub reason: String,
    /// For people.
    pub message: String,
    /// The gRPC status code.
    pub code: Code,
    /// Where the leader serves clients, when the node asked was not the leader and knows it.
    pub leader_addr: Option<String>,
    /// Where the command stands in the log, when the guest failed in it.
    pub place: Option<LogPlace>,
}

/// Where a command stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPlace {
    /// Index of the entry.
    pub index: u64,
    /// Which of the entry's commands it is, from 0 on.
    pub position: u64,
}

impl Error {
    /// An error that the client itself finds.
    pub(crate) fn local(
        outcome: Outcome,
        reason: &str,
        code: Code,
        message: impl Into<String>,
    ) -> Self {
        Self {
            outcome,
            reason: reason.into(),
            message: message.into(),
            code,
            leader_addr: None,
            place: None,
        }
    }

    /// No connection could be made.
    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self::local(Outcome::NotApplied, reason::UNREACHABLE, Code::Unavailable, message)
    }

    /// The connection broke, or its state is not known, after the request was sent.
    pub(crate) fn connection_lost(message: impl Into<String>) -> Self {
        Self::local(Outcome::Unknown, reason::CONNECTION_LOST, Code::Unavailable, message)
    }

    /// The deadline passed with the request under way.
    pub(crate) fn deadline_after_sending() -> Self {
        Self::local(
            Outcome::Unknown,
            reason::DEADLINE_EXCEEDED,
            Code::DeadlineExceeded,
            "the deadline passed without an answer; the command may have been applied",
        )
    }

    /// The deadline of a read passed. Whatever became of it changed nothing.
    pub(crate) fn unanswered() -> Self {
        Self::local(
            Outcome::NotApplied,
            reason::DEADLINE_EXCEEDED,
            Code::DeadlineExceeded,
            "the deadline passed without an answer",
        )
    }

    /// The same error of a read, which is never applied: nothing about it is in doubt.
    pub(crate) fn of_read(self) -> Self {
        match (self.outcome, self.reason.as_str()) {
            (Outcome::Unknown, reason::DEADLINE_EXCEEDED) => Self::unanswered(),
            (Outcome::Unknown, _) => Self { outcome: Outcome::NotApplied, ..self },
            _ => self,
        }
    }

    /// The request of the caller is malformed.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::local(Outcome::NotApplied, reason::BAD_REQUEST, Code::InvalidArgument, message)
    }

    /// Reads a status, whether a node sent it or the transport made it.
    pub fn from_status(status: &Status) -> Self {
        match status.get_details_error_info() {
            Some(info) if info.domain == reason::DOMAIN => Self {
                outcome: outcome_of(info.metadata.get(reason::OUTCOME)),
                reason: info.reason,
                message: status.message().to_owned(),
                code: status.code(),
                leader_addr: info.metadata.get(reason::LEADER_ADDR).cloned(),
                place: LogPlace::read(|key| info.metadata.get(key)),
            },
            _ => Self::from_transport(status),
        }
    }

    /// Reads the failure of one command of a stream.
    pub fn from_failure(failure: Failure) -> Self {
        Self {
            outcome: outcome_of(failure.metadata.get(reason::OUTCOME)),
            reason: failure.reason,
            message: failure.message,
            code: Code::from_i32(failure.code),
            leader_addr: failure.metadata.get(reason::LEADER_ADDR).cloned(),
            place: LogPlace::read(|key| failure.metadata.get(key)),
        }
    }

    fn from_transport(status: &Status) -> Self {
        if caused_by::<tonic::ConnectError>(status) {
            return Self::unreachable(format!("cannot connect: {}", root(status)));
        }
        if causes(status).any(is_going_away) {
            return Self::unreachable("the node stops, and has not begun the request");
        }
        if is_broken_connection(status) && !caused_by::<tonic::TimeoutExpired>(status) {
            return Self::connection_lost(format!("the connection broke: {}", root(status)));
        }
        match status.code() {
            Code::Cancelled | Code::DeadlineExceeded => Self::deadline_after_sending(),
            // The router of the server found no such method: nothing can have happened.
            Code::Unimplemented => Self::local(
                Outcome::NotApplied,
                reason::FOREIGN,
                status.code(),
                "the server at this address does not speak this version of Lockstep",
            ),
            code => Self::local(Outcome::Unknown, reason::FOREIGN, code, status.message()),
        }
    }

    /// True when the same call may succeed soon, here or at another node, and repeating it is safe.
    pub fn is_transient(&self) -> bool {
        const REASONS: [&str; 7] = [
            reason::NOT_LEADER,
            reason::NO_LEADER,
            reason::UNINITIALIZED,
            reason::OVERLOADED,
            reason::SHUTTING_DOWN,
            reason::RECOVERING,
            reason::UNREACHABLE,
        ];
        self.outcome == Outcome::NotApplied && REASONS.contains(&self.reason.as_str())
    }

    /// True when an idempotent call may succeed soon after this error.
    pub(crate) fn is_transient_if_idempotent(&self) -> bool {
        const REASONS: [&str; 3] =
            [reason::CONNECTION_LOST, reason::LEADER_CHANGED, reason::STOPPED];
        self.is_transient() || REASONS.contains(&self.reason.as_str())
    }
}

impl LogPlace {
    fn read<'a>(metadata: impl Fn(&str) -> Option<&'a String>) -> Option<Self> {
        let number = |key| metadata(key)?.parse().ok();
        Some(Self { index: number(reason::LOG_INDEX)?, position: number(reason::LOG_POSITION)? })
    }
}

fn outcome_of(name: Option<&String>) -> Outcome {
    name.map_or(Outcome::Unknown, |name| Outcome::from_name(name))
}

/// True when the transport made this status: one that a node sent has no source.
pub(crate) fn is_broken_connection(status: &Status) -> bool {
    status.source().is_some()
}

/// True for a request that came behind the last one that a node takes: HTTP/2 says of it that it
/// was not processed (RFC 9113, section 6.8).
fn is_going_away(cause: &(dyn StdError + 'static)) -> bool {
    cause.downcast_ref::<h2::Error>().is_some_and(|error| {
        error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
    })
}

fn caused_by<E: StdError + 'static>(status: &Status) -> bool {
    causes(status).any(|cause| cause.is::<E>())
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    let mut next = status.source();
    std::iter::from_fn(move || {
        let cause = next?;
        next = cause.source();
        Some(cause)
    })
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    /// A status says exactly what its ErrorInfo says, and promises nothing without one.
    #[test]
    fn status_is_read() {
        let with_info = |outcome: &str, domain: &str| {
            let metadata = [(reason::OUTCOME, outcome), (reason::LEADER_ADDR, "127.0.0.1:1")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()));
            let details = ErrorDetails::with_error_info("NOT_LEADER", domain, metadata);
            Error::from_status(&Status::with_error_details(Code::Unavailable, "text", details))
        };
        let error = with_info("NOT_APPLIED", "lockstep");
        assert_eq!(error.outcome, Outcome::NotApplied);
        assert_eq!(error.leader_addr.as_deref(), Some("127.0.0.1:1"));
        assert!(error.is_transient());
        assert_eq!(with_info("NEWER", "lockstep").outcome, Outcome::Unknown);
        assert!(!with_info("UNKNOWN", "lockstep").is_transient());
        assert_eq!(with_info("NOT_APPLIED", "elsewhere").outcome, Outcome::Unknown);
        let bare = Error::from_status(&Status::unavailable("gone"));
        assert_eq!((bare.outcome, bare.is_transient()), (Outcome::Unknown, false));
    }
}
