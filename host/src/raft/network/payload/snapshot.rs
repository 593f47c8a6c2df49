//! What goes before a snapshot's bytes and what comes after them (Raft paper, section 7).

use bytes::{BufMut as _, Bytes};

use super::envelope;
use crate::codec::{Error, Reader, put_log_id, put_membership, put_option, put_vote};
use crate::raft::store::convert::{
    log_id_from_raft, log_id_to_raft, membership_from_raft, membership_to_raft, vote_from_raft,
    vote_to_raft,
};
use crate::raft::type_config::{RaftSnapshotMeta, RaftStoredMembership, RaftVote};
use crate::storage::snapshot::SnapshotId;

/// The first message of a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::raft::network) struct SnapshotHead {
    /// The leader's vote.
    pub(in crate::raft::network) vote: RaftVote,
    /// Which file follows.
    pub(in crate::raft::network) id: SnapshotId,
    /// What openraft wants to know of it.
    pub(in crate::raft::network) meta: RaftSnapshotMeta,
}

pub(in crate::raft::network) fn encode_snapshot_head(head: &SnapshotHead) -> Bytes {
    let mut payload = envelope::begin(256);
    put_vote(&mut payload, vote_from_raft(&head.vote));
    write_id(&mut payload, &head.id);
    let membership = &head.meta.last_membership;
    put_option(&mut payload, membership.log_id().as_ref().map(log_id_from_raft), put_log_id);
    put_membership(&mut payload, &membership_from_raft(membership.membership()));
    envelope::finish(payload, &[])
}

pub(in crate::raft::network) fn decode_snapshot_head(
    payload: &[u8],
) -> Result<SnapshotHead, Error> {
    let mut payload = envelope::open(payload, &[])?;
    let vote = payload.vote()?;
    if !vote.committed {
        return Err(Error::Value("vote: only a leader sends a snapshot"));
    }
    let id = read_id(&mut payload)?;
    let membership_id = payload.option(Reader::log_id)?;
    if membership_id > id.last || id.last.is_some_and(|last| last.term > vote.term) {
        return Err(Error::Value("log id of a snapshot"));
    }
    let membership = membership_to_raft(payload.membership()?);
    let membership = membership.map_err(|_| Error::Value("membership"))?;
    payload.finish()?;
    let meta = RaftSnapshotMeta {
        last_log_id: id.last.map(log_id_to_raft),
        last_membership: RaftStoredMembership::new(membership_id.map(log_id_to_raft), membership),
    };
    Ok(SnapshotHead { vote: vote_to_raft(vote), id, meta })
}

pub(in crate::raft::network) fn encode_snapshot_id(id: &SnapshotId) -> Bytes {
    let mut payload = envelope::begin(48);
    write_id(&mut payload, id);
    envelope::finish(payload, &[])
}

pub(in crate::raft::network) fn decode_snapshot_id(payload: &[u8]) -> Result<SnapshotId, Error> {
    let mut payload = envelope::open(payload, &[])?;
    let id = read_id(&mut payload)?;
    payload.finish()?;
    Ok(id)
}

/// A vote by itself, the answer to a transfer.
pub(in crate::raft::network) fn encode_vote(vote: &RaftVote) -> Bytes {
    let mut payload = envelope::begin(24);
    put_vote(&mut payload, vote_from_raft(vote));
    envelope::finish(payload, &[])
}

pub(in crate::raft::network) fn decode_vote(payload: &[u8]) -> Result<RaftVote, Error> {
    let mut payload = envelope::open(payload, &[])?;
    let vote = payload.vote()?;
    payload.finish()?;
    Ok(vote_to_raft(vote))
}

fn write_id(payload: &mut Vec<u8>, id: &SnapshotId) {
    put_option(payload, id.last, put_log_id);
    payload.put_u32_le(id.file_crc32c);
    payload.put_u64_le(id.length);
}

fn read_id(payload: &mut Reader<'_>) -> Result<SnapshotId, Error> {
    Ok(SnapshotId {
        last: payload.option(Reader::log_id)?,
        file_crc32c: payload.u32()?,
        length: payload.u64()?,
    })
}
