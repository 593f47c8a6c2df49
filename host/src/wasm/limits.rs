//! What one guest may use, and the account of what it uses.
//!
//! Invariant: the guest sees memory refused only where the limit or its own declared maximum
//! refuses it. When the system refuses, the call ends and the reason is kept as the host's.

use serde::{Deserialize, Serialize};
use wasmtime::ResourceLimiter;

use super::bindings::Level;
use super::guest_log::{GuestLog, Place, printable};
use crate::config::limits;

/// Stack that a thread needs to call a guest: what the guest may use, and room for the host's own
/// frames. On a smaller one a recursion without end would kill the process.
pub const THREAD_STACK_BYTES: usize = limits::GUEST_STACK_BYTES + (2 << 20);

/// What wasmtime says of a growth beyond 32 bits, which it doesn't ask the limiter about. The
/// version is pinned, and a test grows a memory that far.
const BEYOND_ADDRESSES: &str = "memory growth exceeds memory type's limits";

/// What one guest may use. Replicas of a machine must agree on it: it stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Fuel for one `apply`.
    pub fuel_per_command: u64,
    /// Fuel for one `query`.
    pub fuel_per_query: u64,
    /// Fuel for one step of an export or import.
    pub fuel_per_export_step: u64,
    /// Bytes of linear memory. A guest that holds more already keeps it, and gets no more.
    pub memory_bytes_max: u64,
    /// Elements of one table. Tables don't change once a guest has started, so this acts when one
    /// is created.
    pub table_elements_max: u64,
    /// Bytes of one reply.
    pub reply_bytes_max: u64,
    /// Bytes of a whole export.
    pub export_bytes_max: u64,
}

/// Other limits for a machine; what is `None` stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsChange {
    /// [`Limits::fuel_per_command`].
    pub fuel_per_command: Option<u64>,
    /// [`Limits::fuel_per_query`].
    pub fuel_per_query: Option<u64>,
    /// [`Limits::fuel_per_export_step`].
    pub fuel_per_export_step: Option<u64>,
    /// [`Limits::memory_bytes_max`].
    pub memory_bytes_max: Option<u64>,
    /// [`Limits::table_elements_max`].
    pub table_elements_max: Option<u64>,
    /// [`Limits::reply_bytes_max`].
    pub reply_bytes_max: Option<u64>,
    /// [`Limits::export_bytes_max`].
    pub export_bytes_max: Option<u64>,
}

/// A limit that no machine can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} must be {min} to {max}, and {value} is not")]
pub struct InvalidLimit {
    /// The field of [`Limits`].
    pub name: &'static str,
    /// What it was to be.
    pub value: u64,
    /// The least it can be.
    pub min: u64,
    /// The most it can be.
    pub max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            fuel_per_command: limits::FUEL_PER_COMMAND_DEFAULT,
            fuel_per_query: limits::FUEL_PER_QUERY_DEFAULT,
            fuel_per_export_step: limits::FUEL_PER_EXPORT_STEP_DEFAULT,
            memory_bytes_max: limits::GUEST_MEMORY_BYTES_DEFAULT,
            table_elements_max: limits::GUEST_TABLE_ELEMENTS_DEFAULT,
            reply_bytes_max: limits::REPLY_BYTES_MAX as u64,
            export_bytes_max: limits::EXPORT_BYTES_DEFAULT,
        }
    }
}

impl Limits {
    /// The most that any machine can have. A module is admitted, and a state brought back, under
    /// these: what a machine holds may be more than it was limited to since.
    pub fn largest() -> Self {
        Self {
            fuel_per_command: limits::FUEL_MAX,
            fuel_per_query: limits::FUEL_MAX,
            fuel_per_export_step: limits::FUEL_MAX,
            memory_bytes_max: limits::GUEST_MEMORY_BYTES_MAX,
            table_elements_max: limits::GUEST_TABLE_ELEMENTS_MAX,
            reply_bytes_max: limits::REPLY_BYTES_MAX as u64,
            export_bytes_max: limits::EXPORT_BYTES_MAX,
        }
    }

    /// Refuses what no machine can have.
    ///
    /// # Errors
    /// The first such limit, with its bounds.
    pub fn check(&self) -> Result<(), InvalidLimit> {
        let largest = Self::largest();
        let rows = [
            ("fuel_per_command", self.fuel_per_command, limits::FUEL_MIN, largest.fuel_per_command),
            ("fuel_per_query", self.fuel_per_query, limits::FUEL_MIN, largest.fuel_per_query),
            (
                "fuel_per_export_step",
                self.fuel_per_export_step,
                limits::FUEL_PER_EXPORT_STEP_MIN,
                largest.fuel_per_export_step,
            ),
            (
                "memory_bytes_max",
                self.memory_bytes_max,
                limits::GUEST_MEMORY_BYTES_MIN,
                largest.memory_bytes_max,
            ),
            ("table_elements_max", self.table_elements_max, 0, largest.table_elements_max),
            ("reply_bytes_max", self.reply_bytes_max, 1, largest.reply_bytes_max),
            (
                "export_bytes_max",
                self.export_bytes_max,
                limits::EXPORT_BYTES_MIN,
                largest.export_bytes_max,
            ),
        ];
        match rows.into_iter().find(|(_, value, min, max)| !(min..=max).contains(&value)) {
            None => Ok(()),
            Some((name, value, min, max)) => Err(InvalidLimit { name, value, min, max }),
        }
    }

    /// These limits after a change.
    #[must_use]
    pub fn with(self, change: &LimitsChange) -> Self {
        Self {
            fuel_per_command: change.fuel_per_command.unwrap_or(self.fuel_per_command),
            fuel_per_query: change.fuel_per_query.unwrap_or(self.fuel_per_query),
            fuel_per_export_step: change.fuel_per_export_step.unwrap_or(self.fuel_per_export_step),
            memory_bytes_max: change.memory_bytes_max.unwrap_or(self.memory_bytes_max),
            table_elements_max: change.table_elements_max.unwrap_or(self.table_elements_max),
            reply_bytes_max: change.reply_bytes_max.unwrap_or(self.reply_bytes_max),
            export_bytes_max: change.export_bytes_max.unwrap_or(self.export_bytes_max),
        }
    }

    /// Bytes of all replies to one batch: as many of the longest as an entry can ask for, so that
    /// no command fails for what its neighbours are answered.
    pub(super) fn replies_bytes_max(&self) -> u64 {
        self.reply_bytes_max * limits::ENTRY_COMMANDS_MAX as u64
    }

    /// Bytes that may cross from guest to host in one call: the replies, and both lists of
    /// positions beside them, or a chunk of an export, or a line for the log.
    pub(super) fn crossing_bytes_max(&self) -> usize {
        let longest = self.replies_bytes_max().max(u64::from(limits::EXPORT_CHUNK_BYTES));
        let longest = usize::try_from(longest).expect("no more than REPLIES_BYTES_MAX");
        longest + 8 * limits::ENTRY_COMMANDS_MAX + (64 << 10)
    }
}

impl LimitsChange {
    /// Refuses a change to what no machine can have, whatever else the machine has.
    ///
    /// # Errors
    /// As [`Limits::check`].
    pub fn check(&self) -> Result<(), InvalidLimit> {
        Limits::default().with(self).check()
    }
}

/// What belongs to one instance on the host's side.
#[derive(Debug)]
pub(super) struct Room {
    /// Name of the guest.
    name: String,
    limits: Limits,
    /// Why the host could not give what the limits allow.
    host_failure: Option<String>,
    lines_left: u32,
    /// The last line of level error among the first lines of the call under way: SDK guests say
    /// there why they panic. Replicated: it depends on what the guest says, and on nothing else.
    last_error: Option<String>,
    /// Where the lines go; nowhere while an instance is made.
    log: Option<GuestLog>,
    /// The calls under way were made before, and their lines written.
    quiet: bool,
    place: Place,
}

impl Room {
    pub(super) fn new(name: &str, limits: Limits) -> Self {
        Self {
            name: name.to_owned(),
            limits,
            host_failure: None,
            lines_left: 0,
            last_error: None,
            log: None,
            quiet: false,
            place: Place::Start,
        }
    }

    pub(super) fn set_log(&mut self, log: GuestLog) {
        self.log = Some(log);
    }

    pub(super) fn set_quiet(&mut self, quiet: bool) {
        self.quiet = quiet;
    }

    /// Where lines go now, if anywhere.
    fn heard(&self) -> Option<&GuestLog> {
        self.log.as_ref().filter(|_| !self.quiet)
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    pub(super) fn begin_call(&mut self, place: Place) {
        self.lines_left = limits::GUEST_LOG_LINES_PER_CALL_MAX;
        self.last_error = None;
        self.place = place;
        if let Some(log) = self.heard() {
            log.begin_call();
        }
    }

    pub(super) fn take_host_failure(&mut self) -> Option<String> {
        self.host_failure.take()
    }

    pub(super) fn take_last_error(&mut self) -> Option<String> {
        self.last_error.take()
    }

    /// Counts a line, and says whether it is one of those that are looked at.
    pub(super) fn takes_line(&mut self, level: Level) -> bool {
        let takes = self.lines_left > 0;
        self.lines_left = self.lines_left.saturating_sub(1);
        if !takes && let Some(log) = self.heard() {
            log.drop_line(self.place, level);
        }
        takes
    }

    pub(super) fn write_line(&mut self, level: Level, message: &str) {
        let line = printable(cut(message));
        if let Some(log) = self.heard() {
            log.write(self.place, level, &line);
        }
        if level == Level::Error {
            self.last_error = Some(line);
        }
    }

    fn fail(&mut self, what: &str, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.host_failure = Some(format!("{what} of guest {} cannot grow: {error:#}", self.name));
        Err(error)
    }
}

impl ResourceLimiter for Room {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(within(desired, self.limits.memory_bytes_max, maximum))
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        if error.to_string() == BEYOND_ADDRESSES {
            return Ok(());
        }
        self.fail("the memory", error)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(within(desired, self.limits.table_elements_max, maximum))
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.fail("a table", error)
    }

    fn memories(&self) -> usize {
        1
    }
}

/// Whether a size is within the machine's limit and the maximum that the guest itself declares.
fn within(desired: usize, limit: u64, declared: Option<usize>) -> bool {
    u64::try_from(desired).is_ok_and(|desired| desired <= limit)
        && declared.is_none_or(|declared| desired <= declared)
}

/// The part of a line that is looked at.
pub(super) fn cut(message: &str) -> &str {
    &message[..message.floor_char_boundary(limits::GUEST_LOG_LINE_BYTES_MAX)]
}
