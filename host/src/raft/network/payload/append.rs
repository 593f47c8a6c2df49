//! AppendEntries and its answer (Raft paper, section 5.3).
//!
//! The head says everything but the entries' bytes, which travel beside it and are never copied
//! into it. Entries carry no index of their own: entry `i` follows the previous log id by `i + 1`,
//! so entries with a hole between them cannot even be written down.

use bytes::{BufMut as _, Bytes};
use lockstep_proto::peer;
use openraft::LogIdOptionExt as _;
use openraft::entry::RaftEntry as _;
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult};

use super::{ENTRIES_MAX, envelope};
use crate::codec::{EntryBody, Error, POSITION_MAX, Reader, put_log_id, put_option, put_vote};
use crate::raft::store::convert::{
    body_from_raft, body_to_raft, log_id_from_raft, log_id_to_raft, vote_from_raft, vote_to_raft,
};
use crate::raft::type_config::{Entry, TypeConfig};
use crate::types::{LogId, NodeId};

const RESULT_MATCHED: u8 = 0;
const RESULT_CONFLICT: u8 = 1;
const RESULT_HIGHER_VOTE: u8 = 2;

/// Entries that one leader proposed, one after the other.
struct Run {
    term: u64,
    node: NodeId,
    count: u32,
}

/// The message for `request`, without a hello.
///
/// # Errors
/// When the entries do not follow the previous log id, or are too many: a fault of this node.
pub(in crate::raft::network) fn encode_append(
    request: AppendEntriesRequest<TypeConfig>,
) -> Result<peer::AppendRequest, Error> {
    let first = request.prev_log_id.next_index();
    let runs = runs(&request.entries, first)?;
    let mut head = envelope::begin(96 + 20 * runs.len() + request.entries.len());
    put_vote(&mut head, vote_from_raft(&request.vote));
    put_option(&mut head, request.prev_log_id.as_ref().map(log_id_from_raft), put_log_id);
    put_option(&mut head, request.leader_commit.as_ref().map(log_id_from_raft), put_log_id);
    head.put_u32_le(u32::try_from(runs.len()).expect("there are no more runs than entries"));
    for run in &runs {
        head.put_u64_le(run.term);
        head.put_u64_le(run.node.0);
        head.put_u32_le(run.count);
    }
    let mut entries = Vec::with_capacity(request.entries.len());
    for entry in request.entries {
        let (kind, bytes) = body_from_raft(entry.payload).encode();
        head.put_u8(kind);
        entries.push(bytes);
    }
    Ok(peer::AppendRequest { hello: None, head: envelope::finish(head, &entries), entries })
}

/// The leaders of `entries`, run by run; checks that the entries are consecutive from `first` on.
fn runs(entries: &[Entry], first: u64) -> Result<Vec<Run>, Error> {
    check_count(entries.len())?;
    let mut runs: Vec<Run> = Vec::new();
    for (index, entry) in (first..).zip(entries) {
        let id = log_id_from_raft(&entry.log_id());
        if id.index != index {
            return Err(Error::Value("index"));
        }
        match runs.last_mut() {
            Some(run) if run.term == id.term && run.node == id.node => run.count += 1,
            _ => runs.push(Run { term: id.term, node: id.node, count: 1 }),
        }
    }
    Ok(runs)
}

fn check_count(count: usize) -> Result<(), Error> {
    if count > ENTRIES_MAX {
        return Err(Error::TooMany { what: "entries in a message", count, limit: ENTRIES_MAX });
    }
    Ok(())
}

/// The request in `message`, whose hello is somebody else's business.
pub(in crate::raft::network) fn decode_append(
    message: peer::AppendRequest,
) -> Result<AppendEntriesRequest<TypeConfig>, Error> {
    check_count(message.entries.len())?;
    let mut head = envelope::open(&message.head, &message.entries)?;
    let vote = head.vote()?;
    if !vote.committed {
        return Err(Error::Value("vote: only a leader appends"));
    }
    let previous = head.option(Reader::log_id)?;
    let commit = head.option(Reader::log_id)?;
    let log_ids = decode_log_ids(&mut head, previous, vote.term, message.entries.len())?;
    let kinds = head.take(message.entries.len())?;
    head.finish()?;
    let entries = log_ids.into_iter().zip(kinds).zip(message.entries);
    Ok(AppendEntriesRequest {
        vote: vote_to_raft(vote),
        prev_log_id: previous.map(log_id_to_raft),
        leader_commit: commit.map(log_id_to_raft),
        entries: entries
            .map(|((id, kind), bytes)| decode_entry(id, *kind, bytes))
            .collect::<Result<_, _>>()?,
    })
}

/// The log ids of `count` entries that follow `previous`, from the runs in `head`.
fn decode_log_ids(
    head: &mut Reader<'_>,
    previous: Option<LogId>,
    term_max: u64,
    count: usize,
) -> Result<Vec<LogId>, Error> {
    let runs = head.u32()?;
    let mut index = previous.map_or(0, |id| id.index + 1);
    let mut term_min = previous.map_or(0, |id| id.term);
    let mut log_ids = Vec::with_capacity(count);
    for _ in 0..runs {
        let (term, node, run) = (head.term()?, NodeId(head.u64()?), head.u32()?);
        let run = usize::try_from(run).map_err(|_| Error::Value("run"))?;
        if run == 0 || run > count - log_ids.len() {
            return Err(Error::Value("run"));
        }
        if term < term_min || term > term_max {
            return Err(Error::Value("term: it is not between its neighbours'"));
        }
        term_min = term;
        for _ in 0..run {
            log_ids.push(LogId { term, node, index });
            index += 1;
        }
    }
    if log_ids.len() != count || index > POSITION_MAX || term_min > term_max {
        return Err(Error::Value("run"));
    }
    Ok(log_ids)
}

fn decode_entry(id: LogId, kind: u8, bytes: Bytes) -> Result<Entry, Error> {
    let payload = body_to_raft(EntryBody::decode(kind, bytes)?)?;
    Ok(Entry { log_id: log_id_to_raft(id), payload })
}

/// The answer to one AppendEntries.
pub(in crate::raft::network) fn encode_append_result(
    result: &StreamAppendResult<TypeConfig>,
) -> Bytes {
    let mut payload = envelope::begin(32);
    match result {
        Ok(matched) => {
            payload.put_u8(RESULT_MATCHED);
            put_option(&mut payload, matched.as_ref().map(log_id_from_raft), put_log_id);
        }
        Err(StreamAppendError::Conflict(id)) => {
            payload.put_u8(RESULT_CONFLICT);
            put_log_id(&mut payload, log_id_from_raft(id));
        }
        Err(StreamAppendError::HigherVote(vote)) => {
            payload.put_u8(RESULT_HIGHER_VOTE);
            put_vote(&mut payload, vote_from_raft(vote));
        }
    }
    envelope::finish(payload, &[])
}

/// Reverse of [`encode_append_result`].
pub(in crate::raft::network) fn decode_append_result(
    payload: &[u8],
) -> Result<StreamAppendResult<TypeConfig>, Error> {
    let mut payload = envelope::open(payload, &[])?;
    let result = match payload.u8()? {
        RESULT_MATCHED => Ok(payload.option(Reader::log_id)?.map(log_id_to_raft)),
        RESULT_CONFLICT => Err(StreamAppendError::Conflict(log_id_to_raft(payload.log_id()?))),
        RESULT_HIGHER_VOTE => Err(StreamAppendError::HigherVote(vote_to_raft(payload.vote()?))),
        found => return Err(Error::Kind { what: "a result", found }),
    };
    payload.finish()?;
    Ok(result)
}
