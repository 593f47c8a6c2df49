//! The network of openraft over gRPC: what this node asks of its peers, and what it does when
//! they ask.
//!
//! Out: [`Network`] makes a client for each peer; AppendEntries go down one stream with many in
//! flight, heartbeats and votes have a connection of their own, snapshots another, so that none
//! waits behind a bigger one. In: [`PeerHandler`], which `api::peer` serves. Both sides begin with
//! the handshake of [`Local`].
//!
//! The messages are in proto/peer.proto, their payloads in `payload` (docs/formats.md, "Peer
//! messages"). Nothing here keeps state that matters after a restart, and nothing is spawned that
//! outlives the call or the stream that it serves.

mod alarms;
mod client;
mod connections;
mod gate;
mod handler;
mod heard;
mod hello;
mod known;
mod payload;
mod pipeline;
mod receive_snapshot;
mod refusal;
mod roster;
mod send_snapshot;

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::types::{LogIndex, Term};

pub use connections::{Leads, Network, Times};
pub use gate::Parts;
pub use handler::{Machine, PeerHandler};
pub use heard::Heard;
pub use hello::{Adopt, Local, PROTOCOL_VERSION};
pub use known::{Known, Votes};
pub use refusal::Refusal;

/// Longest message between nodes, in bytes. Requests are cut to size by whoever reads the log;
/// this only has to be above the longest single entry.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// Longest message from a caller that has not said hello before it, in bytes: above the longest
/// hello, vote, proposal and description of a snapshot.
pub const FIRST_MESSAGE_BYTES_MAX: usize = 128 << 10;

/// HTTP/2 flow control window of a connection between nodes, in bytes: more than a fast link
/// holds in flight, so that appends and snapshots never wait for window updates. Whoever connects
/// can make a node hold this much before it has said hello.
pub const WINDOW_BYTES: u32 = 4 << 20;

/// An idle connection is probed this often, so that a peer that vanished is noticed.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);

/// A connection is given up when a probe is not answered for so long.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Longest entry that a peer may propose, in bytes: internal ones are short.
pub const PROPOSAL_BYTES_MAX: usize = 8 << 10;

/// A caller's term may be so much above this node's: more elections than there are in half a year
/// of one a second. Terms are below 2^62, so whoever wants to use them up needs 2^38 calls.
pub const TERM_JUMP_MAX: Term = 1 << 24;

/// A caller that opens a stream must say hello within this.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a call of a peer was not done, named by what the peer can do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The handshake failed; trying again will not help until an operator has acted.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The message is not what a node of this version sends.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// The call is for the leader, and this node is not it.
    #[error("this node is not the leader")]
    NotLeader,
    /// The call was overtaken by a later one of the same kind.
    #[error("a later transfer took the place of this one")]
    Superseded,
    /// A snapshot holds another state than the cluster agreed on.
    #[error("the snapshot at index {index} is not what the cluster agreed on: {reason}")]
    NotAgreed {
        /// Index of the checkpoint.
        index: LogIndex,
        /// Who knows another state of it.
        reason: String,
    },
    /// The disk has no room for what the peer sends; it may try again until there is.
    #[error("its disk is nearly full: it takes no entries and no snapshot until there is room")]
    DiskFull,
    /// The disk or the stream failed under the call; it may be tried again.
    #[error("{0}")]
    Failed(String),
    /// This node applies nothing, and so must not lead; the text says why.
    #[error("this node is parked: {0}")]
    Parked(String),
    /// This node waits in vain for its disk or a guest, and so should not lead.
    #[error("{0}")]
    Stalled(String),
    /// This node takes no more calls.
    #[error("this node has stopped: {0}")]
    Stopped(String),
}

impl From<payload::Error> for Rejected {
    fn from(error: payload::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}
