//! What the log store adds to openraft's own suite, which appends no commands and fails nothing.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use bytes::Bytes;
use futures::TryStreamExt as _;
use lockstep_host::raft::TypeConfig;
use lockstep_host::raft::store::convert;
use lockstep_host::raft::store::log_store::LogStore;
use lockstep_host::raft::type_config::{Entry, EntryBytes};
use lockstep_host::storage::{Log, LogConfig, LogPlace, Payload};
use lockstep_host::types::{Incarnation, LogId, Member, Membership, NodeId, Vote};
use openraft::storage::{IOFlushed, RaftLogStorage as _};
use openraft::type_config::TypeConfigExt as _;
use openraft::{EntryPayload, RaftLogReader as _};

/// A log in `folder/log`, with its ledger beside it.
fn place(folder: &Path) -> LogPlace {
    let (log, ledger) = (folder.join("log"), folder.join("log-ledger"));
    LogPlace { folder: log, ledger, owner: Incarnation([7; 16]) }
}

fn open(folder: &Path) -> LogStore {
    let config = LogConfig { segment_bytes: 1 << 20, cache_bytes: 0 };
    LogStore::new(Log::open(&place(folder), &config).unwrap())
}

fn log_id(index: u64) -> LogId {
    LogId { term: 2, node: NodeId(1), index }
}

type EntryBody = EntryPayload<EntryBytes, NodeId, Member>;

fn entry(index: u64, payload: EntryBody) -> Entry {
    Entry { log_id: convert::log_id_to_raft(log_id(index)), payload }
}

fn commands(index: u64, length: usize) -> Entry {
    let bytes = vec![u8::try_from(index % 256).unwrap(); length];
    entry(index, EntryPayload::Normal(EntryBytes(Bytes::from(bytes))))
}

/// Appends, and waits until openraft would be told.
async fn append(store: &mut LogStore, entries: Vec<Entry>) -> Result<(), io::Error> {
    let (sender, flushed) = TypeConfig::oneshot();
    let appended = store.append(entries, IOFlushed::signal(sender)).await;
    let flushed = flushed.await.expect("a callback is never forgotten");
    assert!(appended.is_ok() || flushed.is_err(), "a failed append was called flushed");
    flushed
}

/// Every kind of entry comes back as it was, from memory and after a restart.
#[tokio::test]
async fn entries_of_every_kind_come_back() {
    let member = |port: u16| Member {
        peer_addr: format!("127.0.0.1:{port}"),
        client_addr: format!("127.0.0.1:{}", port + 1),
        incarnation: [7; 16],
    };
    let membership = Membership {
        voters: vec![BTreeSet::from([NodeId(1)]), BTreeSet::from([NodeId(1), NodeId(2)])],
        members: BTreeMap::from([(NodeId(1), member(10)), (NodeId(2), member(20))]),
    };
    let membership = convert::membership_to_raft(membership).unwrap();
    let entries = vec![
        entry(0, EntryPayload::Membership(membership)),
        entry(1, EntryPayload::Blank),
        commands(2, 100),
        commands(3, 0),
    ];
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    append(&mut store, entries.clone()).await.unwrap();
    assert_eq!(store.try_get_log_entries(..).await.unwrap(), entries);
    drop(store);
    assert_eq!(open(folder.path()).try_get_log_entries(0..=3).await.unwrap(), entries);
}

/// A stream gives all of a range that is far longer than one read of it may be, from disk too;
/// and one read stays bounded.
#[tokio::test]
async fn a_long_range_is_read_in_steps() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    let entries: Vec<_> = (0..60).map(|index| commands(index, 300_000)).collect();
    append(&mut store, entries.clone()).await.unwrap();
    drop(store);
    let mut store = open(folder.path());
    let read: Vec<_> = store.entries_stream(0..60).await.try_collect().await.unwrap();
    assert_eq!(read, entries);
    let read: Vec<_> = store.entries_stream(57..).await.try_collect().await.unwrap();
    assert_eq!(read, entries[57..]);
    let bounded = store.limited_get_log_entries(10, 60).await.unwrap();
    assert_eq!(bounded, entries[10..24], "4 MiB of entries of 300,000 bytes");
}

/// A vote is on disk when `save_vote` returns: a copy of the files made then has it.
#[tokio::test]
async fn a_saved_vote_is_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    let vote = Vote { term: 9, node: NodeId(3), committed: false };
    store.save_vote(&convert::vote_to_raft(vote)).await.unwrap();
    let (from, to) = (place(folder.path()), place(copy.path()));
    // The ledger first: it may be behind the files, and never ahead of them.
    std::fs::copy(&from.ledger, &to.ledger).unwrap();
    std::fs::create_dir(&to.folder).unwrap();
    for file in std::fs::read_dir(&from.folder).unwrap() {
        let path = file.unwrap().path();
        // The next segment is being prepared under another name.
        if path.extension().is_some_and(|name| name == "wal") {
            std::fs::copy(&path, to.folder.join(path.file_name().unwrap())).unwrap();
        }
    }
    let read = open(copy.path()).read_vote().await.unwrap();
    assert_eq!(read, Some(convert::vote_to_raft(vote)));
}

/// After a failure every callback of openraft is called with an error, and so is every call.
#[tokio::test]
async fn a_failed_store_acknowledges_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    append(&mut store, vec![commands(0, 10)]).await.unwrap();
    append(&mut store, vec![commands(5, 10)]).await.unwrap_err();
    append(&mut store, vec![commands(1, 10)]).await.unwrap_err();
    let vote = convert::vote_to_raft(Vote { term: 9, node: NodeId(3), committed: false });
    store.save_vote(&vote).await.unwrap_err();
    store.read_vote().await.unwrap_err();
    store.get_log_state().await.unwrap_err();
    store.limited_get_log_entries(0, 1).await.unwrap_err();
    drop(store);
    let mut store = open(folder.path());
    assert_eq!(store.try_get_log_entries(..).await.unwrap(), [commands(0, 10)]);
}

/// An entry of a later version is refused, not skipped.
#[tokio::test]
async fn an_unknown_kind_of_entry_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    let unknown = (log_id(0), Payload { kind: 77, bytes: Bytes::new() });
    store.log().append([unknown], Box::new(drop)).unwrap();
    let error = store.try_get_log_entries(..).await.unwrap_err();
    assert!(error.to_string().contains("unknown kind 77"), "{error}");
}
