//! Why a request to the replica failed, named by what the caller can do about it.

use openraft::errors::{
    ChangeMembershipError, ClientWriteError, ForwardReason, ForwardToLeader, LinearizableReadError,
    RaftError,
};

use crate::raft::admin::BUSY;
use crate::raft::type_config::TypeConfig;
use crate::types::{ClusterId, Member, NodeId};

/// What is certain about a command that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certainty {
    /// It was not applied and never will be.
    NotApplied,
    /// It was applied, and came to this error on every node.
    Applied,
    /// It may have been applied, or may still be.
    Unknown,
}

/// A failed request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Another node leads; ask it.
    #[error("this node is not the leader")]
    NotLeader {
        /// The leader and how to reach it.
        leader: (NodeId, Member),
    },
    /// No leader is known (an election, a lost quorum); try again.
    #[error("no leader is known: an election is under way, or a majority cannot be reached")]
    NoLeader,
    /// The node has restarted and not applied again all that it may have shown before.
    #[error("this node has just started and is still catching up: try again")]
    Recovering,
    /// The node was never in a cluster.
    #[error("this node is in no cluster yet: run `lockstep cluster init`, or add it to one")]
    Uninitialized,
    /// Too much waits already; back off and try again.
    #[error("too much is under way: try again later")]
    Overloaded,
    /// The disk is nearly full; reads go on.
    #[error("the disk is nearly full: {0}")]
    DiskFull(String),
    /// The voters' states differ and no majority agrees; the text says which, and reads go on.
    #[error("writes have stopped: {0}")]
    Halted(String),
    /// The engine of the cluster changes; reads go on.
    #[error(
        "{0}: writes go on once a majority of the voters runs that build, or after `lockstep \
         cluster seal --cancel`"
    )]
    Sealed(String),
    /// The request is malformed, whatever the state; the text says how.
    #[error("{0}")]
    Invalid(String),
    /// A command, query or module is over its limit.
    #[error("{what} has {length} bytes, the limit is {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its length in bytes.
        length: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// No machine has this name.
    #[error("there is no machine named {0:?}")]
    NoSuchMachine(String),
    /// A machine of this name exists.
    #[error("a machine named {0:?} exists already")]
    MachineExists(String),
    /// The state of the machine is still coming in.
    #[error("machine {0:?} is being restored: it answers once its state is complete")]
    Restoring(String),
    /// The state of the machine is complete.
    #[error("{0}")]
    NotRestoring(String),
    /// The guest did not take in a part of a state, and the machine is gone; the text says why.
    #[error("the machine is removed again, because its state was not taken in: {0}")]
    ImportFailed(String),
    /// The bytes are not a module this cluster can run; the text says why.
    #[error("the module is refused: {0}")]
    ModuleRefused(String),
    /// The module was not uploaded, or some voters have not compiled it; the text names them.
    #[error("{0}")]
    ModuleNotReady(String),
    /// The cluster's state forbids it; the text says why and what repairs it.
    #[error("{0}")]
    Refused(String),
    /// The node is already in a cluster.
    #[error("this node is already in cluster {0}: cluster init is run once, on one node")]
    AlreadyInitialized(ClusterId),
    /// This node applies nothing; the text says why.
    #[error("this node is parked: {0}")]
    Parked(String),
    /// The deadline passed before the command was handed to the log.
    #[error("the deadline passed before the command was proposed")]
    DeadlineBeforeProposal,
    /// The deadline passed after it was handed to the log.
    #[error("the deadline passed; the command may be applied still")]
    DeadlineAfterProposal,
    /// Leadership was lost after the command was handed to the log.
    #[error("the leader changed while the command was under way; it may have been applied")]
    LeaderChanged,
    /// The node is stopping.
    #[error("this node is shutting down")]
    ShuttingDown,
    /// A broken invariant or a disk error stopped the replica.
    #[error("this node has stopped: {0}")]
    Stopped(String),
}

impl Error {
    /// Where openraft says the request should go; nothing was appended.
    pub(in crate::raft) fn from_forward(forward: &ForwardToLeader<TypeConfig>) -> Self {
        match (forward.leader_id, &forward.leader_node) {
            // A new leader that no quorum has confirmed yet names itself.
            _ if forward.reason == ForwardReason::LeaseExpired => Self::NoLeader,
            (Some(id), Some(member)) => Self::NotLeader { leader: (id, member.clone()) },
            _ => Self::NoLeader,
        }
    }

    /// What a failed write means for who asked for it.
    pub(in crate::raft) fn from_write(error: ClientWriteError<TypeConfig>) -> Self {
        match error {
            ClientWriteError::ForwardToLeader(forward) => Self::from_forward(&forward),
            ClientWriteError::LogEntryDiscarded(_) => Self::LeaderChanged,
            ClientWriteError::ChangeMembershipError(error) => Self::Refused(match error {
                // Another step is not committed yet, of this leader or of the one before it.
                ChangeMembershipError::InProgress(_)
                | ChangeMembershipError::UncommittedLeaderLog(_) => BUSY.to_owned(),
                ChangeMembershipError::EmptyMembership(_) => {
                    "the cluster would have no voter left".to_owned()
                }
                ChangeMembershipError::LearnerNotFound(missing) => {
                    format!("node {} is not in the cluster", missing.node_id)
                }
                ChangeMembershipError::UnsupportedMembershipTransition(_)
                | ChangeMembershipError::NodeMetadataChanged(_) => {
                    "the membership cannot be changed in this way".to_owned()
                }
            }),
            // The only one is of the second step of a change: another change came between.
            ClientWriteError::PreconditionFailed(_) => Self::LeaderChanged,
        }
    }

    /// As `from_write`, for calls that also fail when openraft has stopped.
    pub(in crate::raft) fn from_raft_write(
        error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>,
    ) -> Self {
        match error {
            RaftError::APIError(error) => Self::from_write(error),
            RaftError::Fatal(fatal) => Self::Stopped(fatal.to_string()),
        }
    }

    /// What a failed ReadIndex round means for the request that needed it.
    pub(in crate::raft) fn from_raft_read(
        error: RaftError<TypeConfig, LinearizableReadError<TypeConfig>>,
    ) -> Self {
        match error {
            RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => {
                Self::from_forward(&forward)
            }
            RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => Self::NoLeader,
            RaftError::Fatal(fatal) => Self::Stopped(fatal.to_string()),
        }
    }

    /// What is certain about the command that got this error.
    pub fn certainty(&self) -> Certainty {
        match self {
            Self::DeadlineAfterProposal | Self::LeaderChanged | Self::Stopped(_) => {
                Certainty::Unknown
            }
            Self::ImportFailed(_) => Certainty::Applied,
            _ => Certainty::NotApplied,
        }
    }
}
