//! What a crash may leave of the log is cut; anything else that is wrong with it is refused, by
//! file and offset. Each case is a copy of a log's files, changed, and opened.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc;

use bytes::Bytes;
use lockstep_host::storage::{Error, Log, LogConfig, LogState, Payload};
use lockstep_host::types::{LogId, NodeId, Vote};
use tempfile::TempDir;

const VOTE: Vote = Vote { term: 1, node: NodeId(1), committed: true };
const SECTOR: usize = 512;

fn config() -> LogConfig {
    LogConfig { segment_bytes: 20_000, cache_bytes: 1 << 20 }
}

fn log_id(index: u64) -> LogId {
    LogId { term: 1, node: NodeId(1), index }
}

/// Bytes that hold no zeros.
fn entry(index: u64, length: usize) -> (LogId, Payload) {
    let fill = u8::try_from(index % 200).unwrap() + 1;
    (log_id(index), Payload { kind: 1, bytes: Bytes::from(vec![fill; length]) })
}

/// The files of a log, without the zeros at their ends, to be changed and opened.
#[derive(Clone)]
struct Files {
    by_name: BTreeMap<String, Vec<u8>>,
    /// Ends of what each step of writing had on disk, in bytes of the last file.
    ends: Vec<usize>,
}

/// Writes a log step by step, each one synced before the next.
struct Script {
    folder: TempDir,
    log: Log,
    ends: Vec<usize>,
}

impl Script {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::open(folder.path(), &config()).unwrap();
        Self { folder, log, ends: Vec::new() }
    }

    fn step(mut self, write: impl FnOnce(&Log, lockstep_host::storage::FlushDone)) -> Self {
        let (sender, receiver) = mpsc::channel();
        write(&self.log, Box::new(move |result| sender.send(result).unwrap()));
        receiver.recv().unwrap().unwrap();
        let files = read_files(&self.folder.path().to_owned());
        self.ends.push(files.last_key_value().unwrap().1.len());
        self
    }

    fn append(self, first: u64, lengths: &[usize]) -> Self {
        let entries: Vec<_> =
            (first..).zip(lengths).map(|(index, length)| entry(index, *length)).collect();
        self.step(|log, done| log.append(entries, done).unwrap())
    }

    fn vote(self, term: u64) -> Self {
        self.step(|log, done| log.save_vote(Vote { term, ..VOTE }, done).unwrap())
    }

    fn files(self) -> Files {
        drop(self.log);
        Files { by_name: read_files(&self.folder.path().to_owned()), ends: self.ends }
    }
}

fn read_files(folder: &PathBuf) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
        // The next segment may become visible, or be given up, at any time.
        let Ok(mut bytes) = std::fs::read(entry.path()) else { continue };
        let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        bytes.truncate(written);
        if written > 0 {
            files.insert(entry.file_name().into_string().unwrap(), bytes);
        }
    }
    files
}

impl Files {
    fn last(&self) -> (&String, &Vec<u8>) {
        self.by_name.last_key_value().unwrap()
    }

    fn last_mut(&mut self) -> &mut Vec<u8> {
        self.by_name.last_entry().unwrap().into_mut()
    }

    /// Opens a copy, and reads all of it.
    fn open(&self) -> Result<(LogState, usize), Error> {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in &self.by_name {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        let log = Log::open(folder.path(), &config())?;
        let state = log.state()?;
        let entries = log.read(0..u64::MAX)?.len();
        // What was cut stays away, and the log can go on.
        let next = state.last.map_or(0, |id| id.index + 1);
        let (sender, receiver) = mpsc::channel();
        log.append([entry(next, 10)], Box::new(move |result| sender.send(result).unwrap()))?;
        receiver.recv().unwrap().unwrap();
        drop(log);
        let again = Log::open(folder.path(), &config())?.state()?;
        assert_eq!(again.last, Some(log_id(next)));
        Ok((state, entries))
    }

    fn assert_refused(&self, name: &str, position: usize, what: &str) {
        let error = self.open().expect_err(what);
        let Error::Damaged { file, offset, .. } = &error else { panic!("{what}: {error}") };
        assert!(file.ends_with(name), "{what}: {error}");
        assert!(usize::try_from(*offset).unwrap() <= position, "{what}: {error}");
    }
}

/// A log with every kind of record, in one segment.
fn every_kind() -> Files {
    Script::new()
        .vote(1)
        .append(0, &[100, 700])
        .step(|log, done| log.append([entry(2, 40)], done).unwrap())
        .step(|log, done| {
            log.save_committed(Some(log_id(1))).unwrap();
            log.truncate_after(Some(log_id(1)), done).unwrap();
        })
        .append(2, &[50])
        .step(|log, done| log.purge(log_id(0), done).unwrap())
        .vote(2)
        .append(3, &[60])
        .files()
}

/// A flipped bit is refused wherever it is, in every kind of record, the last one included, and
/// never taken for a torn end.
#[test]
fn a_flipped_bit_is_refused() {
    let files = every_kind();
    let (name, whole) = files.last();
    for position in 0..whole.len() {
        let is_inside_payload = (300..900).contains(&position);
        if is_inside_payload && position % 37 != 0 {
            continue;
        }
        let mut damaged = files.clone();
        damaged.last_mut()[position] ^= 1 << (position % 8);
        damaged.assert_refused(name, position, &format!("a flip at {position}"));
    }
    assert_eq!(files.open().unwrap().1, 3);
}

/// The same in a segment that is not the last one.
#[test]
fn a_flipped_bit_in_a_closed_segment_is_refused() {
    let files = Script::new().vote(1).append(0, &[9000, 9000, 9000, 100]).files();
    assert_eq!(files.by_name.len(), 2);
    let (name, whole) = files.by_name.first_key_value().unwrap();
    for position in (0..200).chain((200..whole.len()).step_by(409)) {
        let mut damaged = files.clone();
        damaged.by_name.get_mut(name).unwrap()[position] ^= 1 << (position % 8);
        damaged.assert_refused(name, position, &format!("a flip at {position}"));
    }
}

/// A flipped kind or length, of which the record would be too short, is not taken for an end of the
/// file within a record.
#[test]
fn a_record_flipped_into_a_longer_one_is_refused() {
    let truncate = |log: &Log, done| log.truncate_after(None, done).unwrap();
    let purge = |log: &Log, done| log.purge(log_id(0), done).unwrap();
    let script = || Script::new().vote(1).append(0, &[10]);
    for files in [script().files(), script().step(truncate).files(), script().step(purge).files()] {
        let start = files.ends[files.ends.len() - 2];
        let (name, whole) = files.last();
        for bit in (start * 8..whole.len() * 8).filter(|bit| *bit < (start + 32) * 8) {
            let mut damaged = files.clone();
            damaged.last_mut()[bit / 8] ^= 1 << (bit % 8);
            damaged.assert_refused(name, bit / 8, &format!("bit {bit}"));
        }
    }
}

/// A vote that is damaged stops the start: it is never taken for no vote, nor for the one before.
#[test]
fn a_damaged_vote_is_refused() {
    let files = Script::new().vote(1).append(0, &[10]).vote(2).files();
    let (name, whole) = files.last();
    let start = files.ends[files.ends.len() - 2];
    for position in start..whole.len() {
        for bit in [0, 5] {
            let mut damaged = files.clone();
            damaged.last_mut()[position] ^= 1 << bit;
            damaged.assert_refused(name, position, &format!("bit {bit} of the vote's {position}"));
        }
    }
    assert_eq!(files.open().unwrap().0.vote.unwrap().term, 2);
}

/// A file that ends inside its last record, wherever, is cut: the records before stay.
#[test]
fn a_short_last_record_is_cut() {
    let files = Script::new().vote(1).append(0, &[100, 700]).append(2, &[40]).files();
    let (_, whole) = files.last();
    let last_start = files.ends[1];
    for length in last_start..whole.len() {
        let mut cut = files.clone();
        cut.last_mut().truncate(length);
        let (state, entries) = cut.open().unwrap();
        assert_eq!((state.last, entries), (Some(log_id(1)), 2), "cut to {length}");
        assert_eq!(state.vote, Some(VOTE));
    }
}

/// Sectors that were never written are zeros. Where no later record says that they had been
/// synced, they and what follows are cut, also when whole records follow.
#[test]
fn an_unwritten_sector_at_the_end_is_cut() {
    // One write of three records, so that none of them attests another.
    let files = Script::new().vote(1).append(0, &[300]).append(1, &[700, 2000, 30]).files();
    let written = files.ends[1];
    let length = files.last().1.len();
    for sector in written / SECTOR..=length / SECTOR {
        let hole = (sector * SECTOR).max(written)..((sector + 1) * SECTOR).min(length);
        if hole.len() < 5 {
            continue;
        }
        let mut torn = files.clone();
        torn.last_mut()[hole.clone()].fill(0);
        let (state, entries) = torn.open().unwrap_or_else(|error| panic!("{hole:?}: {error}"));
        assert!((1..4).contains(&entries), "{hole:?} left {entries} entries");
        assert_eq!(state.vote, Some(VOTE));
    }
    let mut longer = files.clone();
    longer.last_mut().extend([0; 5000]);
    assert_eq!(longer.open().unwrap().1, 4);
}

/// The same zeros are refused where a later record says that they had been synced.
#[test]
fn an_unwritten_sector_that_was_synced_is_refused() {
    let by_entry = Script::new().vote(1).append(0, &[300]).append(1, &[2000]).append(2, &[30]);
    let by_vote = Script::new().vote(1).append(0, &[300]).append(1, &[2000]).vote(2);
    for (what, files) in [("an entry", by_entry.files()), ("a vote", by_vote.files())] {
        let (name, _) = files.last();
        let mut damaged = files.clone();
        damaged.last_mut()[2 * SECTOR..3 * SECTOR].fill(0);
        damaged.assert_refused(name, 2 * SECTOR, what);
    }
}

/// After a clean stop no zeros are taken for a torn end.
#[test]
fn after_a_clean_stop_every_unwritten_sector_is_refused() {
    let script = Script::new().vote(1).append(0, &[300, 2000]);
    script.log.sync().unwrap();
    let files = script.files();
    let (name, _) = files.last();
    for sector in 0..4 {
        let mut damaged = files.clone();
        damaged.last_mut()[sector * SECTOR..(sector + 1) * SECTOR].fill(0);
        damaged.assert_refused(name, sector * SECTOR, &format!("sector {sector}"));
    }
    assert_eq!(files.open().unwrap().1, 2);
}

/// Noise where a record should start, which no crash leaves, is refused.
#[test]
fn noise_at_the_end_is_refused() {
    let files = Script::new().vote(1).append(0, &[300]).files();
    let (name, whole) = files.last();
    let mut damaged = files.clone();
    damaged.last_mut().extend([0xa5; 100]);
    damaged.assert_refused(name, whole.len(), "noise");
}

/// A segment whose first record was not written yet does not count, and the segment before it is
/// the end of the log, even if it is short itself.
#[test]
fn an_unfinished_segment_is_removed() {
    let files = Script::new().vote(1).append(0, &[15_000, 6000, 100]).files();
    assert_eq!(files.by_name.len(), 2);
    let first_record = files.last().1.len() - (32 + 24 + 100 + 1);
    for length in 0..first_record {
        for zeros in [false, true] {
            let mut torn = files.clone();
            let tail = torn.last_mut();
            tail.truncate(length);
            if zeros {
                tail.fill(0);
            }
            let (state, entries) = torn.open().unwrap();
            assert_eq!((state.last, entries), (Some(log_id(1)), 2), "{length}, zeros: {zeros}");
            assert_eq!(state.vote, Some(VOTE));
        }
    }
    let mut torn = files.clone();
    torn.last_mut().clear();
    let (name, first) = torn.by_name.first_key_value().unwrap();
    let (name, whole) = (name.clone(), first.len());
    torn.by_name.get_mut(&name).unwrap().truncate(16_000);
    assert_eq!(torn.open().unwrap().1, 1);
    // What was begun attests that the segment before it was synced.
    for length in 1..first_record {
        let mut damaged = files.clone();
        damaged.last_mut().truncate(length);
        damaged.by_name.get_mut(&name).unwrap().truncate(16_000);
        damaged.assert_refused(&name, whole, &format!("{length} bytes of the next"));
    }
}

/// Zeros behind the records, and segments that were prepared, are no part of the log.
#[test]
fn prepared_zeros_are_no_records() {
    let mut files = Script::new().vote(1).append(0, &[300]).files();
    files.last_mut().resize(20_000, 0);
    for number in 2..5 {
        files.by_name.insert(format!("{number:020}.wal"), vec![0; 20_000]);
    }
    assert_eq!(files.open().unwrap().1, 1);
    let (name, length) = (files.by_name.keys().next().unwrap().clone(), files.ends[1]);
    files.by_name.get_mut(&format!("{:020}.wal", 3)).unwrap()[777] = 1;
    files.assert_refused(&format!("{:020}.wal", 2), 0, "something is in the third");
    files.by_name.get_mut(&name).unwrap()[length - 1] = 0;
    files.assert_refused(&name, length, "the end of the first is bad too");
}

/// A log that lost its beginning is not taken for a new log.
#[test]
fn a_lost_beginning_is_refused() {
    for files in [Script::new().files(), Script::new().vote(1).append(0, &[300]).files()] {
        let (name, _) = files.last();
        let mut zeros = files.clone();
        zeros.last_mut().fill(0);
        zeros.assert_refused(name, 0, "all zeros");
        for length in [0, 7, 36] {
            let mut short = files.clone();
            short.last_mut().truncate(length);
            short.assert_refused(name, 0, "the first record is short");
        }
    }
}

/// A segment must go on from the state in which the one before it ended.
#[test]
fn a_segment_of_another_log_is_refused() {
    let with_vote = |term| Script::new().vote(term).append(0, &[9000; 5]).files();
    let (files, other) = (with_vote(1), with_vote(2));
    let (name, last) = other.last();
    let mut mixed = files.clone();
    mixed.by_name.insert(name.clone(), last.clone());
    mixed.assert_refused(name, 0, "a vote that was never cast here");
    assert_eq!(files.open().unwrap().1, 5);
}

/// A segment that is missing, short, or has another name is refused.
#[test]
fn a_missing_segment_is_refused() {
    let files = Script::new().vote(1).append(0, &[9000; 9]).files();
    let names: Vec<_> = files.by_name.keys().cloned().collect();
    assert_eq!(names.len(), 3);
    let without = |name: &String| {
        let mut changed = files.clone();
        let bytes = changed.by_name.remove(name).unwrap();
        (changed, bytes)
    };
    let error = without(&names[0]).0.open().unwrap_err();
    assert!(error.to_string().contains("which holds entry 0, is missing"), "{error}");
    without(&names[1]).0.assert_refused(&names[0], usize::MAX, "a gap");

    let (mut renamed, bytes) = without(&names[2]);
    renamed.by_name.insert("4.wal".to_owned(), bytes);
    renamed.assert_refused("4.wal", 0, "another name");

    let (mut short, mut bytes) = without(&names[1]);
    bytes.truncate(bytes.len() - 1);
    short.by_name.insert(names[1].clone(), bytes);
    short.assert_refused(&names[1], usize::MAX, "a closed segment that is short");
    assert_eq!(files.open().unwrap().1, 9);
}
