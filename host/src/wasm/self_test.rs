//! The last step of admission: does a guest do on a copy of its memory what it does itself?
//!
//! What admission proves about the code says that it must. This runs it: each probe is applied on
//! a fork, on a guest restored from an image, and on the guest itself, and replies, fuel and
//! memory must be equal.

use super::admission::Error;
use super::engine::{Engine, Module};
use super::guest::{Batch, Context, Failure, Guest, Replies};
use super::limits::Limits;

/// Commands that most guests reject and some obey; either will do.
const PROBES: [&[u8]; 3] = [b"1", b"\x00\xff\x10\x80", b"*1\r\n$4\r\nPING\r\n"];
/// Fuel for one probe: one without an end costs some milliseconds.
const FUEL: u64 = 10_000_000;
const CONTEXT: Context = Context { index: 1, time_ms: 1_700_000_000_000, seed: 1 };

/// What a call came to, and the fuel it left.
type Outcome = (Result<Replies, Failure>, u64);

/// Runs the probes. To be called on a thread with the stack for guests.
///
/// # Errors
/// [`Error::NotRepeatable`], or the host's own failure.
pub(super) fn run(engine: &Engine, module: &Module) -> Result<(), Error> {
    let table_elements_max = Limits::largest().table_elements_max;
    let limits = Limits { fuel_per_command: FUEL, table_elements_max, ..Limits::default() };
    let mut live = Guest::instantiate_with(engine, module, limits)?;
    for probe in PROBES {
        let image = live.image(None)?;
        let mut fork = live.fork(engine, module)?;
        let on_fork = (fork.apply(&CONTEXT, of(&probe_ends(probe), probe)), fork.fuel_left());
        drop(fork);
        let copied = image.copy().map_err(|error| Error::Engine(error.to_string()))?;
        let mut copy = Guest::restore(engine, module, limits, copied)?;
        let on_copy = apply(&mut copy, probe);
        let itself = apply(&mut live, probe);
        check("a fork of it", &itself, &on_fork)?;
        check("a copy of it", &itself, &on_copy)?;
        if itself.0.is_err() {
            live = Guest::restore(engine, module, limits, image)?;
        } else if live.image(None)? != copy.image(None)? {
            return Err(Error::NotRepeatable { where_run: "a copy of it", what: "memory" });
        }
    }
    Ok(())
}

fn apply(guest: &mut Guest, probe: &[u8]) -> Outcome {
    (guest.apply(&CONTEXT, of(&probe_ends(probe), probe)), guest.fuel_left())
}

fn check(where_run: &'static str, itself: &Outcome, other: &Outcome) -> Result<(), Error> {
    for (result, _) in [itself, other] {
        if let Err(failure @ Failure::Host(_)) = result {
            return Err(failure.clone().into());
        }
    }
    let what = match (itself.0 == other.0, itself.1 == other.1) {
        (true, true) => return Ok(()),
        (false, _) => "answer",
        (true, false) => "use of fuel",
    };
    Err(Error::NotRepeatable { where_run, what })
}

fn probe_ends(probe: &[u8]) -> [u32; 1] {
    [u32::try_from(probe.len()).expect("probes are short")]
}

fn of<'a>(ends: &'a [u32; 1], data: &'a [u8]) -> Batch<'a> {
    Batch { data, ends }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any difference is told by what differs, and where.
    #[test]
    fn differences_are_named() {
        let replies = |text: &[u8]| Ok(Replies { data: text.to_vec(), ..Replies::default() });
        let itself = (replies(b"1"), 5);
        let check = |other: Outcome| check("a fork of it", &itself, &other);
        assert!(check((replies(b"1"), 5)).is_ok());
        let answer = check((replies(b"2"), 5)).unwrap_err().to_string();
        assert_eq!(answer, "the guest does not repeat itself: a fork of it has another answer");
        let fuel = check((replies(b"1"), 6)).unwrap_err().to_string();
        assert_eq!(fuel, "the guest does not repeat itself: a fork of it has another use of fuel");
        let trap = (Err(Failure::OutOfFuel), 5);
        assert!(check(trap).unwrap_err().to_string().ends_with("another answer"));
        let host = check((Err(Failure::Host("no memory".to_owned())), 5)).unwrap_err();
        assert!(matches!(host, Error::Engine(_)), "{host}");
    }
}
