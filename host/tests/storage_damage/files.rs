//! The files of a log, written step by step, to be changed and opened.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_host::storage::{Error, FlushDone, Log, LogConfig, LogPlace, LogState, Payload};
use lockstep_host::types::{Incarnation, LogId, NodeId, Vote};
use tempfile::TempDir;

pub const VOTE: Vote = Vote { term: 1, node: NodeId(1), committed: true };
pub const SECTOR: usize = 512;
/// Length of a segment, and of the head that it begins with.
pub const SEGMENT: usize = 20_000;
pub const HEAD: usize = 64;

pub fn config() -> LogConfig {
    LogConfig { segment_bytes: 20_000, cache_bytes: 1 << 20 }
}

/// A log in `folder/log`, with its ledger beside it.
pub fn place(folder: &Path) -> LogPlace {
    place_of(folder, 7)
}

/// The same for the log of another data folder.
pub fn place_of(folder: &Path, owner: u8) -> LogPlace {
    let (log, ledger) = (folder.join("log"), folder.join("log-ledger"));
    LogPlace { folder: log, ledger, owner: Incarnation([owner; 16]) }
}

pub fn log_id(index: u64) -> LogId {
    LogId { term: 1, node: NodeId(1), index }
}

/// Bytes that hold no zeros.
pub fn entry(index: u64, length: usize) -> (LogId, Payload) {
    let fill = u8::try_from(index % 200).unwrap() + 1;
    (log_id(index), Payload { kind: 1, bytes: Bytes::from(vec![fill; length]) })
}

/// The files of a log, without the zeros at their ends, to be changed and opened.
#[derive(Clone)]
pub struct Files {
    pub by_name: BTreeMap<String, Vec<u8>>,
    /// How long each is with its zeros; by name, where it is not the length of a segment.
    pub lengths: BTreeMap<String, usize>,
    pub ledger: Vec<u8>,
    /// Ends of what each step of writing had on disk, in bytes of the last file.
    pub ends: Vec<usize>,
}

/// Writes a log step by step, each one synced before the next.
pub struct Script {
    pub folder: TempDir,
    pub log: Log,
    pub ends: Vec<usize>,
}

impl Script {
    pub fn new() -> Self {
        Self::of(7)
    }

    pub fn of(owner: u8) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::open(&place_of(folder.path(), owner), &config()).unwrap();
        Self { folder, log, ends: Vec::new() }
    }

    pub fn step(mut self, write: impl FnOnce(&Log, FlushDone)) -> Self {
        self.prepared();
        let (sender, receiver) = mpsc::channel();
        write(&self.log, Box::new(move |result| sender.send(result).unwrap()));
        receiver.recv().unwrap().unwrap();
        let files = read_files(self.folder.path());
        let in_use = files.values().rfind(|bytes| bytes.len() > HEAD).unwrap();
        self.ends.push(in_use.len());
        self
    }

    /// Waits until the log can go on in another segment.
    pub fn prepared(&self) {
        let until = Instant::now() + Duration::from_secs(60);
        while !self.log.is_prepared() {
            assert!(Instant::now() < until, "no segment is prepared");
            std::thread::yield_now();
        }
    }

    pub fn append(self, first: u64, lengths: &[usize]) -> Self {
        let entries: Vec<_> =
            (first..).zip(lengths).map(|(index, length)| entry(index, *length)).collect();
        self.step(|log, done| log.append(entries, done).unwrap())
    }

    pub fn vote(self, term: u64) -> Self {
        self.step(|log, done| log.save_vote(Vote { term, ..VOTE }, done).unwrap())
    }

    /// The files as a crash of the process leaves them, with the next segment prepared.
    pub fn files(self) -> Files {
        self.prepared();
        let by_name = read_files(self.folder.path());
        let ledger = std::fs::read(self.folder.path().join("log-ledger")).unwrap();
        Files { by_name, lengths: BTreeMap::new(), ledger, ends: self.ends }
    }
}

pub fn read_files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(place(folder).folder).unwrap().map(|entry| entry.unwrap()) {
        let name = entry.file_name().into_string().unwrap();
        // What is being prepared has no name yet, and may get it at any time.
        let Some(mut bytes) =
            name.ends_with(".wal").then(|| std::fs::read(entry.path()).ok()).flatten()
        else {
            continue;
        };
        let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        bytes.truncate(written.max(HEAD));
        files.insert(name, bytes);
    }
    files
}

impl Files {
    /// The files that something was written to, in order.
    pub fn in_use(&self) -> Vec<&String> {
        let in_use = self.by_name.iter().filter(|(_, bytes)| bytes.len() > HEAD);
        in_use.map(|(name, _)| name).collect()
    }

    /// The last file that something was written to.
    pub fn last(&self) -> (&String, &Vec<u8>) {
        self.by_name.iter().rfind(|(_, bytes)| bytes.len() > HEAD).unwrap()
    }

    pub fn last_mut(&mut self) -> &mut Vec<u8> {
        let name = self.last().0.clone();
        self.by_name.get_mut(&name).unwrap()
    }

    /// Writes a copy.
    pub fn write(&self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let place = place(folder.path());
        std::fs::create_dir(&place.folder).unwrap();
        std::fs::write(&place.ledger, &self.ledger).unwrap();
        for (name, bytes) in &self.by_name {
            let mut bytes = bytes.clone();
            bytes.resize(*self.lengths.get(name).unwrap_or(&SEGMENT.max(bytes.len())), 0);
            std::fs::write(place.folder.join(name), bytes).unwrap();
        }
        folder
    }

    /// Opens a copy, and reads all of it.
    pub fn open(&self) -> Result<(LogState, usize), Error> {
        let folder = self.write();
        let log = Log::open(&place(folder.path()), &config())?;
        let state = log.state()?;
        let entries = log.read(0..u64::MAX)?.len();
        // What was cut stays away, and the log can go on.
        let next = state.last.map_or(0, |id| id.index + 1);
        let (sender, receiver) = mpsc::channel();
        log.append([entry(next, 10)], Box::new(move |result| sender.send(result).unwrap()))?;
        receiver.recv().unwrap().unwrap();
        let in_doubt = log.in_doubt();
        drop(log);
        let again = Log::open(&place(folder.path()), &config())?;
        assert_eq!(again.state()?.last, Some(log_id(next)));
        assert_eq!(again.in_doubt(), in_doubt, "until the peers were asked");
        Ok((state, entries))
    }

    /// Opens a copy whose end is torn: it is in doubt until somebody clears it.
    pub fn open_torn(&self) -> (LogState, usize) {
        let folder = self.write();
        let log = Log::open(&place(folder.path()), &config()).unwrap();
        assert!(log.in_doubt(), "an end was cut");
        log.clear_doubt().unwrap();
        drop(log);
        assert!(!Log::open(&place(folder.path()), &config()).unwrap().in_doubt());
        self.open().unwrap()
    }

    #[track_caller]
    pub fn assert_refused(&self, name: &str, position: usize, what: &str) -> String {
        let folder = self.write();
        let before = read_files(folder.path());
        let error = Log::open(&place(folder.path()), &config()).expect_err(what);
        assert_eq!(read_files(folder.path()), before, "{what}: nothing is changed");
        let Error::Damaged { file, offset, .. } = &error else { panic!("{what}: {error}") };
        assert!(file.ends_with(name), "{what}: {error}");
        assert!(usize::try_from(*offset).unwrap() <= position, "{what}: {error}");
        error.to_string()
    }
}
