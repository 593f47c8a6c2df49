//! Why a peer may not talk to this node, in words for both.

use super::TERM_JUMP_MAX;
use crate::types::{ClusterId, NodeId, Term};

/// Why a peer may not talk to this node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The message holds no hello, or one of wrong form.
    #[error("the message does not say who sends it")]
    Nameless,
    /// The peer speaks another version.
    #[error("version {theirs} of the peer protocol is spoken there, version {ours} here")]
    Version {
        /// The caller's.
        theirs: u32,
        /// This node's.
        ours: u32,
    },
    /// The call was meant for another node: an address is wrong.
    #[error("node {meant} was called, and this is node {this}: its peer address is wrong")]
    OtherNode {
        /// Whom the caller wanted.
        meant: NodeId,
        /// Whom it reached.
        this: NodeId,
    },
    /// The caller claims this node's own id.
    #[error(
        "the caller is node {node} too: an address leads a node back to itself, or two nodes were \
         started with one id"
    )]
    Namesake {
        /// The id.
        node: NodeId,
    },
    /// The call was meant for this node id on another disk.
    #[error(
        "this node's disk is not the one that joined as node {node}: it was wiped or replaced. \
         Repair: remove node {node}, start it with a new id on an empty folder, add it"
    )]
    OtherDisk {
        /// The node id.
        node: NodeId,
    },
    /// The caller's node id joined with another disk.
    #[error(
        "the disk of node {node} is not the one that joined as node {node}: it was wiped or \
         replaced. Repair: remove node {node}, start it with a new id on an empty folder, add it"
    )]
    CallersDisk {
        /// The caller.
        node: NodeId,
    },
    /// The caller is no member.
    #[error(
        "node {node} is no member of this cluster as far as this node knows, and no member that it \
         could ask says otherwise. If it is one, and all members that this node knows are gone: \
         name it in `trusted_peers` of this node's configuration"
    )]
    Stranger {
        /// The caller.
        node: NodeId,
    },
    /// The caller was a member.
    #[error("node {node} was removed from this cluster")]
    Removed {
        /// The caller.
        node: NodeId,
    },
    /// The caller's term is out of all proportion.
    #[error(
        "node {node} calls with term {theirs}, and this node has term {ours}: a term grows by one \
         with each election, and never by more than {max} while a node is away",
        max = TERM_JUMP_MAX
    )]
    TermJump {
        /// The caller.
        node: NodeId,
        /// Its term.
        theirs: Term,
        /// This node's.
        ours: Term,
    },
    /// The caller claims what the node in whose name it calls does not say.
    #[error(
        "a caller in the name of node {node} says that this node's log went back, and node {node} \
         itself does not say so"
    )]
    FalseClaim {
        /// In whose name it calls.
        node: NodeId,
    },
    /// The caller is of another cluster.
    #[error("node {node} is of cluster {theirs}, this node of cluster {ours}")]
    OtherCluster {
        /// The caller.
        node: NodeId,
        /// Its cluster.
        theirs: ClusterId,
        /// This node's.
        ours: ClusterId,
    },
    /// The log of this node has lost what it acknowledged.
    #[error("{0}")]
    WentBack(String),
    /// This node is in no cluster yet and could not note down the caller's.
    #[error("this node could not join cluster {cluster}: {reason}")]
    NotAdopted {
        /// The caller's cluster.
        cluster: ClusterId,
        /// What went wrong.
        reason: String,
    },
}
