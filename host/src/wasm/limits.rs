//! The account of what one guest uses, against what it may use.
//!
//! Invariant: the guest sees memory refused only where the limit or its own declared maximum
//! refuses it. When the system refuses, the call ends and the reason is kept as the host's.

use wasmtime::ResourceLimiter;

use super::bindings::Level;
use super::guest_log::{GuestLog, Place, printable};
pub(super) use super::machine_limits::Limits;
use crate::config::limits;

/// Stack that a thread needs to call a guest: what the guest may use, and room for the host's own
/// frames. On a smaller one a recursion without end would kill the process.
pub const THREAD_STACK_BYTES: usize = limits::GUEST_STACK_BYTES + (2 << 20);

/// What wasmtime says of a growth beyond 32 bits, which it doesn't ask the limiter about. The
/// version is pinned, and a test grows a memory that far.
const BEYOND_ADDRESSES: &str = "memory growth exceeds memory type's limits";

/// Why an instance is not made: the limiter says it, and no guest hears of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct NoStart(String);

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
    /// The memory is made, though it may have no bytes yet.
    has_memory: bool,
    /// The last memory that the call under way asked for and was not given. Replicated, as the last
    /// error is.
    memory_refused: Option<String>,
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
            has_memory: false,
            memory_refused: None,
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
        self.memory_refused = None;
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

    pub(super) fn take_memory_refused(&mut self) -> Option<String> {
        self.memory_refused.take()
    }

    pub(super) fn place(&self) -> Place {
        self.place
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
    /// A start function gets none: forks and copies run it again, and would be longer than their
    /// original.
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let limit = self.limits.memory_bytes_max;
        let fits = within(desired, limit, maximum);
        let has_memory = std::mem::replace(&mut self.has_memory, true);
        if self.place != Place::Start {
            if !fits {
                self.memory_refused = Some(refusal(current, desired, limit, maximum));
            }
            return Ok(fits);
        }
        if has_memory {
            return no_start(format!(
                "its start function asks for more memory, and it has the {current} bytes that it \
                 declares"
            ));
        }
        if fits {
            return Ok(true);
        }
        no_start(format!("it starts with {desired} bytes of memory, and the limit is {limit}"))
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        if error.to_string() == BEYOND_ADDRESSES {
            self.memory_refused = Some("it asked for more than 32 bits address".to_owned());
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
        let limit = self.limits.table_elements_max;
        if within(desired, limit, maximum) {
            return Ok(true);
        }
        no_start(format!("it starts with a table of {desired} elements, and the limit is {limit}"))
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.fail("a table", error)
    }

    fn memories(&self) -> usize {
        1
    }
}

/// Which memory a guest did not get.
fn refusal(current: usize, desired: usize, limit: u64, declared: Option<usize>) -> String {
    let asked = format!("it has {current} bytes and asked for {desired}");
    match declared {
        Some(declared) if desired > declared => {
            format!("{asked}, and it declares at most {declared}")
        }
        _ => format!("{asked}, and the limit is {limit} (memory_bytes_max)"),
    }
}

fn no_start(reason: String) -> wasmtime::Result<bool> {
    Err(wasmtime::Error::new(NoStart(reason)))
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
