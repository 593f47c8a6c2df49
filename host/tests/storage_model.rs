//! The log against a model of it: any order of calls, restarts and crashes leaves what the model
//! says.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use bytes::Bytes;
use lockstep_host::storage::{FlushDone, Log, LogConfig, LogPlace, LogState, Payload};
use lockstep_host::types::{Incarnation, LogId, NodeId, Vote};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

#[derive(Clone, Debug)]
enum Step {
    /// Entries of these lengths, synced before the next step.
    Append(Vec<usize>),
    /// Entries that a crash interrupts: this share, of 256, of what they write is on disk.
    TornAppend(Vec<usize>, u8),
    /// Removes this many entries from the end; the term after it is higher.
    Truncate(usize),
    /// Removes this many entries from the front.
    Purge(usize),
    Vote,
    Restart,
    /// The process dies: what it gave to the system stays, what it held itself is gone.
    Crash,
}

fn lengths() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![3 => 0..200usize, 1 => 200..3000usize], 1..8)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => lengths().prop_map(Step::Append),
        2 => (lengths(), any::<u8>()).prop_map(|(lengths, share)| Step::TornAppend(lengths, share)),
        1 => (0..6usize).prop_map(Step::Truncate),
        1 => (0..12usize).prop_map(Step::Purge),
        1 => Just(Step::Vote),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
    ]
}

/// Length of a segment's head.
const HEAD: u64 = 64;
const SECTOR: u64 = 512;

/// A log in `folder/log`, with its ledger beside it.
fn place(folder: &Path) -> LogPlace {
    let (log, ledger) = (folder.join("log"), folder.join("log-ledger"));
    LogPlace { folder: log, ledger, owner: Incarnation([7; 16]) }
}

fn open(folder: &Path) -> Log {
    let config = LogConfig { segment_bytes: 4000, cache_bytes: 2000 };
    Log::open(&place(folder), &config).unwrap()
}

/// What the log must be, and the log.
struct Model {
    term: u64,
    entries: Vec<(LogId, Payload)>,
    state: LogState,
    folder: tempfile::TempDir,
    log: Option<Log>,
}

impl Model {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = Some(open(folder.path()));
        Self { term: 1, entries: Vec::new(), state: LogState::default(), folder, log }
    }

    fn synced(&self, write: impl FnOnce(&Log, FlushDone)) {
        let (sender, receiver) = mpsc::channel();
        write(self.log.as_ref().unwrap(), Box::new(move |result| sender.send(result).unwrap()));
        receiver.recv().unwrap().unwrap();
    }

    fn next_entries(&self, lengths: &[usize]) -> Vec<(LogId, Payload)> {
        let first = self.state.last.map_or(0, |id| id.index + 1);
        let next = (first..).zip(lengths).map(|(index, length)| {
            let fill = u8::try_from(index % 255).unwrap() + 1;
            let id = LogId { term: self.term, node: NodeId(1), index };
            (id, Payload { kind: 1, bytes: Bytes::from(vec![fill; *length]) })
        });
        next.collect()
    }

    fn push(&mut self, entries: impl IntoIterator<Item = (LogId, Payload)>) {
        self.entries.extend(entries);
        self.state.last = self.entries.last().map(|(id, _)| *id).or(self.state.purged);
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Append(lengths) => {
                let entries = self.next_entries(&lengths);
                self.synced(|log, done| log.append(entries.clone(), done).unwrap());
                self.push(entries);
            }
            Step::TornAppend(lengths, share) => self.torn_append(&lengths, share),
            Step::Truncate(count) => {
                self.entries.truncate(self.entries.len().saturating_sub(count));
                self.push([]);
                let last = self.state.last;
                self.synced(|log, done| log.truncate_after(last, done).unwrap());
                self.term += 1;
            }
            Step::Purge(count) => {
                let count = count.min(self.entries.len());
                let Some((upto, _)) = self.entries.drain(..count).next_back() else { return };
                self.state.purged = Some(upto);
                self.synced(|log, done| log.purge(upto, done).unwrap());
            }
            Step::Vote => {
                let vote = Vote { term: self.term, node: NodeId(1), committed: true };
                self.synced(|log, done| log.save_vote(vote, done).unwrap());
                self.state.vote = Some(vote);
            }
            Step::Restart => {
                drop(self.log.take());
                self.log = Some(open(self.folder.path()));
            }
            Step::Crash => self.crash(|_| {}),
        }
    }

    /// Goes on with a copy of the files as they are, changed by `change`.
    fn crash(&mut self, change: impl FnOnce(&Path)) {
        let copy = tempfile::tempdir().unwrap();
        let (from, to) = (place(self.folder.path()), place(copy.path()));
        // First, since a file may get its name meanwhile, before the ledger knows it.
        std::fs::copy(&from.ledger, &to.ledger).unwrap();
        std::fs::create_dir(&to.folder).unwrap();
        for path in files(self.folder.path()) {
            match std::fs::copy(&path, to.folder.join(path.file_name().unwrap())) {
                // The log removes what is purged after the purge was reported.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                copied => drop(copied.unwrap()),
            }
        }
        change(copy.path());
        drop(self.log.take());
        self.folder = copy;
        self.log = Some(open(self.folder.path()));
    }

    /// Appends, and goes on with what a crash has left of the last file: its last sectors are zeros
    /// still. What was synced before must be there, and of the new entries the first ones.
    fn torn_append(&mut self, lengths: &[usize], share: u8) {
        let tail = segments(self.folder.path()).pop().unwrap();
        let before = written(&tail);
        let entries = self.next_entries(lengths);
        self.synced(|log, done| log.append(entries.clone(), done).unwrap());
        self.crash(|folder| {
            let last = segments(folder).pop().unwrap();
            let from = if last.file_name() == tail.file_name() { before } else { HEAD };
            let new = written(&last) - from;
            let kept = from + new * u64::from(share) / 256;
            let kept = (kept / SECTOR * SECTOR).max(from);
            let file = std::fs::OpenOptions::new().write(true).open(&last).unwrap();
            let zeros = vec![0; usize::try_from(from + new - kept).unwrap()];
            file.write_all_at(&zeros, kept).unwrap();
        });
        let kept = self.log.as_ref().unwrap().read(0..u64::MAX).unwrap();
        assert!(kept.len() >= self.entries.len(), "an entry that was synced is gone");
        let new = kept.len() - self.entries.len();
        self.push(entries.into_iter().take(new));
    }

    fn check(&self) {
        let log = self.log.as_ref().unwrap();
        assert_eq!(log.state().unwrap(), self.state);
        assert_eq!(log.read(0..u64::MAX).unwrap(), self.entries);
    }
}

/// The segments.
fn files(folder: &Path) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(place(folder).folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|name| name == "wal")).collect();
    files.sort();
    files
}

/// The segments that something was written to.
fn segments(folder: &Path) -> Vec<PathBuf> {
    files(folder).into_iter().filter(|path| written(path) > HEAD).collect()
}

/// Where a segment's records end: zeros follow. No records when it has just been removed.
fn written(segment: &Path) -> u64 {
    let bytes = match std::fs::read(segment) {
        Err(error) if error.kind() == ErrorKind::NotFound => return HEAD,
        read => read.unwrap(),
    };
    let length = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    u64::try_from(length).unwrap().max(HEAD)
}

/// The log is what its history says, whatever the history.
#[test]
fn the_log_equals_its_model() {
    let mut runner = TestRunner::new(Config { cases: 100, ..Config::default() });
    let steps = prop::collection::vec(step(), 1..40);
    runner
        .run(&steps, |steps| {
            let mut model = Model::new();
            for step in steps {
                model.run(step);
                model.check();
            }
            Ok(())
        })
        .unwrap();
}
