//! What a crash may leave of the log is cut; anything else that is wrong with it is refused, by
//! file and offset. Each case is a copy of a log's files, changed, and opened.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod files;

use lockstep_host::storage::Log;

use files::{Files, HEAD, SECTOR, SEGMENT, Script, VOTE, config, entry, log_id, place};

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
    assert_eq!(files.in_use().len(), 2);
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

/// A file that is shorter than it was prepared is refused, wherever it ends: no crash makes one,
/// and what somebody cut off may have been acknowledged. So is one that holds nothing.
#[test]
fn a_cut_file_is_refused() {
    let files = Script::new().vote(1).append(0, &[9000, 9000]).append(2, &[9000, 40]).files();
    let names: Vec<String> = files.by_name.keys().cloned().collect();
    assert_eq!((names.len(), files.in_use().len()), (3, 2));
    for name in &names {
        let written = files.by_name[name].len();
        let lengths = (0..200).chain((200..SEGMENT).step_by(701)).chain([written, SEGMENT - 1]);
        for length in lengths {
            let mut cut = files.clone();
            cut.by_name.get_mut(name).unwrap().truncate(length);
            cut.lengths.insert(name.clone(), length);
            let said = cut.assert_refused(name, length, &format!("{name} of {length} bytes"));
            let expected = if length < HEAD { "ends inside its head" } else { "somebody cut it" };
            assert!(said.contains(expected), "{length}: {said}");
        }
    }
    assert_eq!(files.open().unwrap().1, 4);
}

/// The last files of a log, all of them together or one alone, are missed, also the one that is
/// only prepared; so are all files. A log without a ledger, or with another's, is refused.
#[test]
fn missing_files_are_refused() {
    let script = Script::new().vote(1).append(0, &[9000, 9000]).append(2, &[9000, 9000]);
    let files = script.append(4, &[9000]).files();
    let names: Vec<String> = files.by_name.keys().cloned().collect();
    assert_eq!((names.len(), files.in_use().len()), (4, 3));
    for kept in 0..names.len() {
        let mut fewer = files.clone();
        fewer.by_name.retain(|name, _| names[..kept].contains(name));
        let said = fewer.assert_refused(&names[3], 0, &format!("the first {kept} files"));
        assert!(said.contains("the file is missing, and the log had it"), "{said}");
    }
    let mut without = files.clone();
    without.by_name.remove(&names[2]);
    let said = without.assert_refused(&names[3], HEAD, "the last one in use");
    assert!(said.contains("no file of the log is before it"), "{said}");

    let mut damaged = files.clone();
    damaged.ledger.fill(0);
    let said = damaged.assert_refused("log-ledger", 0, "a ledger of zeros");
    assert!(said.contains("neither of its two slots"), "{said}");
    let folder = files.write();
    std::fs::remove_file(place(folder.path()).ledger).unwrap();
    let error = Log::open(&place(folder.path()), &config()).unwrap_err().to_string();
    assert!(error.contains("it is missing, and the log is not"), "{error}");
}

/// Files that were put back from an earlier time, or come from another node, are refused by name:
/// all of them together, and each alone.
#[test]
fn files_of_another_time_or_node_are_refused() {
    let write = |script: Script| script.vote(1).append(0, &[9000, 9000]);
    let earlier = write(Script::new()).files();
    let later = write(Script::new()).append(2, &[9000, 9000]).append(4, &[9000]);
    let files = later.files();
    let mut old = files.clone();
    old.by_name.clone_from(&earlier.by_name);
    let newest = files.by_name.last_key_value().unwrap().0;
    old.assert_refused(newest, 0, "an earlier copy of the folder");
    for (name, bytes) in &earlier.by_name {
        let mut old = files.clone();
        old.by_name.insert(name.clone(), bytes.clone());
        if old.by_name == files.by_name {
            continue;
        }
        old.assert_refused(name, HEAD, "an earlier copy of a file");
    }
    let foreign = write(Script::of(9)).append(2, &[9000, 9000]).append(4, &[9000]).files();
    let mut all = files.clone();
    all.by_name.clone_from(&foreign.by_name);
    let first = files.by_name.first_key_value().unwrap().0;
    let said = all.assert_refused(first, 0, "the log of another node");
    assert!(said.contains("written in another data folder"), "{said}");
    for (name, bytes) in &foreign.by_name {
        let mut mixed = files.clone();
        mixed.by_name.insert(name.clone(), bytes.clone());
        mixed.assert_refused(name, 0, "a file of another node");
    }
    for (name, bytes) in &files.by_name {
        let mut renamed = files.clone();
        let other = if *name == *first { newest } else { first };
        renamed.by_name.insert(other.clone(), bytes.clone());
        let said = renamed.assert_refused(other, 0, "a file under another's name");
        assert!(said.contains("under another name"), "{said}");
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
        let (state, entries) = torn.open_torn();
        assert!((1..4).contains(&entries), "{hole:?} left {entries} entries");
        assert_eq!(state.vote, Some(VOTE));
    }
}

/// A record that made its file grow beyond what was prepared may be cut short by a crash.
#[test]
fn a_record_that_grows_the_file_can_be_torn() {
    let files = Script::new().vote(1).append(0, &[300]).append(1, &[30_000]).files();
    let (name, whole) = files.last();
    for length in [SEGMENT, SEGMENT + 1, whole.len() - 1] {
        let mut torn = files.clone();
        torn.last_mut().truncate(length);
        torn.lengths.insert(name.clone(), length);
        assert_eq!(torn.open_torn().1, 1, "{length} bytes");
    }
    assert_eq!(files.open().unwrap().1, 2);
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

/// A segment whose first record was not written whole does not count, and the segment before it is
/// the end of the log, even if it is torn itself. It is used again.
#[test]
fn an_unfinished_segment_is_used_again() {
    let files = Script::new().vote(1).append(0, &[15_000]).append(1, &[6000, 100]).files();
    assert_eq!(files.in_use().len(), 2);
    let name = files.by_name.first_key_value().unwrap().0.clone();
    let mut unwritten = files.clone();
    unwritten.last_mut().truncate(HEAD);
    let (state, entries) = unwritten.open().unwrap();
    assert_eq!((state.last, entries, state.vote), (Some(log_id(0)), 1, Some(VOTE)));

    // The first sector is missing, and what followed it is there.
    let mut begun = files.clone();
    begun.last_mut()[HEAD..SECTOR].fill(0);
    assert_eq!(begun.open_torn().1, 1);

    // What was begun attests that the segment before it was synced.
    let mut damaged = files.clone();
    damaged.last_mut()[HEAD..SECTOR].fill(0);
    damaged.by_name.get_mut(&name).unwrap()[2 * SECTOR..3 * SECTOR].fill(0);
    damaged.assert_refused(&name, 3 * SECTOR, "both");

    let mut torn = files.clone();
    torn.last_mut().truncate(HEAD);
    torn.by_name.get_mut(&name).unwrap()[20 * SECTOR..21 * SECTOR].fill(0);
    assert_eq!(torn.open_torn().1, 0);
}

/// Zeros behind the records, and segments that were prepared, are no part of the log.
#[test]
fn prepared_zeros_are_no_records() {
    let mut files = Script::new().vote(1).append(0, &[300]).files();
    let names: Vec<String> = files.by_name.keys().cloned().collect();
    assert_eq!((names.len(), files.in_use().len()), (2, 1));
    assert_eq!(files.open().unwrap().1, 1);
    let length = files.ends[1];
    let prepared = files.by_name.get_mut(&names[1]).unwrap();
    prepared.resize(200, 0);
    prepared[199] = 1;
    files.assert_refused(&names[1], HEAD, "something is in the second");
    files.by_name.get_mut(&names[0]).unwrap()[length - 1] = 0;
    files.assert_refused(&names[0], length, "the end of the first is bad too");
}

/// A log that lost its beginning is not taken for a new log.
#[test]
fn a_lost_beginning_is_refused() {
    for files in [Script::new().files(), Script::new().vote(1).append(0, &[300]).files()] {
        let (name, _) = files.last();
        for start in [0, HEAD] {
            let mut zeros = files.clone();
            zeros.last_mut()[start..].fill(0);
            zeros.assert_refused(name, start, "all zeros");
        }
    }
}

/// A segment must go on from the state in which the one before it ended.
#[test]
fn a_segment_of_another_log_is_refused() {
    let with_vote = |term| {
        Script::new().vote(term).append(0, &[9000; 2]).append(2, &[9000; 2]).append(4, &[9]).files()
    };
    let (files, other) = (with_vote(1), with_vote(2));
    let (name, last) = other.last();
    let mut mixed = files.clone();
    mixed.by_name.insert(name.clone(), last.clone());
    mixed.assert_refused(name, HEAD, "a vote that was never cast here");
    assert_eq!(files.open().unwrap().1, 5);
}

/// A segment that is missing, or has another name, is refused.
#[test]
fn a_missing_segment_is_refused() {
    let script = Script::new().vote(1).append(0, &[9000; 2]).append(2, &[9000; 2]);
    let files = script.append(4, &[9000; 2]).files();
    let names: Vec<_> = files.by_name.keys().cloned().collect();
    assert_eq!((names.len(), files.in_use().len()), (4, 3));
    let without = |name: &String| {
        let mut changed = files.clone();
        let bytes = changed.by_name.remove(name).unwrap();
        (changed, bytes)
    };
    for (missing, after, entry) in [(0, 1, 0), (1, 2, 0)] {
        let said = without(&names[missing]).0.assert_refused(&names[after], 0, "a missing one");
        let expected = format!("which holds entry {entry}, is missing");
        assert!(said.contains(&expected), "{said}");
    }
    let (mut renamed, bytes) = without(&names[2]);
    renamed.by_name.insert("4.wal".to_owned(), bytes);
    renamed.assert_refused("4.wal", 0, "another name");
    assert_eq!(files.open().unwrap().1, 6);
}
