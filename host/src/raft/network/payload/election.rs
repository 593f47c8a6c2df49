//! Votes, and the hand-over of leadership (Raft paper, section 5.2; dissertation, 3.10 and 4.2.3).

use bytes::{BufMut as _, Bytes};
use openraft::raft::{TransferLeaderRequest, VoteRequest, VoteResponse};

use super::envelope;
use crate::codec::{Error, Reader, put_flag, put_log_id, put_option, put_vote};
use crate::raft::store::convert::{log_id_from_raft, log_id_to_raft, vote_from_raft, vote_to_raft};
use crate::raft::type_config::{RaftLogId, TypeConfig};
use crate::types::{LogId, NodeId};

type TransferError = openraft::raft::TransferLeaderError<TypeConfig>;
type TransferResult = openraft::raft::TransferLeaderResponse<TypeConfig>;

const TRANSFER_ACCEPTED: u8 = 0;
const TRANSFER_VOTE_CHANGED: u8 = 1;
const TRANSFER_LOG_NOT_FLUSHED: u8 = 2;

fn optional(id: Option<&RaftLogId>) -> Option<LogId> {
    id.map(log_id_from_raft)
}

/// A request for a vote, or for the promise of one.
pub(in crate::raft::network) fn encode_vote_request(request: &VoteRequest<TypeConfig>) -> Bytes {
    let mut payload = envelope::begin(48);
    put_vote(&mut payload, vote_from_raft(&request.vote));
    put_option(&mut payload, optional(request.last_log_id.as_ref()), put_log_id);
    put_flag(&mut payload, request.leadership_transfer);
    envelope::finish(payload, &[])
}

/// Reverse of [`encode_vote_request`].
pub(in crate::raft::network) fn decode_vote_request(
    payload: &[u8],
) -> Result<VoteRequest<TypeConfig>, Error> {
    let mut payload = envelope::open(payload, &[])?;
    let vote = payload.vote()?;
    if vote.committed {
        return Err(Error::Value("vote: a leader asks for none"));
    }
    let last = payload.option(Reader::log_id)?.map(log_id_to_raft);
    let mut request = VoteRequest::new(vote_to_raft(vote), last);
    request.leadership_transfer = payload.flag()?;
    payload.finish()?;
    Ok(request)
}

/// The answer to a request for a vote.
pub(in crate::raft::network) fn encode_vote_result(result: &VoteResponse<TypeConfig>) -> Bytes {
    let mut payload = envelope::begin(48);
    put_vote(&mut payload, vote_from_raft(&result.vote));
    put_flag(&mut payload, result.vote_granted);
    put_option(&mut payload, optional(result.last_log_id.as_ref()), put_log_id);
    envelope::finish(payload, &[])
}

/// Reverse of [`encode_vote_result`].
pub(in crate::raft::network) fn decode_vote_result(
    payload: &[u8],
) -> Result<VoteResponse<TypeConfig>, Error> {
    let mut payload = envelope::open(payload, &[])?;
    let vote = vote_to_raft(payload.vote()?);
    let granted = payload.flag()?;
    let last = payload.option(Reader::log_id)?.map(log_id_to_raft);
    payload.finish()?;
    Ok(VoteResponse::new(vote, last, granted))
}

/// A leader's wish that another node lead.
pub(in crate::raft::network) fn encode_transfer(
    request: &TransferLeaderRequest<TypeConfig>,
) -> Bytes {
    let mut payload = envelope::begin(56);
    put_vote(&mut payload, vote_from_raft(request.from_leader()));
    payload.put_u64_le(request.to_node_id().0);
    put_option(&mut payload, optional(request.last_log_id()), put_log_id);
    envelope::finish(payload, &[])
}

/// Reverse of [`encode_transfer`].
pub(in crate::raft::network) fn decode_transfer(
    payload: &[u8],
) -> Result<TransferLeaderRequest<TypeConfig>, Error> {
    let mut payload = envelope::open(payload, &[])?;
    let vote = payload.vote()?;
    if !vote.committed {
        return Err(Error::Value("vote: only a leader hands over"));
    }
    let to = NodeId(payload.u64()?);
    let last = payload.option(Reader::log_id)?.map(log_id_to_raft);
    payload.finish()?;
    Ok(TransferLeaderRequest::new(vote_to_raft(vote), to, last))
}

/// What the receiver made of that wish.
pub(in crate::raft::network) fn encode_transfer_result(result: &TransferResult) -> Bytes {
    let mut payload = envelope::begin(56);
    match result {
        Ok(()) => payload.put_u8(TRANSFER_ACCEPTED),
        Err(TransferError::VoteChanged { expected, actual }) => {
            payload.put_u8(TRANSFER_VOTE_CHANGED);
            put_vote(&mut payload, vote_from_raft(expected));
            put_vote(&mut payload, vote_from_raft(actual));
        }
        Err(TransferError::LogNotFlushed { expected, actual }) => {
            payload.put_u8(TRANSFER_LOG_NOT_FLUSHED);
            put_option(&mut payload, optional(expected.as_ref()), put_log_id);
            put_option(&mut payload, optional(actual.as_ref()), put_log_id);
        }
    }
    envelope::finish(payload, &[])
}

/// Reverse of [`encode_transfer_result`].
pub(in crate::raft::network) fn decode_transfer_result(
    payload: &[u8],
) -> Result<TransferResult, Error> {
    let mut payload = envelope::open(payload, &[])?;
    let result = match payload.u8()? {
        TRANSFER_ACCEPTED => Ok(()),
        TRANSFER_VOTE_CHANGED => Err(TransferError::VoteChanged {
            expected: vote_to_raft(payload.vote()?),
            actual: vote_to_raft(payload.vote()?),
        }),
        TRANSFER_LOG_NOT_FLUSHED => Err(TransferError::LogNotFlushed {
            expected: payload.option(Reader::log_id)?.map(log_id_to_raft),
            actual: payload.option(Reader::log_id)?.map(log_id_to_raft),
        }),
        found => return Err(Error::Kind { what: "a result", found }),
    };
    payload.finish()?;
    Ok(result)
}
