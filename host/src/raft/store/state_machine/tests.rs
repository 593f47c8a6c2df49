//! Nodes of another engine profile, on real folders and without peers: the profile is injected.

use std::sync::OnceLock;

use super::*;
use crate::machine::entry::proposal::ModuleChunk;
use crate::machine::{
    CheckpointReport, ClusterLimits, CompiledModules, Directory, MemoryHistory, MemoryLibrary,
    ModuleLibrary,
};
use crate::raft::store::convert::{log_id_to_raft, membership_to_raft};
use crate::raft::store::snapshots::Snapshots;
use crate::storage::snapshot::SnapshotDir;
use crate::types::{ClusterId, LogId, Member, ModuleDigest, NodeId};
use crate::wasm;

const SIZE: CheckpointSize = CheckpointSize { bytes: 1 << 20, entries: 4 };

/// The state machine of a node that runs a build of this profile on the folder, and what it shows.
async fn open(folder: &std::path::Path, profile: &str) -> (StateMachine, Arc<Directory>) {
    let directory = Arc::new(Directory::default());
    let library = Arc::new(MemoryLibrary::default());
    (open_with(folder, profile, Arc::clone(&directory), library).await, directory)
}

async fn open_with(
    folder: &std::path::Path,
    profile: &str,
    directory: Arc<Directory>,
    library: Arc<dyn ModuleLibrary>,
) -> StateMachine {
    let data_dir = DataDir::open(folder, NodeId(1)).unwrap();
    let snapshots = SnapshotDir::open(&data_dir.snapshots()).unwrap();
    let environment = Environment {
        cluster: Arc::new(OnceLock::from(ClusterId([7; 16]))),
        engine: wasm::tests::ENGINE.clone(),
        profile: profile.to_owned(),
        library,
        history: Arc::new(MemoryHistory::default()),
        compiled: Arc::new(CompiledModules::default()),
        compiling: Arc::new(tokio::sync::Semaphore::new(1)),
        directory,
    };
    let snapshots = Arc::new(Snapshots::new(snapshots, None, None));
    let (progress, _) = watch::channel(Progress::default());
    let data_dir = Arc::new(data_dir);
    let opened = StateMachine::open(environment, snapshots, data_dir, None, (progress, SIZE)).await;
    opened.unwrap()
}

async fn apply(state_machine: &mut StateMachine, index: u64, proposal: &Proposal) -> Response {
    let payload = EntryPayload::Normal(EntryBytes(proposal.encode()));
    apply_payload(state_machine, index, payload).await
}

async fn apply_payload(
    state_machine: &mut StateMachine,
    index: u64,
    payload: EntryPayload<EntryBytes, NodeId, Member>,
) -> Response {
    let log_id = log_id_to_raft(LogId { term: 1, node: NodeId(1), index });
    state_machine.apply_entry(&Entry { log_id, payload }).await.unwrap()
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

/// An entry that cannot be decoded, of a later kind or of a body that its kind does not explain,
/// parks the node, also over a restart, and says its index and the repair. Where the configuration
/// says so it is skipped; one that can be decoded is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_cannot_be_decoded_parks_or_is_skipped() {
    let tick = |time_ms| EntryPayload::Normal(EntryBytes(Proposal::Tick { time_ms }.encode()));
    let undecodable = |kind: u8, body: &[u8]| {
        let mut bytes = vec![b'L', b'S', 1, kind, u8::try_from(body.len()).unwrap(), 0, 0, 0];
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes), body);
        bytes.extend(checksum.to_le_bytes());
        bytes.extend(body);
        EntryPayload::Normal(EntryBytes(bytes.into()))
    };
    for (bad, said) in [
        (undecodable(250, b""), "kind 250"),
        (undecodable(13, b"no report"), "not a log entry"),
        (EntryPayload::Normal(EntryBytes(b"no envelope".as_slice().into())), "not a log entry"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (mut node, directory) = open(folder.path(), "profile").await;
        apply_payload(&mut node, 0, tick(7)).await;
        let response = apply_payload(&mut node, 1, bad.clone()).await;
        assert!(matches!(response, Response::NodeParked(_)), "{response:?}");
        let parked = applies(&directory).unwrap_err();
        let parts = ["at log index 1", said, "put 1 into `skip_entries`"];
        assert!(parts.iter().all(|part| parked.contains(part)), "{parked}");
        assert!(matches!(apply_payload(&mut node, 2, tick(9)).await, Response::NodeParked(_)));
        assert_eq!(directory.time_ms(), 7);
        drop(node);

        let (node, directory) = open(folder.path(), "profile").await;
        let mut node = node.skipping([0, 1]);
        apply_payload(&mut node, 0, tick(7)).await;
        assert_eq!(apply_payload(&mut node, 1, bad).await, Response::Nothing);
        apply_payload(&mut node, 2, tick(9)).await;
        assert_eq!((directory.time_ms(), applies(&directory)), (9, Ok(2)));
    }
}

fn profile(text: &str) -> Proposal {
    Proposal::EngineProfile(text.to_owned())
}

const TICK: Proposal = Proposal::Tick { time_ms: 9 };
/// Where the log below has its seal, and where that is decided.
const SEALED_AT: u64 = 2;
const DECIDED_AT: u64 = 6;

/// Applies, after what the node stands at, a log that is sealed for `new`, up to the report on it.
async fn apply_sealed_log(node: &mut StateMachine) {
    let from = node.last_applied.map_or(0, |last| last.index() + 1);
    if from == 0 {
        let voters = vec![[NodeId(1)].into()];
        let members = [(NodeId(1), Member::default())].into();
        let membership = membership_to_raft(Membership { voters, members }).unwrap();
        apply_payload(node, 0, EntryPayload::Membership(membership)).await;
        apply(node, 1, &profile("old")).await;
        assert_eq!(
            apply(node, SEALED_AT, &Proposal::Seal { to: "new".to_owned() }).await,
            Response::Nothing
        );
        node.finish_writing().await.unwrap();
    }
    for (index, refused) in [(3, TICK), (4, Proposal::Checkpoint)] {
        let response = apply(node, index, &refused).await;
        assert!(matches!(response, Response::Refused(_)), "{refused:?}: {response:?}");
    }
    node.finish_writing().await.unwrap();
    assert_eq!(node.snapshots.newest_index(), Some(SEALED_AT), "a refused checkpoint makes none");
    let digest = node.snapshots.digest(SEALED_AT).unwrap();
    let report = CheckpointReport { index: SEALED_AT, node: NodeId(1), digest };
    assert_eq!(apply(node, 5, &Proposal::CheckpointReport(report)).await, Response::Nothing);
}

fn applies(directory: &Directory) -> Result<u64, String> {
    directory.view().parked.clone().map_or(Ok(directory.applied()), Err)
}

/// From a seal on the builds before and after it stand at the same place, a third one doesn't;
/// what is written after goes to the one that the log decided for, and the other parks there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seal_is_crossed_by_the_profile_that_the_log_decides_for() {
    for (decided, passed_over) in [("new", "old"), ("old", "new")] {
        let folder = tempfile::tempdir().unwrap();
        let (mut node, _) = open(folder.path(), "old").await;
        apply_sealed_log(&mut node).await;
        drop(node);

        let (_, directory) = open(folder.path(), "third").await;
        assert!(applies(&directory).unwrap_err().contains("this build has third"));
        let (mut node, directory) = open(folder.path(), passed_over).await;
        assert_eq!(applies(&directory), Ok(SEALED_AT));
        apply_sealed_log(&mut node).await;
        apply(&mut node, DECIDED_AT, &profile(decided)).await;
        assert!(applies(&directory).unwrap_err().contains(decided));
        let response = apply(&mut node, DECIDED_AT + 1, &TICK).await;
        assert!(matches!(response, Response::NodeParked(_)), "{response:?}");
        assert_eq!((directory.time_ms(), directory.applied()), (0, DECIDED_AT));
        drop(node);

        let (mut node, directory) = open(folder.path(), decided).await;
        apply_sealed_log(&mut node).await;
        apply(&mut node, DECIDED_AT, &profile(decided)).await;
        assert!(node.progress.borrow().checkpoint_due);
        assert_eq!(apply(&mut node, DECIDED_AT + 1, &TICK).await, Response::Nothing);
        assert_eq!((directory.time_ms(), applies(&directory)), (9, Ok(DECIDED_AT + 1)));
        apply(&mut node, DECIDED_AT + 2, &Proposal::Checkpoint).await;
        assert!(!node.progress.borrow().checkpoint_due);
        node.finish_writing().await.unwrap();
        drop(node);

        let (_, directory) = open(folder.path(), passed_over).await;
        assert!(applies(&directory).unwrap_err().contains(decided));
        let (_, directory) = open(folder.path(), decided).await;
        assert_eq!(applies(&directory), Ok(DECIDED_AT + 2));
    }
}

/// Modules in memory, which looks at what the node shows when one comes.
struct Watching {
    modules: MemoryLibrary,
    directory: Arc<Directory>,
    /// Guests that could be asked as each module came, and whether the state was being replaced.
    seen: std::sync::Mutex<Vec<(usize, bool)>>,
    /// No file can be opened.
    busy: std::sync::atomic::AtomicBool,
}

impl Watching {
    fn new(directory: &Arc<Directory>) -> Self {
        let (modules, directory) = (MemoryLibrary::default(), Arc::clone(directory));
        Self { modules, directory, seen: std::sync::Mutex::default(), busy: false.into() }
    }
}

impl ModuleLibrary for Watching {
    fn put(&self, digest: &ModuleDigest, bytes: &[u8]) -> io::Result<()> {
        let view = self.directory.view();
        let guests = view.machines.values().filter(|machine| machine.guest.is_some()).count();
        self.seen.lock().unwrap().push((guests, view.replacing));
        self.modules.put(digest, bytes)
    }

    fn get(&self, digest: &ModuleDigest) -> io::Result<bytes::Bytes> {
        match self.busy.load(std::sync::atomic::Ordering::Relaxed) {
            true => Err(io::ErrorKind::ResourceBusy.into()),
            false => self.modules.get(digest),
        }
    }

    fn list(&self) -> io::Result<Vec<ModuleDigest>> {
        self.modules.list()
    }

    fn remove(&self, digest: &ModuleDigest) -> io::Result<()> {
        self.modules.remove(digest)
    }
}

/// Stages the counter, and creates this machine on it, by entries from 0 on; the next index.
async fn with_counter(node: &mut StateMachine, name: &str) -> u64 {
    let bytes = wasm::tests::component("counter");
    let digest = ModuleDigest(<[u8; 32]>::from(<sha2::Sha256 as sha2::Digest>::digest(&bytes)));
    let length = u64::try_from(bytes.len()).unwrap();
    let chunk = ModuleChunk { digest, length, offset: 0, bytes };
    assert_eq!(apply(node, 0, &Proposal::Tick { time_ms: 1 }).await, Response::Nothing);
    assert_eq!(apply(node, 1, &Proposal::StageModule(chunk)).await, Response::Nothing);
    let limits = crate::machine::Limits::default();
    let create = Proposal::CreateMachine { name: name.to_owned(), module: digest, limits };
    assert!(matches!(apply(node, 2, &create).await, Response::MachineCreated(_)));
    3
}

/// A snapshot of a peer takes the place of a state whose guests have ended by then, so that memory
/// holds one of the two; queries are refused meanwhile, and answered by the new state after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_ends_before_another_takes_its_place() {
    let theirs = tempfile::tempdir().unwrap();
    let (mut peer, _) = open(theirs.path(), "same").await;
    let next = with_counter(&mut peer, "theirs").await;
    apply(&mut peer, next, &Proposal::Checkpoint).await;
    peer.finish_writing().await.unwrap();
    let snapshot = peer.snapshots.dir().newest().unwrap();

    let ours = tempfile::tempdir().unwrap();
    let directory = Arc::new(Directory::default());
    let library = Arc::new(Watching::new(&directory));
    let watched: Arc<dyn ModuleLibrary> = Arc::clone(&library) as Arc<dyn ModuleLibrary>;
    let mut node = open_with(ours.path(), "same", Arc::clone(&directory), watched).await;
    with_counter(&mut node, "ours").await;
    assert_eq!(library.seen.lock().unwrap().drain(..).collect::<Vec<_>>(), [(0, false)]);
    assert!(directory.view().machines["ours"].guest.is_some());

    node.install_snapshot(&meta_to_raft(&snapshot).unwrap(), snapshot).await.unwrap();
    assert_eq!(*library.seen.lock().unwrap(), [(0, true)], "no guest ran as the other state came");
    let view = directory.view();
    assert!(!view.replacing && view.machines["theirs"].guest.is_some());
    assert!(!view.machines.contains_key("ours"));
}

/// Who watches is told of the first news and once a checkpoint is due: not of each entry.
#[tokio::test]
async fn entries_wake_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let (mut node, _) = open(folder.path(), "a").await;
    let mut progress = node.progress.subscribe();
    let limits = Proposal::SetClusterLimits(ClusterLimits::default());
    let entries = [&TICK, &limits, &limits, &TICK, &TICK];
    for (index, (entry, told)) in
        (1..).zip(entries.into_iter().zip([false, true, false, true, true]))
    {
        apply(&mut node, index, entry).await;
        assert_eq!(progress.has_changed().unwrap(), told, "entry {index}");
        progress.mark_unchanged();
    }
    let progress = *progress.borrow();
    assert_eq!((progress.applied, progress.entries_since_checkpoint), (Some(5), 5));
}

/// A snapshot waits for what it lacks, with an alarm, until it can be had, or until the next
/// checkpoint takes its place. The node goes on in each case.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_waits_for_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let directory = Arc::new(Directory::default());
    let library = Arc::new(Watching::new(&directory));
    let watched: Arc<dyn ModuleLibrary> = Arc::clone(&library) as Arc<dyn ModuleLibrary>;
    let mut node = open_with(folder.path(), "same", directory, watched).await;
    let next = with_counter(&mut node, "counter").await;
    let set_busy = |is: bool| library.busy.store(is, std::sync::atomic::Ordering::Relaxed);
    let mut newest = node.snapshots.watch();
    set_busy(true);
    apply(&mut node, next, &Proposal::Checkpoint).await;
    // It is given up.
    apply(&mut node, next + 1, &Proposal::Checkpoint).await;
    let unwritten = node.snapshots.alarms().unwritten().unwrap();
    assert!(unwritten.contains("cannot read module"), "{unwritten}");
    set_busy(false);
    newest.wait_for(|newest| *newest == Some(next + 1)).await.unwrap();
    assert_eq!(node.snapshots.alarms().unwritten(), None);
    node.check_writing().await.unwrap();
    assert_eq!(node.snapshots.dir().list().len(), 1);
}
