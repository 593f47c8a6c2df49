//! What the clients of a run write down, by one clock that only counts.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use fastrand::Rng;
use lockstep_history::{Event, History, Operation, Outcome, file};

/// The history of a run that goes on.
pub(super) struct Recorder {
    started: Instant,
    history: Mutex<History>,
    answered: AtomicU64,
    /// Places of the nodes that clients may ask, as they were a moment ago.
    nodes: Mutex<Vec<usize>>,
    /// Set when the clients shall end.
    stop: AtomicBool,
}

impl Recorder {
    /// An empty history, whose time begins now, of clients that ask the first so many nodes.
    pub(super) fn new(title: String, nodes: usize) -> Self {
        Self {
            started: Instant::now(),
            history: Mutex::new(History { title, ..History::default() }),
            answered: AtomicU64::new(0),
            nodes: Mutex::new((0..nodes).collect()),
            stop: AtomicBool::new(false),
        }
    }

    /// The time of the run.
    pub(super) fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).expect("a run ends some day")
    }

    /// Writes down an operation that has ended.
    pub(super) fn operation(&self, operation: Operation) {
        if matches!(operation.outcome, Outcome::Answered { .. }) {
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
        self.lock().operations.push(operation);
    }

    /// Writes down what is done to the cluster, as of now.
    pub(super) fn event(&self, text: String) {
        let at_us = self.now_us();
        self.lock().events.push(Event { at_us, text });
    }

    /// Says which nodes clients may ask from now on.
    pub(super) fn set_nodes(&self, places: Vec<usize>) {
        *self.nodes.lock().expect("no code panics while it holds this lock") = places;
    }

    /// One of the nodes that clients may ask.
    pub(super) fn pick_node(&self, random: &mut Rng) -> usize {
        let nodes = self.nodes.lock().expect("no code panics while it holds this lock");
        nodes[random.usize(0..nodes.len())]
    }

    /// Operations answered so far.
    pub(super) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Tells the clients to end after what they have under way.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// True when the clients shall end.
    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The history so far.
    pub(super) fn history(&self) -> History {
        self.lock().clone()
    }

    /// Writes the history so far into a file, for people and for later.
    ///
    /// # Panics
    /// When the disk refuses it.
    pub(super) fn save(&self, path: &Path) {
        file::write(&self.lock(), path).expect("a history can be written");
    }

    fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().expect("no code panics while it holds this lock")
    }
}
