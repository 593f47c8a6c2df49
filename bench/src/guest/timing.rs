//! Times as people read them.

use std::time::{Duration, Instant};

/// Runs something and says how long it took.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let done = work();
    (done, start.elapsed())
}

/// The middle one.
pub(crate) fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// The longest one.
pub(crate) fn longest(times: &[Duration]) -> Duration {
    times.iter().copied().max().unwrap_or_default()
}

/// Prints a row: what was measured, and its figures.
pub(crate) fn row(what: &str, figures: &str) {
    println!("  {what:<52} {figures}");
}

/// Microseconds, with a decimal.
pub(crate) fn micros(time: Duration) -> String {
    format!("{:.1} us", time.as_secs_f64() * 1e6)
}

/// Milliseconds, with decimals.
pub(crate) fn millis(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}
