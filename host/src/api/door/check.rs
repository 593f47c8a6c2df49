//! What is checked of a request, once, before anything else looks at it: its sizes, its names, its
//! limits. Whoever gets past these functions need not be checked again.

use bytes::Bytes;

use super::error::Error;
use crate::config::limits;
use crate::raft::{ClusterLimits, LimitsChange};
use crate::types::{self, ModuleDigest};

/// Characters of a name that a refusal repeats.
const ECHOED_CHARS_MAX: usize = 80;

// The client library refuses what every node would refuse.
const _: () = assert!(lockstep_client::COMMAND_BYTES_MAX == limits::COMMAND_BYTES_MAX);

/// A command or a query, named by `what`.
pub(super) fn payload(what: &'static str, bytes: &Bytes) -> Result<(), Error> {
    match bytes.len() {
        0 => Err(Error::invalid(format!("{what} is empty"))),
        length if length > limits::COMMAND_BYTES_MAX => {
            Err(Error::too_large(what, length as u64, limits::COMMAND_BYTES_MAX as u64))
        }
        _ => Ok(()),
    }
}

/// The name of a machine, as `types::check_machine_name` has it.
pub(super) fn machine_name(name: &str) -> Result<(), Error> {
    let checked = types::check_machine_name(name);
    checked.map_err(|reason| Error::invalid(format!("{:?}: {reason}", echo(name))))
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
pub(super) fn address(address: &str) -> Result<(), Error> {
    let plain = address.strip_prefix("http://").unwrap_or(address);
    let checked = types::check_address(plain);
    checked.map_err(|reason| Error::invalid(format!("{:?}: {reason}", echo(address))))
}

/// An engine profile: a SHA-256 in lower-case hexadecimal.
pub(super) fn profile(profile: &str) -> Result<(), Error> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if profile.len() == 64 && profile.bytes().all(is_digit) {
        return Ok(());
    }
    Err(Error::invalid(
        "an engine profile has 64 hexadecimal digits: `lockstep version` of a build says it",
    ))
}

/// Limits for a machine, those that are given; a refusal names the field.
pub(super) fn limits(change: &LimitsChange) -> Result<(), Error> {
    change.check().map_err(|error| Error::invalid(error.to_string()))
}

/// Limits that a cluster can have.
pub(super) fn cluster_limits(limits: ClusterLimits) -> Result<(), Error> {
    limits.check().map_err(|error| Error::invalid(error.to_string()))
}

/// The digest of a module.
pub(super) fn digest(bytes: &[u8]) -> Result<ModuleDigest, Error> {
    ModuleDigest::from_slice(bytes)
        .ok_or_else(|| Error::invalid("module_digest must be a SHA-256, 32 bytes"))
}

/// A part of an export is no longer than any that a guest exports.
pub(super) fn part(bytes: &Bytes) -> Result<(), Error> {
    match bytes.len() {
        length if length > limits::IMPORT_PART_BYTES_MAX => {
            let limit = limits::IMPORT_PART_BYTES_MAX as u64;
            Err(Error::too_large("the part of an export", length as u64, limit))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names with odd characters, empty and too long ones are refused; what is echoed is cut.
    #[test]
    fn machine_names() {
        for good in ["kv", "a", "9", "my-machine_2.b", &"x".repeat(64)] {
            assert!(machine_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", ".", "a b", "a/b", "\u{e9}", "a\n", &"x".repeat(65)] {
            assert!(machine_name(bad).is_err(), "{bad}");
        }
        let long = machine_name(&"\u{e9}".repeat(1 << 20)).unwrap_err();
        assert!(long.message.len() < 300, "{}", long.message.len());
    }

    /// Addresses, profiles, digests and parts that nothing could use are refused.
    #[test]
    fn the_rest_of_a_request() {
        assert!(address("http://127.0.0.1:1").is_ok() && address("a b:1").is_err());
        assert!(profile(&"0af9".repeat(16)).is_ok());
        for bad in ["", "0af9", &"0AF9".repeat(16), &"0ag9".repeat(16), &"0af9".repeat(17)] {
            assert!(profile(bad).is_err(), "{bad}");
        }
        assert!(digest(&[7; 32]).is_ok() && digest(&[7; 31]).is_err());
        let of = |length| Bytes::from(vec![0; length]);
        assert!(part(&of(limits::IMPORT_PART_BYTES_MAX)).is_ok());
        assert!(part(&of(limits::IMPORT_PART_BYTES_MAX + 1)).is_err());
    }

    /// Limits that no machine can have are refused by their name, before they go anywhere.
    #[test]
    fn limits_are_checked() {
        assert_eq!(limits(&LimitsChange::default()), Ok(()));
        let over = LimitsChange { memory_bytes_max: Some(4 << 30), ..LimitsChange::default() };
        let reason = "memory_bytes_max must be 65536 to 4294901760, and 4294967296 is not";
        assert_eq!(limits(&over), Err(Error::invalid(reason)));
    }
}
