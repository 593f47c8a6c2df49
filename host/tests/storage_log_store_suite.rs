//! openraft's own storage suite on the real log store, once as it runs and once with the store
//! closed and opened again between every two calls.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use futures::{Stream, TryStreamExt as _};
use lockstep_host::machine::Response;
use lockstep_host::raft::TypeConfig;
use lockstep_host::raft::store::log_store::LogStore;
use lockstep_host::raft::type_config::{
    Entry, RaftLogId, RaftSnapshotMeta, RaftStoredMembership, RaftVote,
};
use lockstep_host::storage::{Log, LogConfig, LogPlace};
use lockstep_host::types::Incarnation;
use openraft::storage::{EntryResponder, IOFlushed, LogState, RaftLogStorage, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{EntryPayload, OptionalSend, RaftLogReader, RaftSnapshotBuilder, StorageError};
use tempfile::TempDir;

type RaftSnapshot = openraft::type_config::alias::SnapshotOf<TypeConfig, ()>;

/// Segments of a few records, so that every test crosses them and reads from disk.
fn config() -> LogConfig {
    LogConfig { segment_bytes: 500, cache_bytes: 0 }
}

/// A log in `folder/log`, with its ledger beside it.
fn place(folder: &std::path::Path) -> LogPlace {
    let (log, ledger) = (folder.join("log"), folder.join("log-ledger"));
    LogPlace { folder: log, ledger, owner: Incarnation([7; 16]) }
}

fn open(folder: &std::path::Path) -> LogStore {
    LogStore::new(Log::open(&place(folder), &config()).unwrap())
}

/// The least state machine that the suite accepts.
#[derive(Clone, Default)]
struct Machine(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    applied: Option<RaftLogId>,
    membership: RaftStoredMembership,
    snapshot: Option<RaftSnapshotMeta>,
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> Result<RaftSnapshot, io::Error> {
        let mut state = self.0.lock().unwrap();
        let meta = RaftSnapshotMeta {
            last_log_id: state.applied,
            last_membership: state.membership.clone(),
        };
        state.snapshot = Some(meta.clone());
        Ok(RaftSnapshot { meta, snapshot: () })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = ();
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<RaftLogId>, RaftStoredMembership), io::Error> {
        let state = self.0.lock().unwrap();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let mut state = self.0.lock().unwrap();
            state.applied = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = entry.payload {
                state.membership = RaftStoredMembership::new(Some(entry.log_id), membership);
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

    async fn install_snapshot(&mut self, meta: &RaftSnapshotMeta, _: ()) -> Result<(), io::Error> {
        let mut state = self.0.lock().unwrap();
        state.applied = meta.last_log_id;
        state.membership = meta.last_membership.clone();
        state.snapshot = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<RaftSnapshot>, io::Error> {
        let meta = self.0.lock().unwrap().snapshot.clone();
        Ok(meta.map(|meta| RaftSnapshot { meta, snapshot: () }))
    }
}

/// A store that is closed and opened again before every call.
#[derive(Clone)]
struct Reopening {
    folder: PathBuf,
    store: Arc<Mutex<Option<LogStore>>>,
}

impl Reopening {
    fn reopened(&self) -> LogStore {
        let mut store = self.store.lock().unwrap();
        drop(store.take());
        store.insert(open(&self.folder)).clone()
    }
}

impl RaftLogReader<TypeConfig> for Reopening {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, io::Error> {
        self.reopened().try_get_log_entries(range).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.reopened().limited_get_log_entries(start, end).await
    }

    async fn read_vote(&mut self) -> Result<Option<RaftVote>, io::Error> {
        self.reopened().read_vote().await
    }
}

impl RaftLogStorage<TypeConfig> for Reopening {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        self.reopened().get_log_state().await
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> Result<(), io::Error> {
        self.reopened().save_vote(vote).await
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> Result<(), io::Error> {
        self.reopened().save_committed(committed).await
    }

    async fn read_committed(&mut self) -> Result<Option<RaftLogId>, io::Error> {
        self.reopened().read_committed().await
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
        self.reopened().append(entries, callback).await
    }

    async fn truncate_after(&mut self, last: Option<RaftLogId>) -> Result<(), io::Error> {
        self.reopened().truncate_after(last).await
    }

    async fn purge(&mut self, upto: RaftLogId) -> Result<(), io::Error> {
        self.reopened().purge(upto).await
    }
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<TypeConfig>> {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        Ok((folder, store, Machine::default()))
    }
}

struct ReopeningBuilder;

impl StoreBuilder<TypeConfig, Reopening, Machine, TempDir> for ReopeningBuilder {
    async fn build(&self) -> Result<(TempDir, Reopening, Machine), StorageError<TypeConfig>> {
        let folder = tempfile::tempdir().unwrap();
        let store =
            Reopening { folder: folder.path().to_owned(), store: Arc::new(Mutex::new(None)) };
        Ok((folder, store, Machine::default()))
    }
}

/// The store does what openraft relies on.
#[tokio::test(flavor = "multi_thread")]
async fn the_store_passes_the_suite_of_openraft() {
    Suite::test_all(Builder).await.unwrap();
}

/// It does so when it is closed and opened again between every two calls: nothing that a call
/// has changed lives in memory alone.
#[tokio::test(flavor = "multi_thread")]
async fn the_store_passes_the_suite_with_a_reopen_between_calls() {
    Suite::test_all(ReopeningBuilder).await.unwrap();
}
