//! Nodes of another engine profile, on real folders and without peers: the profile is injected.

use std::sync::OnceLock;

use super::*;
use crate::machine::{CompiledModules, Directory, MemoryHistory, MemoryLibrary};
use crate::raft::convert::log_id_to_raft;
use crate::raft::snapshots::Snapshots;
use crate::storage::snapshot::SnapshotDir;
use crate::types::{ClusterId, LogId, NodeId};
use crate::wasm;

/// The state machine of a node that runs a build of this profile on the folder, and what it shows.
async fn open(folder: &std::path::Path, profile: &str) -> (StateMachine, Arc<Directory>) {
    let data_dir = DataDir::open(folder, NodeId(1)).unwrap();
    let snapshots = SnapshotDir::open(&data_dir.snapshots()).unwrap();
    let (staged, _) = tokio::sync::mpsc::unbounded_channel();
    let directory = Arc::new(Directory::default());
    let environment = Environment {
        cluster: Arc::new(OnceLock::from(ClusterId([7; 16]))),
        engine: wasm::tests::ENGINE.clone(),
        profile: profile.to_owned(),
        library: Arc::new(MemoryLibrary::default()),
        history: Arc::new(MemoryHistory::default()),
        compiled: Arc::new(CompiledModules::default()),
        staged,
        directory: Arc::clone(&directory),
    };
    let snapshots = Arc::new(Snapshots::new(snapshots, None, None));
    let (progress, _) = watch::channel(Progress::default());
    let data_dir = Arc::new(data_dir);
    let opened = StateMachine::open(environment, snapshots, data_dir, None, progress).await;
    (opened.unwrap(), directory)
}

async fn apply(state_machine: &mut StateMachine, index: u64, proposal: &Proposal) -> Response {
    let log_id = log_id_to_raft(LogId { term: 1, node: NodeId(1), index });
    let entry = Entry { log_id, payload: EntryPayload::Normal(EntryBytes(proposal.encode())) };
    state_machine.apply_entry(&entry).await.unwrap()
}

/// A node applies while its profile is the log's, the first one logged; another one parks at the
/// entry, and at a snapshot of that profile, and says both profiles.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_engine_profile_parks() {
    let equal = tempfile::tempdir().unwrap();
    let logged = Proposal::EngineProfile("logged".to_owned());
    let tick = Proposal::Tick { time_ms: 9 };
    let (mut node, directory) = open(equal.path(), "logged").await;
    let later = Proposal::EngineProfile("later".to_owned());
    for (index, entry) in [&logged, &later, &tick, &Proposal::Checkpoint].into_iter().enumerate() {
        let index = u64::try_from(index).unwrap();
        assert_eq!(apply(&mut node, index, entry).await, Response::Nothing);
    }
    assert_eq!((directory.time_ms(), directory.view().parked.clone()), (9, None));
    node.finish_writing().await.unwrap();
    drop(node);

    let other = tempfile::tempdir().unwrap();
    let (mut node, directory) = open(other.path(), "other").await;
    apply(&mut node, 0, &logged).await;
    assert_parked(&directory);
    assert!(matches!(apply(&mut node, 1, &tick).await, Response::NodeParked(_)));
    assert_eq!((directory.time_ms(), directory.applied()), (0, 0));

    let (node, directory) = open(equal.path(), "other").await;
    assert_parked(&directory);
    assert_eq!(node.last_applied.map(|id| id.index()), Some(3), "the log goes on from there");
    drop(node);
    let (_, directory) = open(equal.path(), "logged").await;
    assert_eq!((directory.applied(), directory.view().parked.clone()), (3, None));
}

fn assert_parked(directory: &Directory) {
    let parked = directory.view().parked.clone().unwrap();
    assert!(parked.contains("profile logged") && parked.contains("has other"), "{parked}");
}
