//! The log as its callers see it: what is written is read back, in order, bounded, after restarts
//! and after failures.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_host::storage::{Error, FlushDone, Log, LogConfig, LogPlace, Payload};
use lockstep_host::types::{Incarnation, LogId, NodeId, Vote};

fn config(segment_bytes: u64, cache_bytes: usize) -> LogConfig {
    LogConfig { segment_bytes, cache_bytes }
}

/// A log in `folder/log`, with its ledger beside it.
fn place(folder: &Path) -> LogPlace {
    let (log, ledger) = (folder.join("log"), folder.join("log-ledger"));
    LogPlace { folder: log, ledger, owner: Incarnation([7; 16]) }
}

fn open(folder: &Path) -> Log {
    open_with(folder, config(1 << 20, 1 << 20))
}

fn open_with(folder: &Path, config: LogConfig) -> Log {
    Log::open(&place(folder), &config).unwrap()
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId { term, node: NodeId(1), index }
}

fn entry(index: u64, bytes: usize) -> (LogId, Payload) {
    let fill = u8::try_from(index % 251).unwrap();
    (log_id(1, index), Payload { kind: 3, bytes: Bytes::from(vec![fill; bytes]) })
}

/// A callback, and where its result arrives.
fn flushed() -> (FlushDone, mpsc::Receiver<io::Result<()>>) {
    let (sender, receiver) = mpsc::channel();
    (Box::new(move |result| sender.send(result).unwrap_or(())), receiver)
}

fn append(log: &Log, entries: impl IntoIterator<Item = (LogId, Payload)>) {
    let (done, receiver) = flushed();
    log.append(entries, done).unwrap();
    receiver.recv().unwrap().unwrap();
}

/// What was written is there after a reopen: entries, vote, committed, purged.
#[test]
fn a_reopened_log_is_what_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    assert_eq!(log.state().unwrap(), Default::default());
    append(&log, (0..50).map(|index| entry(index, 100)));
    let vote = Vote { term: 7, node: NodeId(2), committed: true };
    let (done, receiver) = flushed();
    log.save_vote(vote, done).unwrap();
    receiver.recv().unwrap().unwrap();
    log.save_committed(Some(log_id(1, 40))).unwrap();
    let (done, receiver) = flushed();
    log.purge(log_id(1, 9), done).unwrap();
    receiver.recv().unwrap().unwrap();
    let state = log.state().unwrap();
    drop(log);

    let log = open(folder.path());
    assert_eq!(log.state().unwrap(), state);
    assert_eq!(state.vote, Some(vote));
    assert_eq!(state.purged, Some(log_id(1, 9)));
    assert_eq!(state.last, Some(log_id(1, 49)));
    assert_eq!(state.committed, Some(log_id(1, 40)));
    let expected: Vec<_> = (10..50).map(|index| entry(index, 100)).collect();
    assert_eq!(log.read(0..u64::MAX).unwrap(), expected);
}

/// A vote that was synced is never less afterwards, and a lesser one is refused.
#[test]
fn a_vote_never_goes_back() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    let granted = Vote { term: 7, node: NodeId(2), committed: true };
    log.save_vote(granted, flushed().0).unwrap();
    let (done, receiver) = flushed();
    let lesser = Vote { committed: false, ..granted };
    assert!(log.save_vote(lesser, done).is_err());
    assert!(receiver.recv().unwrap().is_err());
    drop(log);
    assert_eq!(open(folder.path()).state().unwrap().vote, Some(granted));
}

/// What was written is on disk once the last handle is dropped, also what nobody waited for.
#[test]
fn a_dropped_log_writes_what_waits() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    append(&log, (0..5).map(|index| entry(index, 10)));
    let other = log.clone();
    drop(log);
    other.save_committed(Some(log_id(1, 4))).unwrap();
    drop(other);
    assert_eq!(open(folder.path()).state().unwrap().committed, Some(log_id(1, 4)));
}

/// What is not written yet is read from memory, however little of that there is.
#[test]
fn entries_are_readable_before_they_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let log = open_with(folder.path(), config(4096, 0));
    let (done, receivers): (Vec<_>, Vec<_>) = (0..300).map(|_| flushed()).unzip();
    for (index, done) in (0..).zip(done) {
        log.append([entry(index, 700)], done).unwrap();
        assert_eq!(log.read(index..index + 1).unwrap(), [entry(index, 700)]);
    }
    assert!(receivers.iter().all(|receiver| receiver.recv().unwrap().is_ok()));
    assert_eq!(log.read(0..300).unwrap().len(), 300);
}

/// A committed log id that the log does not reach yet, and one that is older, change nothing.
#[test]
fn committed_stays_within_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    append(&log, (0..5).map(|index| entry(index, 10)));
    for (saved, expected) in [(3, 3), (9, 3), (2, 3), (4, 4)] {
        log.save_committed(Some(log_id(1, saved))).unwrap();
        assert_eq!(log.state().unwrap().committed, Some(log_id(1, expected)));
    }
    log.save_committed(None).unwrap();
    log.sync().unwrap();
    drop(log);
    assert_eq!(open(folder.path()).state().unwrap().committed, Some(log_id(1, 4)));
}

/// Truncation removes the end, also over a reopen, and the log goes on with another term.
#[test]
fn a_truncated_end_stays_away() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    append(&log, (0..20).map(|index| entry(index, 100)));
    log.truncate_after(Some(log_id(1, 30)), flushed().0).unwrap();
    assert_eq!(log.state().unwrap().last, Some(log_id(1, 19)));
    log.truncate_after(Some(log_id(1, 4)), flushed().0).unwrap();
    let next = (log_id(2, 5), Payload { kind: 0, bytes: Bytes::new() });
    append(&log, [next.clone()]);
    drop(log);
    let log = open(folder.path());
    let expected: Vec<_> = (0..5).map(|index| entry(index, 100)).chain([next]).collect();
    assert_eq!(log.read(0..100).unwrap(), expected);
    log.truncate_after(None, flushed().0).unwrap();
    assert_eq!(log.state().unwrap().last, None);
}

/// A purge beyond the end, as after an installed snapshot, moves the log there.
#[test]
fn a_purge_beyond_the_end_moves_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    append(&log, (0..5).map(|index| entry(index, 10)));
    log.purge(log_id(3, 99), flushed().0).unwrap();
    let state = log.state().unwrap();
    assert_eq!((state.purged, state.last), (Some(log_id(3, 99)), Some(log_id(3, 99))));
    append(&log, [(log_id(3, 100), entry(100, 10).1)]);
    drop(log);
    let log = open(folder.path());
    assert_eq!(log.read(0..u64::MAX).unwrap(), [(log_id(3, 100), entry(100, 10).1)]);
}

/// Waits until the next segment is prepared, so that the log can go on in it.
fn prepared(log: &Log) {
    let until = Instant::now() + Duration::from_secs(60);
    while !log.is_prepared() {
        assert!(Instant::now() < until, "no segment is prepared");
        std::thread::yield_now();
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(place(folder).folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Purged segments are removed from disk, and the rest can still be opened.
#[test]
fn a_purge_frees_segments() {
    let folder = tempfile::tempdir().unwrap();
    let log = open_with(folder.path(), config(4096, 0));
    for index in 0..100 {
        prepared(&log);
        append(&log, [entry(index, 500)]);
    }
    let before = names(folder.path()).len();
    assert!(before >= 14, "{before} files of 4096 bytes for 50,000");
    let (done, receiver) = flushed();
    log.purge(log_id(1, 89), done).unwrap();
    receiver.recv().unwrap().unwrap();
    drop(log);
    // The segments that hold the last ten entries, and the next one that may be prepared.
    let left = names(folder.path());
    assert!(left.len() <= 4, "{left:?}");
    let log = open_with(folder.path(), config(4096, 0));
    assert_eq!(log.read(0..u64::MAX).unwrap().len(), 10);
}

/// A record that does not fit in the segment goes to the next one, if that is prepared, so that no
/// file grows beyond what was synced as zeros. One that fits in no segment makes its own grow.
#[test]
fn files_do_not_grow() {
    let folder = tempfile::tempdir().unwrap();
    let log = open_with(folder.path(), config(4096, 0));
    for index in 0..40 {
        prepared(&log);
        append(&log, [entry(index, if index == 20 { 9000 } else { 700 })]);
    }
    drop(log);
    let lengths = names(folder.path());
    let length = |name: &String| place(folder.path()).folder.join(name).metadata().unwrap().len();
    let grown = lengths.iter().map(length).filter(|length| *length != 4096).count();
    assert_eq!(grown, 1, "the one with the long entry");
    let log = open_with(folder.path(), config(4096, 0));
    assert_eq!(log.read(0..u64::MAX).unwrap().len(), 40);
}

/// What nobody waits for, how far the log is committed, goes to disk alone after a moment.
#[test]
fn what_is_committed_is_written_soon() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    append(&log, (0..5).map(|index| entry(index, 10)));
    let file = place(folder.path()).folder.join("00000000000000000001.wal");
    let before = std::fs::read(&file).unwrap();
    log.save_committed(Some(log_id(1, 4))).unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while std::fs::read(&file).unwrap() == before {
        assert!(Instant::now() < until, "it is not written");
        std::thread::yield_now();
    }
    // As a crash of the process leaves it.
    let copy = copy_of(folder.path());
    assert_eq!(open(copy.path()).state().unwrap().committed, Some(log_id(1, 4)));
}

/// A copy of a log, as a crash of its process would leave it.
fn copy_of(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let (from, to) = (place(folder), place(copy.path()));
    std::fs::copy(&from.ledger, &to.ledger).unwrap();
    std::fs::create_dir(&to.folder).unwrap();
    for name in names(folder) {
        std::fs::copy(from.folder.join(&name), to.folder.join(&name)).unwrap();
    }
    copy
}

/// Neither what the system puts into the folder nor what is left of files that nothing needs is
/// damage, with holes or not; a start removes the files.
#[test]
fn leftovers_are_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let log = open_with(folder.path(), config(4096, 0));
    for index in 0..60 {
        prepared(&log);
        append(&log, [entry(index, 500)]);
    }
    prepared(&log);
    let before = copy_of(folder.path());
    log.purge(log_id(1, 49), flushed().0).unwrap();
    log.sync().unwrap();
    drop(log);
    let needed = names(folder.path());
    let unneeded: Vec<_> =
        names(before.path()).into_iter().filter(|name| !needed.contains(name)).collect();
    assert!(unneeded.len() >= 5, "{unneeded:?}");
    // Every single one of them left alone, and all but one.
    for alone in [true, false] {
        for chosen in &unneeded {
            for name in unneeded.iter().filter(|name| (*name == chosen) == alone) {
                let from = place(before.path()).folder.join(name);
                std::fs::copy(from, place(folder.path()).folder.join(name)).unwrap();
            }
            std::fs::create_dir(place(folder.path()).folder.join("lost+found")).unwrap();
            std::fs::write(place(folder.path()).folder.join(".nfs0001"), "x").unwrap();
            let log = open_with(folder.path(), config(4096, 0));
            assert_eq!(log.read(0..u64::MAX).unwrap().len(), 10, "{chosen}, alone: {alone}");
            prepared(&log);
            drop(log);
            std::fs::remove_dir(place(folder.path()).folder.join("lost+found")).unwrap();
            std::fs::remove_file(place(folder.path()).folder.join(".nfs0001")).unwrap();
            assert_eq!(names(folder.path()), needed, "{chosen}, alone: {alone}");
        }
    }
}

/// A bounded read gives at least one entry, no more than fit, and from disk the same as from
/// memory; it says when it had to read from disk.
#[test]
fn reads_are_bounded() {
    for (cache_bytes, is_cached) in [(1 << 20, true), (0, false)] {
        let folder = tempfile::tempdir().unwrap();
        let log = open_with(folder.path(), config(4096, cache_bytes));
        append(&log, (0..100).map(|index| entry(index, 1000)));
        // What is written can leave the memory when something else comes.
        append(&log, [entry(100, 1000)]);
        log.sync().unwrap();
        let indexes = |range, bytes_max| {
            let entries = log.read_limited(range, bytes_max).unwrap();
            entries.iter().map(|(id, _)| id.index).collect::<Vec<_>>()
        };
        assert_eq!(indexes(10..20, 1), [10]);
        assert_eq!(indexes(10..20, 3000), [10, 11, 12]);
        assert_eq!(indexes(10..12, 1 << 20), [10, 11]);
        assert_eq!(indexes(12..12, 1 << 20), Vec::<u64>::new());
        assert_eq!(indexes(200..300, 1 << 20), Vec::<u64>::new());
        assert_eq!(indexes(0..1000, 1 << 30).len(), 101);

        let step = log.read_cached(0..50, 5000).unwrap();
        assert_eq!(step.goes_on_disk, !is_cached);
        let expected: Vec<_> = (0..if is_cached { 5 } else { 0 }).map(|i| entry(i, 1000)).collect();
        assert_eq!(step.entries, expected, "from memory alone");

        // A range that begins before the log does goes on at the first entry.
        log.purge(log_id(1, 9), flushed().0).unwrap();
        assert_eq!(indexes(0..12, 1 << 20), [10, 11]);
        let step = log.read_cached(0..12, 1 << 20).unwrap();
        assert_eq!(step.goes_on_disk, !is_cached);
        assert_eq!(step.entries.len(), if is_cached { 2 } else { 0 });
        assert!(!log.read_cached(0..10, 1 << 20).unwrap().goes_on_disk, "all of it is purged");
    }
}

/// Payloads of every size come back as they were; one over the limit is refused.
#[test]
fn payloads_of_any_size_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    let sizes = [0, 1, 511, 512, 513, 100_000, 3 << 20];
    let entries: Vec<_> = (0..).zip(sizes).map(|(index, size)| entry(index, size)).collect();
    append(&log, entries.clone());
    drop(log);
    let log = open(folder.path());
    assert_eq!(log.read(0..100).unwrap(), entries);
    let (done, receiver) = flushed();
    let too_long = entry(7, lockstep_host::storage::log::PAYLOAD_BYTES_MAX + 1);
    assert!(log.append([too_long], done).is_err());
    assert!(receiver.recv().unwrap().is_err());
    drop(log);
    assert_eq!(open(folder.path()).read(0..100).unwrap(), entries);
}

/// After the first error every call fails with it, until the log is opened again.
#[test]
fn the_first_error_closes_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    append(&log, (0..3).map(|index| entry(index, 10)));
    let gap = log.append([entry(9, 10)], flushed().0).unwrap_err();
    assert!(matches!(gap, Error::Io { .. }), "{gap}");
    let latched = |result: Result<(), Error>| {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Latched { .. }), "{error}");
        assert!(error.to_string().contains("not consecutive"), "{error}");
    };
    let (done, receiver) = flushed();
    latched(log.append([entry(3, 10)], done));
    assert!(receiver.recv().unwrap().is_err());
    latched(log.save_committed(Some(log_id(1, 1))));
    latched(log.state().map(drop));
    latched(log.read(0..3).map(drop));
    latched(log.sync());
    drop(log);
    assert_eq!(open(folder.path()).state().unwrap().last, Some(log_id(1, 2)));
}

/// Two logs never share a folder.
#[test]
fn an_open_log_cannot_be_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    append(&log, [entry(0, 10)]);
    let error = Log::open(&place(folder.path()), &config(1 << 20, 0)).unwrap_err();
    assert!(error.to_string().contains("locked"), "{error}");
}

const FULL_DISK_FOLDER: &str = "LOCKSTEP_TEST_FULL_DISK_FOLDER";

/// Where the disk has no room for the next segment, the log says so, and what is prepared is used
/// up. With room again it goes on by itself. Once a write itself is refused, every callback is
/// called, with an error from the first one on, and the log is closed; what was acknowledged before
/// is there after a restart.
///
/// The disk is a process whose files may not grow past a limit, because there the system refuses
/// writes half way, as it does on a full disk.
#[test]
fn a_full_disk_loses_nothing_that_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let script = "trap '' XFSZ; exec \"$0\" --exact full_disk_child --nocapture";
    let output = Command::new("sh")
        .arg("-c")
        .arg(script)
        .arg(std::env::current_exe().unwrap())
        .env(FULL_DISK_FOLDER, folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let acknowledged = text.lines().find_map(|line| line.strip_prefix("acknowledged "));
    let acknowledged: usize = acknowledged.expect("the child says so").parse().unwrap();

    let log = open(folder.path());
    let entries = log.read(0..u64::MAX).unwrap();
    assert!(entries.len() >= acknowledged, "{} < {acknowledged}", entries.len());
    let count = u64::try_from(entries.len()).unwrap();
    assert_eq!(entries, (0..count).map(|index| entry(index, 3000)).collect::<Vec<_>>());
    append(&log, [entry(count, 10)]);
}

/// Lets files grow to so many bytes.
fn limit_files(bytes: Option<u64>) {
    let maximum = rustix::process::getrlimit(rustix::process::Resource::Fsize).maximum;
    let limit = rustix::process::Rlimit { current: bytes.or(maximum), maximum };
    rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
}

/// Appends entries until `ends`, at most a thousand; the index after the last.
fn append_until(log: &Log, first: u64, ends: impl Fn() -> bool) -> u64 {
    for index in first..first + 1000 {
        if ends() {
            return index;
        }
        append(log, [entry(index, 3000)]);
    }
    panic!("it does not end");
}

/// The process with the full disk; does nothing unless it was started as that.
#[test]
fn full_disk_child() {
    let Some(folder) = std::env::var_os(FULL_DISK_FOLDER) else { return };
    // One that is in use, and one that is prepared, are shorter than the limit.
    let log = open_with(Path::new(&folder), config(200 << 10, 0));
    append(&log, (0..20).map(|index| entry(index, 3000)));
    prepared(&log);
    drop(log);
    limit_files(Some(300 << 10));
    let log = open(Path::new(&folder));
    // What is prepared is used up before anything is short.
    let next = append_until(&log, 20, || log.short_of_room().is_some());
    let short = log.short_of_room().unwrap();
    assert!(short.reason.contains("File too large"), "{short:?}");
    assert!(short.left_bytes > short.segment_bytes / 2, "said as soon as it is so: {short:?}");
    limit_files(None);
    prepared(&log);
    assert_eq!(log.short_of_room(), None, "it goes by itself");

    // Now the very writes are refused, half way.
    limit_files(Some(300 << 10));
    let mut results = Vec::new();
    for index in next..next + 1000 {
        let (done, receiver) = flushed();
        let appended = log.append([entry(index, 3000)], done);
        results.push(receiver);
        if appended.is_err() {
            break;
        }
    }
    let results: Vec<_> = results.into_iter().map(|receiver| receiver.recv().unwrap()).collect();
    let acknowledged = results.iter().take_while(|result| result.is_ok()).count();
    assert!(acknowledged < results.len(), "the disk was never full");
    assert!(results[acknowledged..].iter().all(Result::is_err), "one was acknowledged after");
    assert!(matches!(log.state(), Err(Error::Latched { .. })));
    println!("\nacknowledged {}", next + u64::try_from(acknowledged).unwrap());
}
