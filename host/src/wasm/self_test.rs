//! The last step of admission: does a guest keep to the contract where any guest can be tried?
//!
//! - Does it do on a copy of its memory what it does itself? What admission proves about the code
//!   says that it must. Each probe is applied on a fork, on a guest restored from an image, and on
//!   the guest itself, and replies, fuel and memory must be equal.
//! - Does it answer? The contract has it reject what it cannot read. A guest that fails in every
//!   probe is refused; one that fails in some of them is admitted with a warning, since its own
//!   commands are not known here.
//! - Can its state leave and enter? It is exported, imported, and exported again, before the first
//!   command and after the probes, and both exports must be equal.

use super::admission::Error;
use super::engine::{Engine, Module};
use super::guest::{Batch, Context, ExportError, ExportStopped, Failure, Guest, Replies};
use super::limits::Limits;
use crate::config::limits::{EXPORT_CHUNK_BYTES, PROBE_EXPORT_BYTES_MAX, PROBE_FUEL};

/// Commands, and queries, that most guests reject and some obey; either will do.
const PROBES: [&[u8]; 5] = [b"", b"1", b"{}", b"\x00\xff\x10\x80", b"*1\r\n$4\r\nPING\r\n"];
const CONTEXT: Context = Context { index: 1, time_ms: 1_700_000_000_000, seed: 1 };

/// What a call came to, and the fuel it left.
type Outcome = (Result<Replies, Failure>, u64);

/// Runs the self-test. To be called on a thread with the stack for guests. Returns what is worth a
/// warning.
///
/// # Errors
/// What the guest does wrong, or the host's own failure.
pub(super) fn run(engine: &Engine, module: &Module) -> Result<Vec<String>, Error> {
    let limits = Limits {
        fuel_per_command: PROBE_FUEL,
        fuel_per_query: PROBE_FUEL,
        fuel_per_export_step: PROBE_FUEL,
        ..Limits::for_admission()
    };
    let test = Test { engine, module, limits };
    let mut live = Guest::instantiate_with(engine, module, limits)?;
    test.round_trip(&live, "before the first command")?;
    let mut warnings = Vec::new();
    warnings.extend(verdict("commands", &test.apply_probes(&mut live)?)?);
    warnings.extend(verdict("queries", &test.query_probes(&live)?)?);
    test.round_trip(&live, "after some commands")?;
    Ok(warnings)
}

struct Test<'a> {
    engine: &'a Engine,
    module: &'a Module,
    limits: Limits,
}

impl Test<'_> {
    /// Applies each probe in three ways, and returns how it failed, if it did.
    fn apply_probes(&self, live: &mut Guest) -> Result<Vec<Option<Failure>>, Error> {
        let Self { engine, module, limits } = *self;
        let mut failures = Vec::new();
        for probe in PROBES {
            let image = live.image(None)?;
            let mut fork = live.fork(engine, module)?;
            let on_fork = (fork.apply(&CONTEXT, of(&probe_ends(probe), probe)), fork.fuel_left());
            drop(fork);
            let copied = image.copy().map_err(|error| Error::Engine(error.to_string()))?;
            let mut copy = Guest::restore(engine, module, limits, copied)?;
            let on_copy = apply(&mut copy, probe);
            let itself = apply(live, probe);
            check("a fork of it", &itself, &on_fork)?;
            check("a copy of it", &itself, &on_copy)?;
            if itself.0.is_err() {
                *live = Guest::restore(engine, module, limits, image)?;
            } else if live.image(None)? != copy.image(None)? {
                return Err(Error::NotRepeatable { where_run: "a copy of it", what: "memory" });
            }
            failures.push(itself.0.err());
        }
        Ok(failures)
    }

    /// Asks each probe, and returns how it failed, if it did.
    fn query_probes(&self, live: &Guest) -> Result<Vec<Option<Failure>>, Error> {
        let mut failures = Vec::new();
        for probe in PROBES {
            let mut fork = live.fork(self.engine, self.module)?;
            match fork.query(&CONTEXT, of(&probe_ends(probe), probe), u64::MAX) {
                Err(failure @ Failure::Host(_)) => return Err(failure.into()),
                asked => failures.push(asked.err()),
            }
        }
        Ok(failures)
    }

    /// Takes the state out, into another instance, and out of that.
    fn round_trip(&self, guest: &Guest, when: &'static str) -> Result<(), Error> {
        let failed = |what| move |failure| round_trip_failure(what, when, failure);
        let Some(before) = self.export(guest).map_err(failed("export its state"))? else {
            return Ok(());
        };
        let mut copy = Guest::instantiate_with(self.engine, self.module, self.limits)?;
        let schema = self.module.manifest().schema_version;
        let chunk_bytes = usize::try_from(EXPORT_CHUNK_BYTES).expect("32 bits fit");
        // An export of no bytes is taken in as one part of none.
        let count = before.len().div_ceil(chunk_bytes).max(1);
        for number in 0..count {
            let start = number * chunk_bytes;
            let part = &before[start..before.len().min(start + chunk_bytes)];
            let taken = copy.import(schema, part, number + 1 == count);
            taken.map_err(failed("import its own export"))?;
        }
        let after = self.export(&copy).map_err(failed("export what it imported"))?;
        let after = after.unwrap_or_default();
        if before == after {
            return Ok(());
        }
        let equal = before.iter().zip(&after).take_while(|(one, other)| one == other).count();
        let (before, after, place) = (before.len(), after.len(), equal);
        Err(Error::ExportDiffers { when, before, after, place })
    }

    /// The export of a guest; none where it is too long to be tried.
    fn export(&self, guest: &Guest) -> Result<Option<Vec<u8>>, Failure> {
        let mut bytes = Vec::new();
        let bytes_max = usize::try_from(PROBE_EXPORT_BYTES_MAX).expect("a constant that fits");
        let exported = guest.fork(self.engine, self.module)?.export(&mut |chunk| {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > bytes_max { Err(ExportStopped) } else { Ok(()) }
        });
        match exported {
            Ok(_) => Ok(Some(bytes)),
            Err(ExportError::Stopped) => Ok(None),
            Err(ExportError::Guest(failure)) => Err(failure),
        }
    }
}

fn round_trip_failure(what: &'static str, when: &'static str, failure: Failure) -> Error {
    match failure {
        Failure::Host(_) | Failure::NoStart(_) => failure.into(),
        failure => Error::RoundTrip { what, when, failure },
    }
}

/// Refuses a guest that failed in every probe, and warns of one that failed in some.
fn verdict(what: &'static str, failures: &[Option<Failure>]) -> Result<Option<String>, Error> {
    let mut failed = PROBES.iter().zip(failures).filter_map(|(probe, failure)| {
        failure.as_ref().map(|failure| (format!("\"{}\"", probe.escape_ascii()), failure))
    });
    let count = failures.iter().flatten().count();
    let Some((probe, failure)) = failed.next() else { return Ok(None) };
    if count == failures.len() {
        return Err(Error::FailsAlways { what, count, probe, failure: failure.clone() });
    }
    let total = failures.len();
    Ok(Some(format!(
        "it fails in {count} of {total} probe {what}, such as {probe}: {failure}. A guest should \
         reject what it cannot read"
    )))
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
        let trap = (Err(Failure::Trapped("x".to_owned())), 5);
        assert!(check(trap).unwrap_err().to_string().ends_with("another answer"));
        let host = check((Err(Failure::Host("no memory".to_owned())), 5)).unwrap_err();
        assert!(matches!(host, Error::Engine(_)), "{host}");
    }

    /// Some failures are a warning, nothing but failures a refusal, and none nothing.
    #[test]
    fn failures_are_weighed() {
        let trap = || Some(Failure::Trapped("unreachable".to_owned()));
        assert_eq!(verdict("queries", &[None, None, None, None, None]).unwrap(), None);
        let some = verdict("queries", &[None, trap(), None, trap(), None]).unwrap().unwrap();
        let said =
            "it fails in 2 of 5 probe queries, such as \"1\": the guest trapped: unreachable";
        assert!(some.starts_with(said), "{some}");
        let all = verdict("commands", &[trap(), trap(), trap(), trap(), trap()]).unwrap_err();
        let said = "the guest fails in every one of the 5 probe commands of the self-test, such as \
                    \"\": the guest trapped: unreachable. It must answer";
        assert!(all.to_string().starts_with(said), "{all}");
    }
}
