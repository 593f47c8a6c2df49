//! The data folder: one process, one node, one cluster, and an identity that cannot be mistaken.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::path::Path;

use lockstep_host::config::FileConfig;
use lockstep_host::storage::modules::ModuleStore;
use lockstep_host::storage::{DataDir, Error, Log, LogConfig, space};
use lockstep_host::types::{ClusterId, ModuleDigest, NodeId};

const NODE: NodeId = NodeId(7);
const CLUSTER: ClusterId = ClusterId([0xab; 16]);

/// A start creates the identity, and later ones find it: incarnation and cluster stay.
#[test]
fn the_identity_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("not").join("there");
    let first = DataDir::open(&path, NODE).unwrap();
    let created = first.identity();
    assert_eq!((created.node_id, created.cluster), (NODE, None));
    drop(Log::open(&first.log(), &LogConfig::from(&FileConfig::default())).unwrap());
    first.join_cluster(CLUSTER).unwrap();
    drop(first);

    let second = DataDir::open(&path, NODE).unwrap();
    assert_eq!(second.identity().cluster, Some(CLUSTER));
    assert_eq!(second.identity().incarnation, created.incarnation);
    second.join_cluster(CLUSTER).unwrap();
}

/// Two folders of one node never have the same incarnation.
#[test]
fn every_folder_has_an_incarnation_of_its_own() {
    let open = || {
        let folder = tempfile::tempdir().unwrap();
        DataDir::open(folder.path(), NODE).unwrap().identity().incarnation
    };
    assert_ne!(open(), open());
}

/// A second process is told who holds the folder, and gets it once the first is gone.
#[test]
fn the_folder_is_locked_while_it_is_open() {
    let folder = tempfile::tempdir().unwrap();
    let first = DataDir::open(folder.path(), NODE).unwrap();
    let error = DataDir::open(folder.path(), NODE).unwrap_err();
    let expected = format!("locked by process {}", std::process::id());
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    assert!(error.to_string().contains(&expected), "{error}");
    assert!(error.to_string().contains("data folder already in use"), "{error}");
    drop(first);
    DataDir::open(folder.path(), NODE).unwrap();
}

/// A folder of another node and one of another cluster are refused, with the repair.
#[test]
fn a_folder_of_another_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = DataDir::open(folder.path(), NODE).unwrap();
    data_dir.join_cluster(CLUSTER).unwrap();
    let error = data_dir.join_cluster(ClusterId([1; 16])).unwrap_err();
    assert!(matches!(error, Error::WrongCluster { found: CLUSTER, .. }), "{error}");
    drop(data_dir);
    let error = DataDir::open(folder.path(), NodeId(8)).unwrap_err();
    assert!(matches!(error, Error::WrongNode { found: NODE, asked: NodeId(8), .. }), "{error}");
    assert!(error.to_string().contains("--node-id 7"), "{error}");
}

/// A node that was in a cluster and whose log is gone must not start: it forgot its votes.
#[test]
fn a_wiped_log_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = DataDir::open(folder.path(), NODE).unwrap();
    data_dir.join_cluster(CLUSTER).unwrap();
    let log = data_dir.log();
    drop(data_dir);
    let refused = |what: &str| {
        let error = DataDir::open(folder.path(), NODE).unwrap_err();
        assert!(matches!(error, Error::LogMissing { .. }), "{what}: {error}");
        assert!(error.to_string().contains("lockstep cluster remove"), "{error}");
    };
    refused("no folder");
    std::fs::create_dir(&log.folder).unwrap();
    refused("no segment");
    std::fs::create_dir(log.folder.join("lost+found")).unwrap();
    refused("a new disk");
    std::fs::remove_dir_all(&log.folder).unwrap();
    drop(Log::open(&log, &LogConfig::from(&FileConfig::default())).unwrap());
    DataDir::open(folder.path(), NODE).unwrap();
}

/// A folder with data and no identity does not get another one.
#[test]
fn a_lost_identity_is_not_replaced() {
    for (kind, name) in [("log", "00000000000000000001.wal"), ("snapshots", "empty.snapshot")] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(kind)).unwrap();
        std::fs::write(folder.path().join(kind).join(name), b"x").unwrap();
        let error = DataDir::open(folder.path(), NODE).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{kind}: {error}");
        assert!(!folder.path().join("identity").exists());
    }
}

/// A flipped bit in any byte of the identity, and any length it is cut to, are refused, and the
/// file is named.
#[test]
fn a_damaged_identity_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    DataDir::open(folder.path(), NODE).unwrap().join_cluster(CLUSTER).unwrap();
    let path = folder.path().join("identity");
    let whole = std::fs::read(&path).unwrap();
    let refused = |bytes: &[u8], what: &str| {
        std::fs::write(&path, bytes).unwrap();
        let error = DataDir::open(folder.path(), NODE).expect_err(what);
        assert!(matches!(&error, Error::Damaged { file, .. } if *file == path), "{what}: {error}");
    };
    for position in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[position] ^= 1 << (position % 8);
        refused(&damaged, &format!("a bit of byte {position}"));
    }
    for length in (0..whole.len()).step_by(3) {
        refused(&whole[..length], &format!("cut to {length}"));
    }
    refused(&[&whole[..], b"\n"].concat(), "one more line");
}

fn sha256(bytes: &[u8]) -> ModuleDigest {
    use sha2::Digest as _;
    ModuleDigest(sha2::Sha256::digest(bytes).into())
}

/// Modules come back as they were stored, by digest; what is not that digest never does.
#[test]
fn modules_are_what_their_digest_says() {
    let folder = tempfile::tempdir().unwrap();
    let store = ModuleStore::open(folder.path()).unwrap();
    let bytes = b"a module".repeat(1000);
    let digest = sha256(&bytes);
    assert_eq!(store.get(digest).unwrap(), None);
    store.put(digest, &bytes).unwrap();
    store.put(digest, &bytes).unwrap();
    assert_eq!(store.get(digest).unwrap().unwrap().as_ref(), bytes);
    assert!(matches!(store.put(sha256(b"other"), &bytes), Err(Error::Refused(_))));
    std::fs::write(folder.path().join("readme.wasm"), b"").unwrap();
    assert_eq!(store.list().unwrap(), [digest]);

    let path = only_module(folder.path());
    let mut damaged = bytes.clone();
    damaged[4000] ^= 1;
    std::fs::write(&path, damaged).unwrap();
    assert!(matches!(store.get(digest), Err(Error::Damaged { file, .. }) if file == path));
    store.put(digest, &bytes).unwrap();
    assert_eq!(store.get(digest).unwrap().unwrap().as_ref(), bytes);

    store.remove(digest).unwrap();
    store.remove(digest).unwrap();
    assert!(store.list().unwrap().is_empty());
}

fn only_module(folder: &Path) -> std::path::PathBuf {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let stem = |path: &Path| path.file_stem().unwrap().len();
    paths.into_iter().find(|path| stem(path) == 64).unwrap()
}

/// Free space is that of the disk under the folder, and errors name the folder.
#[test]
fn free_space_is_known() {
    assert!(space::free(Path::new("/")).unwrap().bytes > 0);
    let error = space::free(Path::new("/no/such/folder")).unwrap_err();
    assert!(error.to_string().contains("/no/such/folder"), "{error}");
}
