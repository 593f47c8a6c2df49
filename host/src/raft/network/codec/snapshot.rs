//! What goes before a snapshot's bytes and what comes after them (Raft paper, section 7).

use bytes::Bytes;

use super::Error;
use super::bytes_io::{Reader, Writer};
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
    let mut payload = Writer::with_capacity(256);
    payload.vote(vote_from_raft(&head.vote));
    write_id(&mut payload, &head.id);
    let membership = &head.meta.last_membership;
    payload.optional_log_id(membership.log_id().as_ref().map(log_id_from_raft));
    payload.membership(&membership_from_raft(membership.membership()));
    payload.finish(&[])
}

pub(in crate::raft::network) fn decode_snapshot_head(
    payload: &[u8],
) -> Result<SnapshotHead, Error> {
    let mut payload = Reader::open(payload, &[])?;
    let vote = payload.vote()?;
    if !vote.committed {
        return Err(Error::Value("vote: only a leader sends a snapshot"));
    }
    let id = read_id(&mut payload)?;
    let membership_id = payload.optional_log_id()?;
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
    let mut payload = Writer::with_capacity(48);
    write_id(&mut payload, id);
    payload.finish(&[])
}

pub(in crate::raft::network) fn decode_snapshot_id(payload: &[u8]) -> Result<SnapshotId, Error> {
    let mut payload = Reader::open(payload, &[])?;
    let id = read_id(&mut payload)?;
    payload.finish()?;
    Ok(id)
}

/// A vote by itself, the answer to a transfer.
pub(in crate::raft::network) fn encode_vote(vote: &RaftVote) -> Bytes {
    let mut payload = Writer::with_capacity(24);
    payload.vote(vote_from_raft(vote));
    payload.finish(&[])
}

pub(in crate::raft::network) fn decode_vote(payload: &[u8]) -> Result<RaftVote, Error> {
    let mut payload = Reader::open(payload, &[])?;
    let vote = payload.vote()?;
    payload.finish()?;
    Ok(vote_to_raft(vote))
}

fn write_id(payload: &mut Writer, id: &SnapshotId) {
    payload.optional_log_id(id.last);
    payload.u32(id.file_crc32c);
    payload.u64(id.length);
}

fn read_id(payload: &mut Reader<'_>) -> Result<SnapshotId, Error> {
    Ok(SnapshotId {
        last: payload.optional_log_id()?,
        file_crc32c: payload.u32()?,
        length: payload.u64()?,
    })
}
