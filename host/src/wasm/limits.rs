//! What one guest may use, and the account of what it uses.
//!
//! Invariant: the guest sees memory refused only where the limit or its own declared maximum
//! refuses it. When the system refuses, the call ends and the reason is kept as the host's.

use wasmtime::ResourceLimiter;

use super::bindings::Level;
use crate::config::limits;

/// Stack that a thread needs to call a guest: what the guest may use, and room for the host's own
/// frames. On a smaller one a recursion without end would kill the process.
pub const THREAD_STACK_BYTES: usize = limits::GUEST_STACK_BYTES + (2 << 20);

/// Lines that one call may write to the log; later ones are dropped.
const LOG_LINES_PER_CALL_MAX: u32 = 16;
/// Bytes of a line in the log; what is beyond is cut.
const LOG_LINE_BYTES_MAX: usize = 1024;
/// What wasmtime says of a growth beyond 32 bits, which it doesn't ask the limiter about. The
/// version is pinned, and a test grows a memory that far.
const BEYOND_ADDRESSES: &str = "memory growth exceeds memory type's limits";

/// What one guest may use. Replicas of a machine must agree on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Fuel for one `apply` or `query`.
    pub fuel_per_call: u64,
    /// Fuel for one step of an export or import.
    pub fuel_per_export_call: u64,
    /// Bytes of linear memory.
    pub memory_bytes_max: usize,
    /// Elements of all tables.
    pub table_elements_max: usize,
    /// Bytes of one reply.
    pub reply_bytes_max: usize,
    /// Bytes of all replies to one batch.
    pub replies_bytes_max: usize,
    /// Bytes of a whole export.
    pub export_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            fuel_per_call: limits::FUEL_PER_CALL,
            fuel_per_export_call: limits::FUEL_PER_EXPORT_CALL,
            memory_bytes_max: limits::GUEST_MEMORY_BYTES_MAX,
            table_elements_max: limits::GUEST_TABLE_ELEMENTS_MAX,
            reply_bytes_max: limits::REPLY_BYTES_MAX,
            replies_bytes_max: limits::REPLIES_BYTES_MAX,
            // An export may be longer than the memory it is made from, but not without end.
            export_bytes_max: 4 * limits::GUEST_MEMORY_BYTES_MAX as u64,
        }
    }
}

impl Limits {
    /// Bytes that may cross from guest to host in one call: the replies, and both lists of
    /// positions beside them.
    pub(super) fn crossing_bytes_max(&self) -> usize {
        self.replies_bytes_max + 8 * limits::ENTRY_COMMANDS_MAX + (64 << 10)
    }
}

/// What belongs to one instance on the host's side.
#[derive(Debug)]
pub(super) struct Room {
    /// Name of the guest in the log.
    name: String,
    limits: Limits,
    /// Why the host could not give what the limits allow.
    host_failure: Option<String>,
    lines_left: u32,
    /// The last line of level error in the call under way: SDK guests say there why they panic.
    last_error: Option<String>,
}

impl Room {
    pub(super) fn new(name: &str, limits: Limits) -> Self {
        Self { name: name.to_owned(), limits, host_failure: None, lines_left: 0, last_error: None }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn begin_call(&mut self) {
        self.lines_left = LOG_LINES_PER_CALL_MAX;
        self.last_error = None;
    }

    pub(super) fn take_host_failure(&mut self) -> Option<String> {
        self.host_failure.take()
    }

    pub(super) fn take_last_error(&mut self) -> Option<String> {
        self.last_error.take()
    }

    /// Counts a line, and says whether it is still to be written.
    pub(super) fn takes_line(&mut self) -> bool {
        let takes = self.lines_left > 0;
        self.lines_left = self.lines_left.saturating_sub(1);
        takes
    }

    pub(super) fn write_line(&mut self, level: Level, message: &str) {
        let line = &message[..message.floor_char_boundary(LOG_LINE_BYTES_MAX)];
        let guest = self.name.as_str();
        match level {
            Level::Error => tracing::error!(guest, "{line}"),
            Level::Warn => tracing::warn!(guest, "{line}"),
            Level::Info => tracing::info!(guest, "{line}"),
            Level::Debug => tracing::debug!(guest, "{line}"),
            Level::Trace => tracing::trace!(guest, "{line}"),
        }
        if level == Level::Error {
            self.last_error = Some(line.to_owned());
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
        let allowed = self.limits.memory_bytes_max.min(maximum.unwrap_or(usize::MAX));
        Ok(desired <= allowed)
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
        Ok(desired <= self.limits.table_elements_max.min(maximum.unwrap_or(usize::MAX)))
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.fail("a table", error)
    }

    fn memories(&self) -> usize {
        1
    }
}
