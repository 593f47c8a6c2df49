//! The log store of openraft over [`storage::Log`](crate::storage::Log): converts types, and keeps
//! blocking reads off the async workers.
//!
//! An entry of commands goes to disk as the very bytes that were proposed (`codec::EntryBody`).
//!
//! **Invariant:** the log keeps the order of the calls, so a vote that is saved before an append
//! is on disk before it.
//! **Invariant:** every callback of openraft is called, after a failure too (`storage::FlushDone`).

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};

use bytes::Bytes;
use futures::stream::{self, Stream, TryStreamExt as _};
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use tokio::sync::{oneshot, watch};

use crate::codec::EntryBody;
use crate::raft::store::convert;
use crate::raft::type_config::{Entry, RaftLogId, RaftVote, TypeConfig};
use crate::storage::{FlushDone, Log, Payload};
use crate::types::{LogId, LogIndex};

/// Bytes of entries that one read of a range gives at most; one entry always fits.
const READ_BYTES_MAX: usize = 4 << 20;

/// openraft's handle of the log, for writing and for reading. Clones share the log.
#[derive(Clone, Debug)]
pub struct LogStore {
    log: Log,
    /// Appends that are not synced yet.
    unsynced: watch::Sender<usize>,
}

impl LogStore {
    /// Wraps an open log.
    pub fn new(log: Log) -> Self {
        Self { log, unsynced: watch::Sender::new(0) }
    }

    /// The log itself, for its size on disk and for the sync before the process ends.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// How many appends are not synced yet: how far the disk is behind.
    pub fn unsynced(&self) -> watch::Receiver<usize> {
        self.unsynced.subscribe()
    }

    /// Reads entries up to a number of bytes: from memory here, from disk on a thread for that.
    async fn read(
        &self,
        range: Range<LogIndex>,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, io::Error> {
        let step = self.log.read_cached(range.clone(), bytes_max).map_err(|e| e.into_io())?;
        let mut entries = step.entries;
        if step.goes_on_disk {
            let read: usize = entries.iter().map(|(_, payload)| payload.bytes.len()).sum();
            let next = entries.last().map_or(range.start, |(last, _)| last.index + 1);
            let log = self.log.clone();
            let from_disk = tokio::task::spawn_blocking(move || {
                log.read_limited(next..range.end, bytes_max.saturating_sub(read).max(1))
            });
            let from_disk = from_disk.await.map_err(io::Error::other)?;
            entries.extend(from_disk.map_err(|error| error.into_io())?);
        }
        entries.into_iter().map(|(id, payload)| decode(id, payload)).collect()
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    /// In steps of bounded size, since a restart applies all that is committed in one stream.
    async fn entries_stream<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend {
        let store = self.clone();
        let steps = stream::try_unfold(indexes(&range), move |range| {
            let store = store.clone();
            async move {
                let entries = store.read(range.clone(), READ_BYTES_MAX).await?;
                let Some(last) = entries.last() else { return Ok::<_, io::Error>(None) };
                let rest = last.log_id.index() + 1..range.end;
                Ok(Some((stream::iter(entries.into_iter().map(Ok)), rest)))
            }
        });
        steps.try_flatten()
    }

    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read(indexes(&range), usize::MAX).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read(start..end, READ_BYTES_MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<RaftVote>, io::Error> {
        let state = self.log.state().map_err(|error| error.into_io())?;
        Ok(state.vote.map(convert::vote_to_raft))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let state = self.log.state().map_err(|error| error.into_io())?;
        Ok(LogState {
            last_purged_log_id: state.purged.map(convert::log_id_to_raft),
            last_log_id: state.last.map(convert::log_id_to_raft),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> Result<(), io::Error> {
        let (sender, synced) = oneshot::channel();
        // A receiver that is gone belongs to a call that was given up.
        let done: FlushDone = Box::new(move |result| drop(sender.send(result)));
        let saved = self.log.save_vote(convert::vote_from_raft(vote), done);
        saved.map_err(|error| error.into_io())?;
        synced.await.map_err(io::Error::other)?
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> Result<(), io::Error> {
        let committed = committed.as_ref().map(convert::log_id_from_raft);
        self.log.save_committed(committed).map_err(|error| error.into_io())
    }

    async fn read_committed(&mut self) -> Result<Option<RaftLogId>, io::Error> {
        let state = self.log.state().map_err(|error| error.into_io())?;
        Ok(state.committed.map(convert::log_id_to_raft))
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let unsynced = self.unsynced.clone();
        unsynced.send_modify(|count| *count += 1);
        let done: FlushDone = Box::new(move |result| {
            unsynced.send_modify(|count| *count -= 1);
            callback.io_completed(result);
        });
        let appended = self.log.append(entries.into_iter().map(encode), done);
        appended.map_err(|error| error.into_io())
    }

    /// Not waited for: what is appended next is synced after it, and until then the entries that
    /// come back after a crash are ones this node had acknowledged.
    async fn truncate_after(&mut self, last: Option<RaftLogId>) -> Result<(), io::Error> {
        let last = last.as_ref().map(convert::log_id_from_raft);
        self.log.truncate_after(last, Box::new(drop)).map_err(|error| error.into_io())
    }

    /// Not waited for: segments are removed once the purge is on disk.
    async fn purge(&mut self, upto: RaftLogId) -> Result<(), io::Error> {
        let purged = self.log.purge(convert::log_id_from_raft(&upto), Box::new(drop));
        purged.map_err(|error| error.into_io())
    }
}

/// What was proposed with a payload, if it is a proposal.
pub(in crate::raft) fn proposed(payload: Payload) -> Option<Bytes> {
    match EntryBody::decode(payload.kind, payload.bytes) {
        Ok(EntryBody::Proposal(bytes)) => Some(bytes),
        _ => None,
    }
}

/// The payload of a proposal.
#[cfg(test)]
pub(in crate::raft) fn proposal(bytes: Bytes) -> Payload {
    let (kind, bytes) = EntryBody::Proposal(bytes).encode();
    Payload { kind, bytes }
}

fn encode(entry: Entry) -> (LogId, Payload) {
    let (kind, bytes) = convert::body_from_raft(entry.payload).encode();
    (convert::log_id_from_raft(&entry.log_id), Payload { kind, bytes })
}

fn decode(id: LogId, payload: Payload) -> Result<Entry, io::Error> {
    let body = EntryBody::decode(payload.kind, payload.bytes).and_then(convert::body_to_raft);
    let payload = body.map_err(|error| {
        io::Error::new(io::ErrorKind::InvalidData, format!("log entry {id}: {error}"))
    })?;
    Ok(Entry { log_id: convert::log_id_to_raft(id), payload })
}

/// The indexes of a range, the end not included.
fn indexes(range: &impl RangeBounds<u64>) -> Range<LogIndex> {
    let start = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(index) => index.saturating_add(1),
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}
