//! The nouns that every module of the daemon shares: ids, log positions, commands and outcomes.
//!
//! Nothing here knows the wire, the disk, wasm or openraft: those modules convert at their edge.
//! Invariant: a value of one of these types is valid; parsing happens before it is made.

use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Position of an entry in the log, counted from 0. Never a count and never a size.
pub type LogIndex = u64;
/// Raft term (Raft paper, section 5.1).
pub type Term = u64;
/// Milliseconds since the Unix epoch, as stamped into entries by the leader.
pub type TimeMs = u64;

/// Id of a node: chosen by the operator, never reused for another disk.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct NodeId(pub u64);

impl From<u64> for NodeId {
    fn from(id: u64) -> Self {
        Self(id)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Id of a machine: the log index of the entry that created it, so that a queued command never
/// meets a later machine of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MachineId(pub u64);

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Random id of a cluster, made by `cluster init` and checked on every contact between nodes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub [u8; 16]);

/// Random id of one data directory. A node whose disk was wiped comes back with another one,
/// which is how its peers notice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub [u8; 16]);

/// SHA-256 of a module's bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ModuleDigest(pub [u8; 32]);

/// Digest of all replicated state at a log index: equal on all nodes, or they have diverged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StateDigest(pub [u8; 32]);

macro_rules! hex_id {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl $name {
            /// Takes the id from bytes; `None` when the length is wrong.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
        }
    };
}

hex_id!(ClusterId);
hex_id!(Incarnation);
hex_id!(ModuleDigest);
hex_id!(StateDigest);

/// Identity of a log entry: the leader that proposed it and its place (Raft paper, section 5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogId {
    /// Term of the proposing leader.
    pub term: Term,
    /// The proposing leader.
    pub node: NodeId,
    /// Place in the log.
    pub index: LogIndex,
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.term, self.node, self.index)
    }
}

/// The hard state of Raft: for whom this node voted, and whether a quorum granted that vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Vote {
    /// Term of the vote.
    pub term: Term,
    /// The candidate voted for.
    pub node: NodeId,
    /// True once a quorum granted it, that is once `node` is the leader of `term`.
    pub committed: bool,
}

/// What the membership says of a node: how to reach it, and which disk it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Where its peers dial it, `host:port`.
    pub peer_addr: String,
    /// Where clients dial it, `host:port`.
    pub client_addr: String,
    /// The data directory that joined under this id; all zeros only in tests of the log store.
    pub incarnation: [u8; 16],
}

/// The membership configuration: one voter set, or two while a change is under way
/// (Raft paper, section 6), and how to reach every node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Voter sets: one, or the old and the new one of a joint configuration.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// Every node, voter or learner.
    pub members: std::collections::BTreeMap<NodeId, Member>,
}

impl Membership {
    /// True when `node` votes in any of the configurations.
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.iter().any(|set| set.contains(&node))
    }

    /// Every voter of every configuration, each once, in order.
    pub fn voter_ids(&self) -> BTreeSet<NodeId> {
        self.voters.iter().flatten().copied().collect()
    }

    /// True when the nodes are more than half of the voters of each configuration.
    pub fn is_majority(&self, nodes: &BTreeSet<NodeId>) -> bool {
        let has_majority =
            |voters: &BTreeSet<NodeId>| 2 * voters.intersection(nodes).count() > voters.len();
        !self.voters.is_empty() && self.voters.iter().all(has_majority)
    }
}

/// A client's place in the order of its own commands, so that a retry is applied once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SessionSlot {
    /// The session, which is the log index that opened it.
    pub session: u64,
    /// Number of the command within the session, from 1.
    pub sequence: u64,
    /// Highest sequence whose reply the client has; stored replies up to it may be dropped.
    pub acknowledged_up_to: u64,
}

/// Bytes that may change a machine, ordered by the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The machine it is for.
    pub machine: MachineId,
    /// Where it stands in its session; `None` for a command without one, which is at-least-once
    /// if the client retries it after an unknown outcome.
    pub session: Option<SessionSlot>,
    /// What the guest will see.
    pub bytes: Bytes,
}

/// What a committed command came to. It is a value of the replicated state machine: the same on
/// every node that applied the entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest answered.
    Accepted(Bytes),
    /// The guest answered, and says that it refused the command.
    Rejected(Bytes),
    /// The guest trapped; the text is the trap's, without addresses.
    Trapped(String),
    /// The call used up its fuel.
    OutOfFuel {
        /// The limit of the machine that gave it so much, by its name.
        limit: &'static str,
        /// How much it had, and used.
        fuel: u64,
    },
    /// A reply was longer than the limit, in bytes.
    TooLarge {
        /// Length of the reply.
        length: u64,
        /// The limit.
        limit: u64,
    },
    /// No machine has this id (any more).
    NoSuchMachine,
    /// It was not executed: the replies to the commands before it in its entry have as many bytes
    /// as those of one entry may have.
    NotReached,
}

impl Outcome {
    /// The command was executed, and the guest gave no answer.
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Trapped(_) | Self::OutOfFuel { .. } | Self::TooLarge { .. })
    }

    /// Bytes that it holds.
    pub fn length(&self) -> usize {
        match self {
            Self::Accepted(reply) | Self::Rejected(reply) => reply.len(),
            Self::Trapped(reason) => reason.len(),
            Self::OutOfFuel { .. }
            | Self::TooLarge { .. }
            | Self::NoSuchMachine
            | Self::NotReached => 0,
        }
    }
}

/// Length of a machine name, in bytes.
pub const MACHINE_NAME_BYTES_MAX: usize = 64;

/// Checks a machine name: 1 to 64 of a-z, A-Z, 0-9, `-`, `_` and `.`, beginning with a letter or
/// a digit. The error is a sentence.
pub fn check_machine_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > MACHINE_NAME_BYTES_MAX {
        return Err("a machine name has 1 to 64 characters");
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err("a machine name has only the characters a-z, A-Z, 0-9, '-', '_' and '.'");
    }
    if !name.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        return Err("a machine name begins with a letter or a digit");
    }
    Ok(())
}

/// Length of an address, in bytes: a name of the Domain Name System, and a port.
pub const ADDRESS_BYTES_MAX: usize = 260;

/// Checks where a node can be reached: a host, a colon and a port, in printable ASCII characters
/// without spaces. The error is a sentence.
pub fn check_address(address: &str) -> Result<(), &'static str> {
    if address.len() > ADDRESS_BYTES_MAX {
        return Err("an address has at most 260 characters");
    }
    if !address.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("an address has no spaces and no control characters");
    }
    match address.rsplit_once(':') {
        Some((host, port))
            if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) =>
        {
            Ok(())
        }
        _ => Err("an address is HOST:PORT"),
    }
}

impl NodeId {
    /// Checks an id that somebody else says: 0 stands for none, and the last id for no end. The
    /// error is a sentence.
    pub fn check(self) -> Result<(), &'static str> {
        match self.0 {
            0 | u64::MAX => Err("a node id is from 1 to 18446744073709551614"),
            _ => Ok(()),
        }
    }
}

impl Member {
    /// Checks what somebody else says of a node. The error is a sentence.
    pub fn check(&self) -> Result<(), &'static str> {
        check_address(&self.peer_addr).and_then(|()| check_address(&self.client_addr))
    }
}

/// The beginning of a digest or an engine profile in hexadecimal digits, enough to tell it apart.
pub fn short(digits: &str) -> &str {
    digits.get(..12).unwrap_or(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids and addresses that others say are bounded before they go anywhere.
    #[test]
    fn ids_and_addresses() {
        for good in ["127.0.0.1:1", "[::1]:7400", "node-1.example:65535"] {
            assert_eq!(check_address(good), Ok(()), "{good}");
        }
        let long = format!("{}:1", "x".repeat(ADDRESS_BYTES_MAX));
        for bad in ["", ":1", "a", "a:0", "a:65536", "a b:1", "a\n:1", "\u{e9}:1", &long] {
            assert!(check_address(bad).is_err(), "{bad:?}");
        }
        assert!(NodeId(1).check().is_ok() && NodeId(u64::MAX - 1).check().is_ok());
        assert!(NodeId(0).check().is_err() && NodeId(u64::MAX).check().is_err());
    }

    /// Every voter set must have a majority, and no set at all is none.
    #[test]
    fn a_majority_of_every_set() {
        let set =
            |nodes: &[u64]| -> BTreeSet<NodeId> { nodes.iter().copied().map(NodeId).collect() };
        type Row = (&'static [&'static [u64]], &'static [u64], bool);
        let rows: [Row; 7] = [
            (&[], &[], false),
            (&[&[1]], &[1], true),
            (&[&[1, 2]], &[1], false),
            (&[&[1, 2, 3]], &[2, 3], true),
            (&[&[1, 2, 3]], &[3, 4, 5], false),
            (&[&[1, 2, 3], &[3, 4, 5]], &[1, 2, 3], false),
            (&[&[1, 2, 3], &[3, 4, 5]], &[2, 3, 4], true),
        ];
        for (voters, nodes, expected) in rows {
            let membership = Membership {
                voters: voters.iter().map(|voters| set(voters)).collect(),
                ..Membership::default()
            };
            assert_eq!(membership.is_majority(&set(nodes)), expected, "{voters:?}, {nodes:?}");
        }
    }
}
