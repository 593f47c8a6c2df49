//! A log whose disk fails to remove or to rename one file, at every place where it does so: the log
//! can be opened afterwards, with all that was acknowledged, and what stayed behind goes.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_host::storage::{Log, LogConfig, LogPlace, Payload};
use lockstep_host::types::{Incarnation, LogId, NodeId};

const FOLDER: &str = "LOCKSTEP_TEST_FAULTY_FOLDER";
const RULE: &str = "LOCKSTEP_TEST_FAULT";

/// A log in `folder/log`, with its ledger beside it.
fn place(folder: &Path) -> LogPlace {
    let (log, ledger) = (folder.join("log"), folder.join("log-ledger"));
    LogPlace { folder: log, ledger, owner: Incarnation([7; 16]) }
}

fn open(folder: &Path) -> Log {
    Log::open(&place(folder), &LogConfig { segment_bytes: 4096, cache_bytes: 0 }).unwrap()
}

fn log_id(index: u64) -> LogId {
    LogId { term: 1, node: NodeId(1), index }
}

fn entry(index: u64) -> (LogId, Payload) {
    let fill = u8::try_from(index % 251).unwrap();
    (log_id(index), Payload { kind: 3, bytes: Bytes::from(vec![fill; 500]) })
}

/// Builds the library that fails calls by a rule.
fn library(folder: &Path) -> PathBuf {
    let (source, library) = (folder.join("faults.c"), folder.join("libfaults.so"));
    std::fs::write(&source, include_str!("../../tests/src/faults.c")).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source);
    assert!(compiler.status().unwrap().success(), "the C compiler failed");
    library
}

/// What a process has acknowledged before it ended.
struct Life {
    acknowledged: u64,
    purged: u64,
    /// The fault was met.
    was_faulty: bool,
}

/// Lets a process write to a log in `folder` under a rule.
fn live(library: &Path, folder: &Path, rule: &str) -> Life {
    let rule_path = folder.join("rule");
    std::fs::write(&rule_path, rule).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "faulty_life", "--nocapture"])
        .env("LD_PRELOAD", library)
        .env(RULE, &rule_path)
        .env(FOLDER, folder)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let said = |what: &str| {
        let mut lines =
            text.lines().filter_map(|line| line.strip_prefix(what)?.trim().parse().ok());
        lines.next_back().unwrap_or(0)
    };
    let (acknowledged, purged) = (said("acknowledged"), said("purged"));
    Life { acknowledged, purged, was_faulty: !rule_path.exists() }
}

/// The process: entries, purges, entries again. It ends with the first error of the log.
#[test]
fn faulty_life() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    let Ok(log) = Log::open(&place(folder), &LogConfig { segment_bytes: 4096, cache_bytes: 0 })
    else {
        return;
    };
    let synced = |write: &dyn Fn(lockstep_host::storage::FlushDone) -> bool| {
        let (sender, receiver) = mpsc::channel();
        let done = Box::new(move |result: std::io::Result<()>| sender.send(result).unwrap_or(()));
        write(done) && receiver.recv().is_ok_and(|result| result.is_ok())
    };
    for index in 0..60 {
        let until = Instant::now() + Duration::from_secs(60);
        while !log.is_prepared() && log.state().is_ok() {
            assert!(Instant::now() < until, "no segment is prepared");
            std::thread::yield_now();
        }
        if !synced(&|done| log.append([entry(index)], done).is_ok()) {
            break;
        }
        println!("\nacknowledged {index}");
        if index % 15 == 14 {
            let upto = index - 3;
            if !synced(&|done| log.purge(log_id(upto), done).is_ok()) {
                break;
            }
            println!("\npurged {upto}");
        }
    }
    // A removal is made after its purge is reported; the log waits for that.
    drop(log);
}

/// Every single removal and every single renaming of a file of the log fails once. The next start
/// finds everything that was acknowledged, and the one after a purge has no file left over.
#[test]
fn one_call_that_fails_is_no_damage() {
    let tools = tempfile::tempdir().unwrap();
    let library = library(tools.path());
    for call in ["unlink", "rename"] {
        let mut faults = 0;
        for number in 1.. {
            let folder = tempfile::tempdir().unwrap();
            let rule = format!("{call} .wal nth {number}");
            let life = live(&library, folder.path(), &rule);
            if !life.was_faulty {
                assert_eq!((life.acknowledged, life.purged), (59, 56), "{rule}");
                break;
            }
            faults += 1;
            check(folder.path(), &life, &rule);
        }
        assert!(faults >= 7, "only {faults} calls of {call} were met");
    }
}

fn check(folder: &Path, life: &Life, rule: &str) {
    let Life { acknowledged, purged, .. } = *life;
    let log = open(folder);
    let state = log.state().unwrap();
    let last = state.last.map_or(0, |id| id.index);
    assert!(last >= acknowledged, "{rule}: {last} < {acknowledged}");
    let first = state.purged.map_or(0, |id| id.index + 1);
    assert!(purged == 0 || first > purged, "{rule}: purged up to {purged}, begins at {first}");
    let entries = log.read(0..u64::MAX).unwrap();
    let expected: Vec<_> = (first..).take(entries.len()).map(entry).collect();
    assert_eq!(entries, expected, "{rule}");
    assert_eq!(entries.last().map_or(0, |(id, _)| id.index), last, "{rule}");
    log.purge(log_id(last), Box::new(drop)).unwrap();
    log.sync().unwrap();
    drop(log);
    drop(open(folder));
    let files = std::fs::read_dir(place(folder).folder).unwrap().count();
    assert!(files <= 2, "{rule}: {files} files are left");
}
