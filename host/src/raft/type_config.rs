//! The types openraft is instantiated with. No openraft type is ever written to disk or wire:
//! `convert` maps them to the types of `crate::types` and back.

use std::fmt;

use bytes::Bytes;

use crate::machine::Response;
use crate::types::{Member, NodeId};

/// A proposal in its encoded form, envelope included (docs/formats.md, "Log entries"). It is
/// encoded once, and these bytes go to disk and to the peers.
#[derive(Clone, PartialEq, Eq)]
pub struct EntryBytes(pub Bytes);

impl fmt::Debug for EntryBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EntryBytes({} bytes)", self.0.len())
    }
}

impl fmt::Display for EntryBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry of {} bytes", self.0.len())
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peers {} clients {}", self.peer_addr, self.client_addr)
    }
}

openraft::declare_raft_types!(
    /// Lockstep's instance of openraft.
    pub TypeConfig:
        D = EntryBytes,
        R = Response,
        NodeId = NodeId,
        Node = Member,
);

/// A log entry as openraft handles it.
pub type Entry = <TypeConfig as openraft::RaftTypeConfig>::Entry;
/// A log id as openraft handles it.
pub type RaftLogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
/// A vote as openraft handles it.
pub type RaftVote = openraft::type_config::alias::VoteOf<TypeConfig>;
/// A membership as openraft handles it.
pub type RaftMembership = openraft::Membership<NodeId, Member>;
/// A membership with the log id of its entry.
pub type RaftStoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
/// What identifies a snapshot to openraft.
pub type RaftSnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
