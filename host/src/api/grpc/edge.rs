//! What is checked of a request, once, before anything else looks at it: its deadline, its sizes,
//! its names. Whoever gets what these functions return need not check it again.

use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_client::{FORWARD_HEADER, FORWARDED_HEADER};
use lockstep_proto::v1;
use tonic::Request;
use tonic::metadata::MetadataMap;

use super::convert;
use super::error::{Error, sessions_unsupported};
use crate::budget::{Account, Held};
use crate::config::limits;
use crate::raft;
use crate::types;

/// No request may wait for longer, whatever it asks for.
const COMMAND_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// How long an admin request without a deadline of its own may take: modules are compiled.
pub(super) const ADMIN_TIMEOUT: Duration = Duration::from_secs(60);
/// No admin request may wait for longer.
pub(super) const ADMIN_TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// The replica's deadline is a tenth earlier than the client's, at most by this, so that what is
/// certain about the command reaches the client before it gives up.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(20);

/// Shorter commands and queries are copied out of what was read.
const SHARED_BYTES_MIN: usize = 256 << 10;
/// Characters of a name that a refusal repeats.
const ECHOED_CHARS_MAX: usize = 80;

// The client library refuses what every node would refuse.
const _: () = assert!(lockstep_client::COMMAND_BYTES_MAX == limits::COMMAND_BYTES_MAX);

/// Where a request comes from and until when it must be answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    /// When the replica must have answered.
    pub(super) deadline: Instant,
    /// Another node passed it on: it goes no further.
    pub(super) forwarded: bool,
    /// The client asks this node to pass it on, since it cannot reach the leader itself.
    pub(super) forward: bool,
}

impl Origin {
    /// Of a command or query.
    pub(super) fn of_command(metadata: &MetadataMap, default: Duration) -> Self {
        Self::new(metadata, default, COMMAND_TIMEOUT_MAX)
    }

    /// Of an admin request.
    pub(super) fn of_admin(metadata: &MetadataMap) -> Self {
        Self::new(metadata, ADMIN_TIMEOUT, ADMIN_TIMEOUT_MAX)
    }

    fn new(metadata: &MetadataMap, default: Duration, max: Duration) -> Self {
        let timeout = asked_timeout(metadata.as_ref()).unwrap_or(default);
        Self {
            deadline: deadline_in(timeout.min(max)),
            forwarded: metadata.contains_key(FORWARDED_HEADER),
            forward: metadata.contains_key(FORWARD_HEADER),
        }
    }

    /// What is left of it.
    pub(super) fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// The same origin for one command of a stream, which has a time limit of its own; 0 stands
    /// for the default.
    pub(super) fn within(self, timeout_ms: u32, default: Duration) -> Self {
        let timeout = match timeout_ms {
            0 => default,
            asked => Duration::from_millis(asked.into()),
        };
        Self { deadline: deadline_in(timeout.min(COMMAND_TIMEOUT_MAX)), ..self }
    }
}

fn deadline_in(timeout: Duration) -> Instant {
    Instant::now() + timeout - (timeout / 10).min(ANSWER_TIME_MAX)
}

/// How long the client waits, if it says so.
pub(super) fn asked_timeout(headers: &http::HeaderMap) -> Option<Duration> {
    parse_timeout(headers.get("grpc-timeout")?.to_str().ok()?)
}

/// Reads `grpc-timeout`: at most eight digits and a unit (gRPC over HTTP/2, "Requests"). `None`
/// for anything else, as if it were absent.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (unit_at, unit) = text.char_indices().last()?;
    let digits = &text[..unit_at];
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(value * 3600)),
        'M' => Some(Duration::from_secs(value * 60)),
        'S' => Some(Duration::from_secs(value)),
        'm' => Some(Duration::from_millis(value)),
        'u' => Some(Duration::from_micros(value)),
        'n' => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

/// The account of the connection by which a request came.
pub(super) fn account<T>(request: &Request<T>) -> Account {
    let account = request.extensions().get::<Account>();
    account.expect("every connection has an account").clone()
}

/// Room for a command or query and its reply.
pub(super) fn begin(account: &Account, bytes: &Bytes) -> Result<Held, Error> {
    account.begin(bytes.len()).map_err(|_| raft::Error::Overloaded.into())
}

/// Bytes that keep no neighbours in memory: a message is a part of the buffer it was read into,
/// which stays as long as any part of it. Long ones are most of theirs.
pub(super) fn on_its_own(bytes: Bytes) -> Bytes {
    if bytes.len() < SHARED_BYTES_MIN { Bytes::copy_from_slice(&bytes) } else { bytes }
}

/// Checks a command.
pub(super) fn check_execute(request: &v1::ExecuteRequest) -> Result<(), Error> {
    if request.session.is_some() {
        return Err(sessions_unsupported());
    }
    check_machine_name(&request.machine)?;
    check_bytes("the command", &request.command)
}

/// Checks a query.
pub(super) fn check_query(request: &v1::QueryRequest) -> Result<raft::Consistency, Error> {
    check_machine_name(&request.machine)?;
    check_bytes("the query", &request.query)?;
    match v1::Consistency::try_from(request.consistency) {
        Ok(v1::Consistency::Linearizable) => Ok(raft::Consistency::Linearizable),
        Ok(v1::Consistency::Stale) => Ok(raft::Consistency::Stale),
        Err(_) => Err(invalid(format!("consistency {} is not known", request.consistency))),
    }
}

fn check_bytes(what: &'static str, bytes: &Bytes) -> Result<(), Error> {
    match bytes.len() {
        0 => Err(invalid(format!("{what} is empty"))),
        length if length > limits::COMMAND_BYTES_MAX => {
            Err(too_large(what, length as u64, limits::COMMAND_BYTES_MAX as u64))
        }
        _ => Ok(()),
    }
}

/// The name of a machine, as `types::check_machine_name` has it.
pub(super) fn check_machine_name(name: &str) -> Result<(), Error> {
    types::check_machine_name(name).map_err(|reason| invalid(format!("{:?}: {reason}", echo(name))))
}

/// As much of what a client sent as an error repeats.
pub(super) fn echo(text: &str) -> String {
    match text.char_indices().nth(ECHOED_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Where an operator says that a node is: as `types::check_address` has it, with or without the
/// scheme.
pub(super) fn check_address(address: &str) -> Result<(), Error> {
    let plain = address.strip_prefix("http://").unwrap_or(address);
    types::check_address(plain).map_err(|reason| invalid(format!("{:?}: {reason}", echo(address))))
}

/// An engine profile: a SHA-256 in lower-case hexadecimal.
pub(super) fn check_profile(profile: &str) -> Result<(), Error> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if profile.len() == 64 && profile.bytes().all(is_digit) {
        return Ok(());
    }
    Err(invalid(
        "an engine profile has 64 hexadecimal digits: `lockstep version` of a build says it",
    ))
}

/// Limits for a machine, those that are given; a refusal names the field.
pub(super) fn check_limits(limits: &v1::Limits) -> Result<raft::LimitsChange, Error> {
    let change = convert::limits_change(limits);
    change.check().map_err(|error| invalid(error.to_string()))?;
    Ok(change)
}

/// The digest of a module.
pub(super) fn check_digest(bytes: &[u8]) -> Result<types::ModuleDigest, Error> {
    types::ModuleDigest::from_slice(bytes)
        .ok_or_else(|| invalid("module_digest must be a SHA-256, 32 bytes"))
}

/// A part of an export is no longer than any that a guest exports.
pub(super) fn check_part(part: &raft::StatePart) -> Result<(), Error> {
    match part.bytes.len() {
        length if length > limits::IMPORT_PART_BYTES_MAX => {
            let limit = limits::IMPORT_PART_BYTES_MAX as u64;
            Err(too_large("the part of an export", length as u64, limit))
        }
        _ => Ok(()),
    }
}

/// A malformed request.
pub(super) fn invalid(message: impl Into<String>) -> Error {
    raft::Error::Invalid(message.into()).into()
}

/// Something over its limit, in bytes.
pub(super) fn too_large(what: &'static str, length: u64, limit: u64) -> Error {
    raft::Error::TooLarge { what, length, limit }.into()
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    /// grpc-timeout is read as the gRPC specification has it, and ignored when malformed.
    #[test]
    fn timeouts_are_parsed() {
        let check = |text, expected| assert_eq!(parse_timeout(text), expected, "{text}");
        check("1S", Some(Duration::from_secs(1)));
        check("99999999H", Some(Duration::from_secs(99_999_999 * 3600)));
        check("2M", Some(Duration::from_secs(120)));
        check("50m", Some(Duration::from_millis(50)));
        check("7u", Some(Duration::from_micros(7)));
        check("0n", Some(Duration::ZERO));
        for bad in ["", "S", "5", "-1S", "1s", "123456789S", "1.5S", "1\u{e9}"] {
            check(bad, None);
        }
    }

    /// The replica gets less time than the client gives, and never more than the maximum.
    #[test]
    fn deadlines_are_bounded() {
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", "1S".parse().unwrap());
        let start = Instant::now();
        let origin = Origin::of_command(&metadata, Duration::from_secs(5));
        assert!(origin.deadline < start + Duration::from_secs(1));
        metadata.insert("grpc-timeout", "9999H".parse().unwrap());
        assert!(
            Origin::of_command(&metadata, Duration::from_secs(5)).remaining()
                <= COMMAND_TIMEOUT_MAX
        );
        assert!(!origin.forwarded);
        metadata.insert(FORWARDED_HEADER, "1".parse().unwrap());
        assert!(Origin::of_admin(&metadata).forwarded);
        assert!(!origin.forward);
        metadata.insert(FORWARD_HEADER, "1".parse().unwrap());
        assert!(Origin::of_admin(&metadata).forward);
    }

    /// Names with odd characters, empty and too long ones are refused.
    #[test]
    fn machine_names() {
        for good in ["kv", "a", "9", "my-machine_2.b", &"x".repeat(64)] {
            assert!(check_machine_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", ".", "a b", "a/b", "\u{e9}", "a\n", &"x".repeat(65)] {
            assert!(check_machine_name(bad).is_err(), "{bad}");
        }
        let long = check_machine_name(&"\u{e9}".repeat(1 << 20)).unwrap_err();
        assert!(Status::from(long).message().len() < 300, "what is echoed is cut");
        assert!(check_address("http://127.0.0.1:1").is_ok() && check_address("a b:1").is_err());
        assert!(check_profile(&"0af9".repeat(16)).is_ok());
        for bad in ["", "0af9", &"0AF9".repeat(16), &"0ag9".repeat(16), &"0af9".repeat(17)] {
            assert!(check_profile(bad).is_err(), "{bad}");
        }
    }

    /// Limits that no machine can have are refused by their name, before they go anywhere; those
    /// that are given arrive as they are.
    #[test]
    fn limits_are_checked() {
        let given = v1::Limits {
            fuel_per_command: Some(1_000_001),
            fuel_per_query: Some(1_000_002),
            fuel_per_export_step: Some(1_000_000_003),
            memory_bytes_max: Some(100_004),
            table_elements_max: Some(5),
            reply_bytes_max: Some(6),
            export_bytes_max: Some(300_007),
        };
        let expected = raft::LimitsChange {
            fuel_per_command: Some(1_000_001),
            fuel_per_query: Some(1_000_002),
            fuel_per_export_step: Some(1_000_000_003),
            memory_bytes_max: Some(100_004),
            table_elements_max: Some(5),
            reply_bytes_max: Some(6),
            export_bytes_max: Some(300_007),
        };
        assert_eq!(check_limits(&given), Ok(expected));
        assert_eq!(check_limits(&v1::Limits::default()), Ok(raft::LimitsChange::default()));
        let over = v1::Limits { memory_bytes_max: Some(4 << 30), ..v1::Limits::default() };
        let reason = "memory_bytes_max must be 65536 to 4294901760, and 4294967296 is not";
        assert_eq!(check_limits(&over), Err(invalid(reason)));
    }

    /// Commands that are empty, too long, or in a session are refused before they go anywhere.
    #[test]
    fn commands_are_checked() {
        let request = |length: usize| v1::ExecuteRequest {
            machine: "kv".into(),
            command: vec![b'x'; length].into(),
            session: None,
        };
        assert!(check_execute(&request(1)).is_ok());
        assert!(check_execute(&request(limits::COMMAND_BYTES_MAX)).is_ok());
        assert!(check_execute(&request(0)).is_err());
        assert!(check_execute(&request(limits::COMMAND_BYTES_MAX + 1)).is_err());
        let with_session =
            v1::ExecuteRequest { session: Some(v1::SessionSlot::default()), ..request(1) };
        assert_eq!(check_execute(&with_session), Err(sessions_unsupported()));
        let query = v1::QueryRequest { machine: "kv".into(), query: "x".into(), consistency: 9 };
        assert!(check_query(&query).is_err());
    }
}
