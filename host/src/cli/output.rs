//! What commands print for scripts and people, on standard output.

use std::fmt;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

/// Something could not be printed.
static FAILED: AtomicBool = AtomicBool::new(false);

/// Prints a line, as `println!` does. Where nobody reads any more, as in `lockstep check FILE |
/// head -1`, what is left is not printed; any other failure is one of the command ([`failed`]).
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::output::line(format_args!($($text)*)) };
}
pub(super) use say;

/// Prints a line.
pub(super) fn line(text: fmt::Arguments<'_>) {
    let Err(error) = writeln!(io::stdout().lock(), "{text}") else { return };
    let is_the_first =
        error.kind() != io::ErrorKind::BrokenPipe && !FAILED.swap(true, Ordering::Relaxed);
    if is_the_first {
        eprintln!("error: cannot write to standard output: {error}");
    }
}

/// True when something could not be printed although somebody reads.
pub(super) fn failed() -> bool {
    FAILED.load(Ordering::Relaxed)
}
