//! Between openraft's types and our own, in pairs. The only place where either is taken apart.

use openraft::EntryPayload;

use crate::codec::{self, EntryBody};
use crate::raft::type_config::{EntryBytes, RaftLogId, RaftMembership, RaftVote};
use crate::types::{LogId, Member, Membership, NodeId, Vote};

type RaftLeaderId = openraft::impls::leader_id_adv::LeaderId<u64, NodeId>;
type RaftPayload = EntryPayload<EntryBytes, NodeId, Member>;

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

/// Our form of what an entry holds.
pub fn body_from_raft(payload: RaftPayload) -> EntryBody {
    match payload {
        EntryPayload::Blank => EntryBody::Blank,
        EntryPayload::Normal(EntryBytes(bytes)) => EntryBody::Proposal(bytes),
        EntryPayload::Membership(membership) => {
            EntryBody::Membership(membership_from_raft(&membership))
        }
    }
}

/// openraft's form of what an entry holds.
pub fn body_to_raft(body: EntryBody) -> Result<RaftPayload, codec::Error> {
    Ok(match body {
        EntryBody::Blank => EntryPayload::Blank,
        EntryBody::Proposal(bytes) => EntryPayload::Normal(EntryBytes(bytes)),
        EntryBody::Membership(membership) => {
            let membership = membership_to_raft(membership);
            EntryPayload::Membership(membership.map_err(|_| codec::Error::Value("membership"))?)
        }
    })
}
