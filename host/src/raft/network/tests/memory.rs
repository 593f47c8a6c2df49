//! A log and a state machine in memory, only as much as openraft needs to run.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, MutexGuard};

use futures::{Stream, StreamExt as _};
use openraft::entry::RaftEntry as _;
use openraft::storage::{
    EntryResponder, IOFlushed, LogState, RaftLogReader, RaftLogStorage, RaftSnapshotBuilder,
    RaftStateMachine,
};
use openraft::type_config::alias::SnapshotOf;
use openraft::{EntryPayload, OptionalSend};

use crate::machine::Response;
use crate::raft::type_config::{
    Entry, EntryBytes, RaftLogId, RaftSnapshotMeta, RaftStoredMembership, RaftVote, TypeConfig,
};
use crate::storage::snapshot::Snapshot;

#[derive(Default)]
struct LogData {
    vote: Option<RaftVote>,
    purged: Option<RaftLogId>,
    entries: BTreeMap<u64, Entry>,
}

#[derive(Clone, Default)]
pub(super) struct MemoryLog(Arc<Mutex<LogData>>);

impl MemoryLog {
    fn locked(&self) -> MutexGuard<'_, LogData> {
        self.0.lock().unwrap()
    }
}

impl RaftLogReader<TypeConfig> for MemoryLog {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        Ok(self.locked().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<RaftVote>> {
        Ok(self.locked().vote)
    }
}

impl RaftLogStorage<TypeConfig> for MemoryLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let log = self.locked();
        let last = log.entries.last_key_value().map(|(_, entry)| entry.log_id());
        Ok(LogState { last_purged_log_id: log.purged, last_log_id: last.or(log.purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> io::Result<()> {
        self.locked().vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(|entry| (entry.index(), entry));
        self.locked().entries.extend(entries);
        flushed.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<RaftLogId>) -> io::Result<()> {
        let first = last.map_or(0, |id| id.index() + 1);
        self.locked().entries.split_off(&first);
        Ok(())
    }

    async fn purge(&mut self, upto: RaftLogId) -> io::Result<()> {
        let mut log = self.locked();
        log.purged = Some(upto);
        log.entries = log.entries.split_off(&(upto.index() + 1));
        Ok(())
    }
}

/// What a [`MemoryMachine`] has come to.
#[derive(Default)]
pub(super) struct Applied {
    last: Option<RaftLogId>,
    membership: RaftStoredMembership,
    /// Length of each proposal that was applied.
    pub(super) lengths: Vec<usize>,
    /// The snapshot that a peer sent last.
    pub(super) installed: Option<(RaftSnapshotMeta, Snapshot)>,
}

#[derive(Clone, Default)]
pub(super) struct MemoryMachine(Arc<Mutex<Applied>>);

impl MemoryMachine {
    pub(super) fn locked(&self) -> MutexGuard<'_, Applied> {
        self.0.lock().unwrap()
    }
}

impl RaftStateMachine<TypeConfig> for MemoryMachine {
    type SnapshotData = Snapshot;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<RaftLogId>, RaftStoredMembership)> {
        let applied = self.locked();
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some(entry) = entries.next().await {
            let (entry, responder) = entry?;
            {
                let mut applied = self.locked();
                applied.last = Some(entry.log_id);
                match entry.payload {
                    EntryPayload::Blank => {}
                    EntryPayload::Normal(EntryBytes(bytes)) => applied.lengths.push(bytes.len()),
                    EntryPayload::Membership(membership) => {
                        let id = Some(entry.log_id);
                        applied.membership = RaftStoredMembership::new(id, membership);
                    }
                }
            }
            if let Some(responder) = responder {
                responder.send(Response::Nothing);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &RaftSnapshotMeta,
        snapshot: Snapshot,
    ) -> io::Result<()> {
        let mut applied = self.locked();
        applied.last = meta.last_log_id;
        applied.membership = meta.last_membership.clone();
        applied.installed = Some((meta.clone(), snapshot));
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<SnapshotOf<TypeConfig, Snapshot>>> {
        let installed = self.locked().installed.clone();
        Ok(installed.map(|(meta, snapshot)| SnapshotOf::<TypeConfig, Snapshot> { meta, snapshot }))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for MemoryMachine {
    type SnapshotData = Snapshot;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, Snapshot>> {
        Err(io::Error::other("this machine builds no snapshots"))
    }
}
