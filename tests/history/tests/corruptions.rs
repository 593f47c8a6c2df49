//! Histories as a broken cluster would make them: each must be refused, and the operation that
//! shows it be named. The same histories without the fault are right.

mod simulated;

use fastrand::Rng;
use lockstep_history::{Action, History, Operation, Outcome, Reply, Violation, check, file};
use simulated::{Planned, Shape};

/// Sparse enough that operations on one key follow each other here and there.
const SHAPE: Shape = Shape { clients: 5, keys: 4, operations_each: 200, unknown_one_in: 50 };
/// Histories that each fault is tried on.
const SEEDS: u64 = 25;

/// What a broken cluster does.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// A write is acknowledged and never applied.
    LostWrite,
    /// A read shows what was there before a write that had been acknowledged.
    StaleRead,
    /// A write is applied a second time, later.
    DoubledWrite,
    /// A read shows a value that nobody wrote.
    NeverWritten,
    /// A read shows a value before its write was called.
    Future,
    /// Two writes take effect in the other order than they were made in.
    Reordered,
}

/// Every kind of fault is refused, on its key, and by an operation that is not before it.
#[test]
fn every_corruption_is_refused() {
    let faults = [
        Fault::LostWrite,
        Fault::StaleRead,
        Fault::DoubledWrite,
        Fault::NeverWritten,
        Fault::Future,
        Fault::Reordered,
    ];
    for seed in 0..SEEDS {
        let mut random = Rng::with_seed(seed);
        let planned = simulated::plan(&mut random, SHAPE);
        let order = simulated::order(&planned);
        let right = simulated::run(&planned, &order, None);
        if let Err(violation) = check(&right) {
            panic!("seed {seed}: a history that is right: {violation}");
        }
        for fault in faults {
            let place = Place::find(fault, &planned, &order, &right);
            let place = place.unwrap_or_else(|| panic!("seed {seed}: no place for {fault:?}"));
            let wrong = place.corrupt(fault, &planned, &order, &right);
            match check(&wrong) {
                Err(Violation::Unplaced(unplaced)) => {
                    let (named, first) = (unplaced.operation, &right.operations[place.first]);
                    assert_eq!(named.key, first.key, "seed {seed}: {fault:?}");
                    assert!(named.ended_us >= first.ended_us, "seed {seed}: {fault:?}: {named}");
                }
                other => panic!("seed {seed}: {fault:?} is not refused: {other:?}"),
            }
        }
    }
}

/// Three operations that follow each other on one key, none of them overlapping: a write that
/// replaced a value, one that saw its value, and one that saw what that one left.
struct Place {
    first: usize,
    second: usize,
}

impl Place {
    /// The first place at which the fault must show.
    fn find(fault: Fault, planned: &[Planned], order: &[usize], right: &History) -> Option<Self> {
        let on_key = |place: usize| {
            let key = &planned[place].operation.key;
            order.iter().copied().filter(move |other| planned[*other].operation.key == *key)
        };
        order.iter().copied().find_map(|first| {
            let mut rest = on_key(first).skip_while(|place| *place != first).skip(1);
            let (second, third) = (rest.next()?, rest.next()?);
            let [a, b, c] = [first, second, third].map(|place| &right.operations[place]);
            let apart = a.ended_us < b.called_us && b.ended_us < c.called_us;
            let sees = |operation: &Operation| {
                matches!(operation.action, Action::Get | Action::GetLogged | Action::Swap(_))
            };
            let replaced = |operation: &Operation| {
                matches!(operation.action, Action::Swap(_)) && value_told(operation).is_some()
            };
            let second_fits = match fault {
                Fault::StaleRead | Fault::NeverWritten | Fault::Future => sees(b),
                Fault::LostWrite => sees(b),
                Fault::DoubledWrite | Fault::Reordered => replaced(b),
            };
            let answered = [a, b, c].iter().all(|o| matches!(o.outcome, Outcome::Answered { .. }));
            let fits = answered && apart && replaced(a) && second_fits && sees(c);
            fits.then_some(Self { first, second })
        })
    }

    fn corrupt(
        &self,
        fault: Fault,
        planned: &[Planned],
        order: &[usize],
        right: &History,
    ) -> History {
        let at = |place: usize| order.iter().position(|other| *other == place).expect("it is one");
        match fault {
            Fault::LostWrite => simulated::run(planned, order, Some(self.first)),
            Fault::DoubledWrite => {
                let mut order = order.to_vec();
                order.insert(at(self.second) + 1, self.first);
                simulated::run(planned, &order, None)
            }
            Fault::Reordered => {
                let mut swapped = order.to_vec();
                swapped.swap(at(self.first), at(self.second));
                simulated::run(planned, &swapped, None)
            }
            Fault::StaleRead => {
                let old = value_told(&right.operations[self.first]);
                self.tell(right, old.expect("it replaced a value"))
            }
            Fault::NeverWritten => self.tell(right, "never-written"),
            Fault::Future => {
                let read = &right.operations[self.second];
                let later = right.operations.iter().find(|operation| {
                    operation.key == read.key
                        && operation.called_us > read.ended_us
                        && operation.action.value().is_some()
                });
                let value = later.and_then(|operation| operation.action.value());
                self.tell(right, value.expect("there are later writes"))
            }
        }
    }

    /// The history in which the second operation was told that the key holds `value`.
    fn tell(&self, right: &History, value: &str) -> History {
        let mut wrong = right.clone();
        let outcome = &mut wrong.operations[self.second].outcome;
        let Outcome::Answered { reply, .. } = outcome else { panic!("it was answered") };
        *reply = Reply::Value(Some(value.to_owned()));
        wrong
    }
}

fn value_told(operation: &Operation) -> Option<&str> {
    match &operation.outcome {
        Outcome::Answered { reply: Reply::Value(Some(value)), .. } => Some(value),
        _ => None,
    }
}

/// A write of unknown outcome may show late or never, but it is not applied twice, and a refused
/// one never shows.
#[test]
fn unknown_and_refused_writes() {
    let rows: &[(&[Row], bool)] = &[
        (&[("a", 0, Told::Unknown), ("GET", 2, Told::Nil), ("GET", 4, Told::Value("a"))], true),
        (&[("a", 0, Told::Unknown), ("GET", 2, Told::Value("a")), ("GET", 4, Told::Nil)], false),
        (&[("a", 0, Told::Unknown), ("GET", 2, Told::Nil)], true),
        (&[("a", 0, Told::Refused), ("GET", 2, Told::Nil)], true),
        (&[("a", 0, Told::Refused), ("GET", 2, Told::Value("a"))], false),
        (&[("a", 0, Told::Refused), ("b", 2, Told::Value("a"))], false),
        (
            &[
                ("a", 0, Told::Unknown),
                ("b", 2, Told::Value("a")),
                ("c", 4, Told::Value("b")),
                ("GET", 6, Told::Value("a")),
            ],
            false,
        ),
        (
            &[
                ("a", 0, Told::Unknown),
                ("b", 2, Told::Nil),
                ("c", 4, Told::Value("b")),
                ("GET", 6, Told::Value("a")),
            ],
            true,
        ),
    ];
    for (rows, right) in rows {
        let history = history(rows);
        let verdict = check(&history);
        assert_eq!(verdict.is_ok(), *right, "{rows:?}: {verdict:?}");
    }
}

/// What a client asked (a value to swap in, or GET), when, and what it was told.
type Row = (&'static str, u64, Told);

#[derive(Clone, Copy, Debug)]
enum Told {
    Nil,
    Value(&'static str),
    Refused,
    Unknown,
}

fn history(rows: &[Row]) -> History {
    let operations = rows.iter().map(|&(asked, called_us, told)| {
        let answered = |value: Option<&str>| Outcome::Answered {
            reply: Reply::Value(value.map(str::to_owned)),
            index: called_us + 1,
        };
        Operation {
            client: 0,
            route: "row".to_owned(),
            key: "k".to_owned(),
            action: if asked == "GET" { Action::Get } else { Action::Swap(asked.to_owned()) },
            called_us,
            ended_us: called_us + 1,
            outcome: match told {
                Told::Nil => answered(None),
                Told::Value(value) => answered(Some(value)),
                Told::Refused => Outcome::Refused,
                Told::Unknown => Outcome::Unknown,
            },
            note: String::new(),
        }
    });
    History { title: "rows".to_owned(), operations: operations.collect(), events: Vec::new() }
}

/// Indexes that go backwards are refused, also between keys of which each is right by itself.
#[test]
fn indexes_that_go_backwards_are_refused() {
    let mut history =
        history(&[("a", 0, Told::Nil), ("b", 2, Told::Value("a")), ("GET", 4, Told::Value("b"))]);
    history.operations[1].key = "other".to_owned();
    history.operations[1].outcome = Outcome::Answered { reply: Reply::Value(None), index: 5 };
    history.operations[2].key = "other".to_owned();
    for (index, right) in [(4, false), (5, true), (6, true)] {
        let reply = Reply::Value(Some("b".to_owned()));
        history.operations[2].outcome = Outcome::Answered { reply, index };
        assert_eq!(check(&history).is_ok(), right, "a query from index {index}");
    }
    history.operations[1].outcome = Outcome::Answered { reply: Reply::Value(None), index: 1 };
    assert!(
        matches!(check(&history), Err(Violation::Reversed { .. })),
        "two commands at one index"
    );
}

/// A stale read may be old, but shows what was there at its index.
#[test]
fn stale_reads_are_held_against_the_log() {
    let rows = [
        ("a", 0, Told::Nil),
        ("b", 2, Told::Value("a")),
        ("c", 4, Told::Unknown),
        ("d", 6, Told::Value("b")),
    ];
    // The writes stand at 1, 3, anywhere, and 7.
    let told = [
        (None, 0, true),
        (None, 1, false),
        (None, 9, false),
        (Some("a"), 0, false),
        (Some("a"), 1, true),
        (Some("a"), 2, true),
        (Some("a"), 3, false),
        (Some("b"), 4, true),
        (Some("b"), 7, false),
        (Some("c"), 9, true),
        (Some("d"), 9, true),
        (Some("e"), 9, false),
    ];
    for (value, index, right) in told {
        let mut history = history(&rows);
        let read = Operation {
            action: Action::GetStale,
            called_us: 20,
            ended_us: 21,
            outcome: Outcome::Answered { reply: Reply::Value(value.map(str::to_owned)), index },
            ..history.operations[0].clone()
        };
        history.operations.push(read);
        let verdict = check(&history);
        assert_eq!(verdict.is_ok(), right, "{value:?} at {index}: {verdict:?}");
        if let Err(violation) = verdict {
            assert!(matches!(violation, Violation::Stale { .. }), "{violation}");
        }
    }
}

/// What the guest never answers, and two writes of one value, are named as what they are.
#[test]
fn what_says_nothing_is_refused() {
    let mut twice = history(&[("a", 0, Told::Nil), ("a", 2, Told::Value("a"))]);
    assert!(matches!(check(&twice), Err(Violation::NotUnique { .. })));
    twice.operations.truncate(1);
    twice.operations[0].outcome = Outcome::Answered { reply: Reply::Count(1), index: 1 };
    assert!(matches!(check(&twice), Err(Violation::Malformed(_))));
}

/// As many operations as a run of a minute makes, on few keys and with many unknown outcomes, are
/// decided, whether they are right or wrong; and a history is the same after a way through a file.
#[test]
fn long_histories_are_decided() {
    let shape = Shape { clients: 16, keys: 4, operations_each: 3_000, unknown_one_in: 100 };
    let planned = simulated::plan(&mut Rng::with_seed(7), shape);
    let order = simulated::order(&planned);
    let right = simulated::run(&planned, &order, None);
    let summary = check(&right).unwrap_or_else(|violation| panic!("{violation}"));
    assert_eq!((summary.keys, summary.answered + summary.unknown), (4, 48_000));

    let place = Place::find(Fault::LostWrite, &planned, &order[24_000..], &right).expect("a place");
    let wrong = place.corrupt(Fault::LostWrite, &planned, &order, &right);
    let verdict = check(&wrong);
    assert!(matches!(verdict, Err(Violation::Unplaced(_))), "a write is lost: {verdict:?}");

    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("history.jsonl");
    file::write(&wrong, &path).expect("a file can be written");
    let mut read = file::read(&path).expect("what was written can be read");
    let mut expected = wrong;
    for history in [&mut read, &mut expected] {
        history.operations.sort_by_key(|operation| (operation.called_us, operation.client));
    }
    assert!(read == expected, "a history is the same after a way through a file");
}
