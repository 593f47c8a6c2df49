//! What guests log, for whoever operates the node: lines made harmless, kept to a rate, and not
//! written again when entries are.
//!
//! Invariant: nothing here reaches a guest or a result. It reads the clock of this node, and which
//! of its entries are a replay; replicas differ in both.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::bindings::Level;
use crate::config::limits::GUEST_LOG_LINES_PER_SECOND_MAX;

/// What the lines of guests are logged under, for filters.
const TARGET: &str = "guest";
/// The time that a rate is counted over.
const SECOND: Duration = Duration::from_secs(1);

/// Where a machine stands as its guest logs a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// An instance is being made.
    Start,
    /// It says what it is.
    Describe,
    /// The entry of this index is being applied.
    Entry(u64),
    /// Queries are being answered.
    Query,
    /// The state leaves.
    Export,
    /// The state enters.
    Import,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("start"),
            Self::Describe => f.write_str("describe"),
            Self::Entry(index) => index.fmt(f),
            Self::Query => f.write_str("query"),
            Self::Export => f.write_str("export"),
            Self::Import => f.write_str("import"),
        }
    }
}

/// The log of one machine's guest. Clones are the same log: it outlives the instances.
#[derive(Clone, Debug)]
pub struct GuestLog(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    machine: String,
    replayed_up_to: AtomicU64,
    import_is_replay: AtomicBool,
    rate: Mutex<Rate>,
}

impl GuestLog {
    /// The log of the guest of this machine.
    pub fn new(machine: &str) -> Self {
        Self(Arc::new(Shared {
            machine: machine.to_owned(),
            replayed_up_to: AtomicU64::new(0),
            import_is_replay: AtomicBool::new(false),
            rate: Mutex::default(),
        }))
    }

    /// Entries up to this index were applied before, and what the guest said then was written.
    pub fn replays_up_to(&self, index: u64) {
        self.0.replayed_up_to.store(index, Ordering::Relaxed);
    }

    /// Says of the entry at `index`, which is about to hand the guest a part of an export, whether
    /// it was applied before.
    pub fn imports_at(&self, index: u64) {
        let is_replay = self.is_replay(Place::Entry(index));
        self.0.import_is_replay.store(is_replay, Ordering::Relaxed);
    }

    fn is_replay(&self, place: Place) -> bool {
        match place {
            Place::Entry(index) => index <= self.0.replayed_up_to.load(Ordering::Relaxed),
            Place::Import => self.0.import_is_replay.load(Ordering::Relaxed),
            Place::Start | Place::Describe | Place::Query | Place::Export => false,
        }
    }

    /// Writes a line, unless there were too many lately. `line` must be [`printable`].
    pub(super) fn write(&self, place: Place, level: Level, line: &str) {
        if self.is_replay(place) || !is_enabled(level) || !self.takes() {
            return;
        }
        // The guest's words come last, so that nothing in them can pass for a field.
        let machine = self.0.machine.as_str();
        macro_rules! say {
            ($level:ident) => {
                tracing::$level!(target: TARGET, %machine, index = %place, %line, "guest")
            };
        }
        match level {
            Level::Error => say!(error),
            Level::Warn => say!(warn),
            Level::Info => say!(info),
            Level::Debug => say!(debug),
            Level::Trace => say!(trace),
        }
    }

    /// Says that a command of the entry at `index` failed, and how.
    pub fn write_failure(&self, index: u64, position: usize, reason: &str) {
        let place = Place::Entry(index);
        if self.is_replay(place) || !is_enabled(Level::Warn) || !self.takes() {
            return;
        }
        let machine = self.0.machine.as_str();
        tracing::warn!(target: TARGET, %machine, %index, position, %reason, "a command failed");
    }

    /// Counts a line, tells of dropped ones where their second is over, and says whether it is to
    /// be written.
    fn takes(&self) -> bool {
        let mut rate = self.rate();
        self.tell(rate.turn(Instant::now()));
        rate.takes()
    }

    /// Counts a line beyond those that one call may write.
    pub(super) fn drop_line(&self, place: Place, level: Level) {
        if !self.is_replay(place) && is_enabled(level) {
            self.rate().dropped += 1;
        }
    }

    /// Tells of dropped lines, once their second is over.
    pub(super) fn begin_call(&self) {
        let mut rate = self.rate();
        if rate.dropped > 0 {
            self.tell(rate.turn(Instant::now()));
        }
    }

    fn tell(&self, dropped: u64) {
        if dropped > 0 {
            let machine = self.0.machine.as_str();
            tracing::warn!(target: TARGET, %machine, dropped, "lines of a guest were dropped");
        }
    }

    fn rate(&self) -> MutexGuard<'_, Rate> {
        self.0.rate.lock().expect("no holder panics")
    }
}

/// Whether anybody wants lines of this level: others neither count nor are counted.
fn is_enabled(level: Level) -> bool {
    match level {
        Level::Error => tracing::enabled!(target: TARGET, tracing::Level::ERROR),
        Level::Warn => tracing::enabled!(target: TARGET, tracing::Level::WARN),
        Level::Info => tracing::enabled!(target: TARGET, tracing::Level::INFO),
        Level::Debug => tracing::enabled!(target: TARGET, tracing::Level::DEBUG),
        Level::Trace => tracing::enabled!(target: TARGET, tracing::Level::TRACE),
    }
}

/// Lines written and dropped in the second under way.
#[derive(Debug, Default)]
struct Rate {
    began: Option<Instant>,
    written: u32,
    dropped: u64,
}

impl Rate {
    /// Begins another second where one is over, and says how many lines were dropped until then.
    fn turn(&mut self, now: Instant) -> u64 {
        if self.began.is_some_and(|began| now.saturating_duration_since(began) < SECOND) {
            return 0;
        }
        let dropped = self.dropped;
        *self = Self { began: Some(now), ..Self::default() };
        dropped
    }

    fn takes(&mut self) -> bool {
        let takes = self.written < GUEST_LOG_LINES_PER_SECOND_MAX;
        if takes {
            self.written += 1;
        } else {
            self.dropped += 1;
        }
        takes
    }
}

/// Text as one line that no terminal or reader of logs takes for anything else: control
/// characters, invisible ones and the backslash are escaped as in Rust.
pub(super) fn printable(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' | '\'' => line.push(character),
            _ => line.extend(character.escape_debug()),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many lines a second get through; the rest is counted, and told of once the second is
    /// over.
    #[test]
    fn lines_are_kept_to_a_rate() {
        let mut rate = Rate::default();
        let start = Instant::now();
        let mut written = 0;
        for number in 0..1_000 {
            assert_eq!(rate.turn(start + Duration::from_micros(number * 999)), 0);
            written += u32::from(rate.takes());
        }
        assert_eq!(written, GUEST_LOG_LINES_PER_SECOND_MAX);
        assert_eq!(rate.turn(start + SECOND), 1_000 - u64::from(written));
        assert_eq!(rate.turn(start + SECOND), 0, "it is told once");
        assert!(rate.takes(), "another second, other lines");
        assert_eq!(rate.turn(start + 3 * SECOND), 0, "nothing was dropped");
    }

    /// What could end a line, move a cursor, turn text around or pass for an escape is escaped;
    /// words in any script stay.
    #[test]
    fn lines_are_made_harmless() {
        let check = |text: &str, expected: &str| assert_eq!(printable(text), expected);
        check("it's \"done\"", "it's \"done\"");
        check("Grüße, 世界", "Grüße, 世界");
        check("a\nb\r\tc", "a\\nb\\r\\tc");
        check("\x1b[2J\x07\x7f", "\\u{1b}[2J\\u{7}\\u{7f}");
        check("\u{9b}31m", "\\u{9b}31m");
        check("\u{202e}\u{2028}\u{200b}\u{feff}", "\\u{202e}\\u{2028}\\u{200b}\\u{feff}");
        check("\\n", "\\\\n");
    }

    /// Entries that were applied before say nothing again; all else speaks.
    #[test]
    fn replays_are_silent() {
        let log = GuestLog::new("m");
        assert!(!log.is_replay(Place::Entry(1)));
        log.clone().replays_up_to(7);
        assert!(log.is_replay(Place::Entry(7)));
        assert!(!log.is_replay(Place::Entry(8)));
        assert!(!log.is_replay(Place::Query) && !log.is_replay(Place::Import));
        log.imports_at(7);
        assert!(log.is_replay(Place::Import));
        log.imports_at(8);
        assert!(!log.is_replay(Place::Import));
    }
}
