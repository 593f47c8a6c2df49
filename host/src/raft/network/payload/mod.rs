//! The payloads of messages between nodes: Lockstep's own bytes, no openraft type among them
//! (docs/formats.md, "Peer messages").
//!
//! Every payload begins with a version byte and ends with a CRC32C. Decoding is strict: a payload
//! is exactly what an encoder of this version writes, or an error, and never a panic.
//!
//! **Invariant:** what decodes is sane by itself: its fields are (`crate::codec`), entries follow
//! each other, none is of a later term than the vote it came under.

mod append;
mod election;
mod envelope;
mod snapshot;

#[cfg(test)]
mod same_bytes_tests;
#[cfg(test)]
mod tests;

pub(super) use crate::codec::Error;
pub(super) use append::{decode_append, decode_append_result, encode_append, encode_append_result};
pub(super) use election::{
    decode_transfer, decode_transfer_result, decode_vote_request, decode_vote_result,
    encode_transfer, encode_transfer_result, encode_vote_request, encode_vote_result,
};
pub(super) use snapshot::{
    SnapshotHead, decode_snapshot_head, decode_snapshot_id, decode_vote, encode_snapshot_head,
    encode_snapshot_id, encode_vote,
};

/// Entries in one message, at most.
pub(super) const ENTRIES_MAX: usize = 1 << 16;
