//! Between openraft's types and our own, in pairs. The only place where either is taken apart.

use crate::raft::type_config::{RaftLogId, RaftMembership, RaftVote};
use crate::types::{LogId, Membership, Vote};

type RaftLeaderId = openraft::impls::leader_id_adv::LeaderId<u64, crate::types::NodeId>;

/// Our form of a log id.
pub fn log_id_from_raft(id: &RaftLogId) -> LogId {
    let leader = id.committed_leader_id();
    LogId { term: leader.term, node: leader.node_id, index: id.index() }
}

/// openraft's form of a log id.
pub fn log_id_to_raft(id: LogId) -> RaftLogId {
    RaftLogId::new(RaftLeaderId { term: id.term, node_id: id.node }, id.index)
}

/// Our form of a vote.
pub fn vote_from_raft(vote: &RaftVote) -> Vote {
    let leader = vote.leader_id();
    Vote { term: leader.term, node: leader.node_id, committed: vote.is_committed() }
}

/// openraft's form of a vote.
pub fn vote_to_raft(vote: Vote) -> RaftVote {
    if vote.committed {
        RaftVote::new_committed(vote.term, vote.node)
    } else {
        RaftVote::new(vote.term, vote.node)
    }
}

/// Our form of a membership.
pub fn membership_from_raft(membership: &RaftMembership) -> Membership {
    Membership {
        voters: membership.get_joint_config().clone(),
        members: membership.nodes().map(|(id, member)| (*id, member.clone())).collect(),
    }
}

/// openraft's form of a membership; the reason when it is none (a voter without an address).
pub fn membership_to_raft(membership: Membership) -> Result<RaftMembership, String> {
    RaftMembership::new(membership.voters, membership.members).map_err(|error| error.to_string())
}
