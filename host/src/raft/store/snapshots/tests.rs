//! Which snapshots may be given to peers, which are kept, and up to where the log may go.

use sha2::{Digest as _, Sha256};

use super::content::SECTION_DIGEST;
use super::*;
use crate::types::{LogId, NodeId};

/// The digest of a state, by a letter. As incompressible as a real one.
fn state(letter: u8) -> StateDigest {
    StateDigest(Sha256::digest([letter]).into())
}

/// Writes a snapshot of this state, as a checkpoint would.
fn write_state(dir: &SnapshotDir, index: LogIndex, letter: u8) -> Snapshot {
    let last = LogId { term: 1, node: NodeId(1), index };
    let mut writer = dir.begin(Some(last), b"").unwrap();
    writer.section(SECTION_DIGEST).unwrap();
    writer.chunk(&state(letter).0).unwrap();
    writer.finish().unwrap()
}

/// A folder with snapshots of state `a` at these indexes.
fn folder(indexes: &[LogIndex]) -> (tempfile::TempDir, SnapshotDir) {
    let folder = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(folder.path()).unwrap();
    for index in indexes {
        write_state(&dir, *index, b'a');
    }
    (folder, dir)
}

fn kept(snapshots: &Snapshots) -> Vec<LogIndex> {
    snapshots.clean().unwrap();
    snapshots.dir().list().iter().filter_map(index).collect()
}

fn given(snapshots: &Snapshots) -> Option<LogIndex> {
    snapshots.agreed().as_ref().and_then(index)
}

/// At a start, before the log has been applied again, a snapshot is given only if the log was
/// purged for it, or does not reach it: openraft needs it then.
#[test]
fn what_is_given_at_a_start() {
    type Row = (&'static [LogIndex], Option<LogIndex>, Option<LogIndex>, Option<LogIndex>);
    let rows: [Row; 7] = [
        (&[], None, None, None),
        (&[10, 20], None, Some(25), None),
        (&[10, 20], Some(10), Some(25), Some(10)),
        (&[10, 20, 30], Some(25), Some(35), Some(20)),
        // A peer's, which the crash left ahead of the log.
        (&[10, 40], Some(10), Some(25), Some(40)),
        // A repair's.
        (&[30], Some(10), Some(35), Some(30)),
        (&[10], None, Some(5), Some(10)),
    ];
    for (indexes, purged, last, expected) in rows {
        let (_folder, dir) = folder(indexes);
        let snapshots = Snapshots::new(dir, purged, last);
        assert_eq!(given(&snapshots), expected, "{indexes:?}, purged {purged:?}, last {last:?}");
    }
}

/// Only what was agreed on is given to peers and lets the log go, and only back to the agreed
/// one before; what may still be agreed on is kept.
#[test]
fn agreement_decides_what_is_given_and_kept() {
    let (_folder, dir) = folder(&[10, 20, 30]);
    let snapshots = Snapshots::new(dir.clone(), None, Some(100));
    assert_eq!((given(&snapshots), snapshots.purgeable()), (None, None));
    assert_eq!(kept(&snapshots), [10, 20, 30]);
    assert_eq!(snapshots.compare(20, state(b'a')), None);
    assert_eq!((given(&snapshots), snapshots.purgeable()), (Some(20), None));
    assert_eq!(kept(&snapshots), [20, 30], "older ones are of no use");
    assert_eq!(snapshots.compare(30, state(b'a')), None);
    assert_eq!((given(&snapshots), snapshots.purgeable()), (Some(30), Some(20)));
    for index in [40, 50, 60, 70, 80] {
        write_state(&dir, index, b'a');
    }
    assert_eq!(kept(&snapshots), [20, 30, 50, 60, 70, 80], "no report can be about 40 any more");
    assert_eq!(snapshots.compare(70, state(b'a')), None);
    assert_eq!((given(&snapshots), snapshots.purgeable()), (Some(70), Some(30)));
    assert_eq!(kept(&snapshots), [30, 70, 80]);
    assert_eq!(snapshots.compare(90, state(b'a')), None, "nothing is here to compare");
    assert_eq!(given(&snapshots), Some(70));
}

/// A snapshot that differs is evidence: it is never given, also where it was believed at the
/// start, and stays when others come.
#[test]
fn what_differs_is_kept_as_evidence() {
    let (_folder, dir) = folder(&[10]);
    write_state(&dir, 20, b'b');
    let snapshots = Snapshots::new(dir.clone(), Some(10), Some(15));
    assert_eq!(given(&snapshots), Some(20), "it was taken for a peer's");
    let found = snapshots.compare(20, state(b'a')).unwrap();
    let snapshot = "00000000000000000020-1-1.snapshot".to_owned();
    let expected = Quarantine { index: 20, agreed: state(b'a'), own: state(b'b'), snapshot };
    assert_eq!((found, given(&snapshots)), (expected, Some(10)));
    for index in [30, 40] {
        snapshots.adopt_agreed(&write_state(&dir, index, b'a'));
    }
    assert_eq!((kept(&snapshots), snapshots.purgeable()), (vec![20, 30, 40], Some(30)));

    let again = Snapshots::new(dir, Some(40), Some(45));
    again.keep_evidence(20);
    assert_eq!((kept(&again), given(&again)), (vec![20, 40], Some(40)));
}

/// A damaged snapshot is passed over; openraft is given the newest damaged one rather than none,
/// which it would take for a failed disk.
#[test]
fn openraft_is_given_a_snapshot_while_all_are_damaged() {
    let (_folder, dir) = folder(&[10, 20]);
    let snapshots = Snapshots::new(dir.clone(), Some(10), Some(15));
    let offered = || snapshots.agreed_or_damaged().as_ref().and_then(index);
    assert_eq!((given(&snapshots), offered()), (Some(20), Some(20)));
    for (snapshot, sound) in dir.list().iter().rev().zip([Some(10), None]) {
        let file = std::fs::OpenOptions::new().write(true).open(snapshot.path()).unwrap();
        file.set_len(10).unwrap();
        snapshot.check().unwrap_err();
        assert_eq!((given(&snapshots), offered()), (sound, sound.or(Some(20))));
    }
}
