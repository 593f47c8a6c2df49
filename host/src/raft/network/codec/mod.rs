//! The payloads of messages between nodes: Lockstep's own bytes, no openraft type among them
//! (docs/formats.md, "Peer messages").
//!
//! Every payload begins with a version byte and ends with a CRC32C. Decoding is strict: a payload
//! is exactly what an encoder of this version writes, or an error, and never a panic.
//!
//! **Invariant:** what decodes is sane by itself: terms and indices are below [`POSITION_MAX`],
//! entries follow each other, none is of a later term than the vote it came under.

mod append;
mod bytes_io;
mod election;
mod snapshot;

#[cfg(test)]
mod tests;

pub(super) use append::{decode_append, decode_append_result, encode_append, encode_append_result};
pub(super) use election::{
    decode_transfer, decode_transfer_result, decode_vote_request, decode_vote_result,
    encode_transfer, encode_transfer_result, encode_vote_request, encode_vote_result,
};
pub(super) use snapshot::{
    SnapshotHead, decode_snapshot_head, decode_snapshot_id, decode_vote, encode_snapshot_head,
    encode_snapshot_id, encode_vote,
};

/// Terms and indices from a peer must stay below this: a real cluster never gets near it, and
/// arithmetic on what is below never overflows.
pub(super) const POSITION_MAX: u64 = 1 << 62;

/// Entries in one message, at most.
pub(super) const ENTRIES_MAX: usize = 1 << 16;

/// An encoded membership, at most, in bytes.
const MEMBERSHIP_BYTES_MAX: usize = 1 << 20;

/// Why bytes of a peer are not a payload of this version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The payload ends early, or more follows than belongs to it.
    #[error("the payload has the wrong length")]
    Length,
    /// It was written by another version of this format, or is none.
    #[error("the payload has version {0}")]
    Version(u8),
    /// Bits changed on the way.
    #[error("the checksum of the payload does not match")]
    Checksum,
    /// A value is none that an encoder writes.
    #[error("the payload holds an impossible {0}")]
    Value(&'static str),
    /// There is more of something than may be.
    #[error("{what}: {count}, and {limit} are allowed")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How much there is.
        count: usize,
        /// How much may be.
        limit: usize,
    },
}
