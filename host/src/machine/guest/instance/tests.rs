//! Failures without a trace, on a guest whose answers tell where its state lies in memory.

use bytes::Bytes;

use super::*;
use crate::config::limits;
use crate::machine::MemoryHistory;
use crate::types::{Command, MachineId};
use crate::wasm::tests::{ENGINE, WORK_MAX, component};

const ROOM: usize = limits::ENTRY_REPLIES_BYTES_MAX;
const POISON: [&str; 6] = [
    "unreachable",
    "remember and trap",
    "remember and spin",
    "long reply",
    "no replies",
    "recurse",
];

fn blueprint() -> Blueprint {
    blueprint_with(Arc::new(MemoryHistory::default()))
}

fn blueprint_with(history: Arc<MemoryHistory>) -> Blueprint {
    let module = ENGINE.compile(&component("hostile"), WORK_MAX).unwrap();
    let limits = Limits { fuel_per_command: 5_000_000, ..Limits::default() };
    Blueprint { engine: ENGINE.clone(), module, limits, history }
}

fn batch(commands: &[String]) -> Batch {
    let command = |text: &String| Command {
        machine: MachineId(1),
        session: None,
        bytes: Bytes::from(text.clone()),
    };
    Batch::new(MachineId(1), &commands.iter().map(command).collect::<Vec<_>>())
}

fn context(index: u64) -> Context {
    Context { index, time_ms: 1000 + index, seed: index * 7 }
}

/// Commands that are remembered, longer and longer, and now and then one that fails.
fn commands(random: &mut fastrand::Rng) -> Vec<String> {
    let poisoned = random.u8(..4) == 0;
    let count = random.usize(1..6);
    let one = |_| match poisoned && random.u8(..2) == 0 {
        true => POISON[random.usize(..POISON.len())].to_owned(),
        false if random.u8(..4) == 0 => format!("say {}", "x".repeat(random.usize(..300))),
        false => format!("remember {}", "x".repeat(random.usize(..300))),
    };
    (0..count).map(one).collect()
}

fn is_poison(command: &str) -> bool {
    POISON.contains(&command)
}

/// What a state is: its memory to the byte, and the fuel that led there.
fn assert_equal(one: &mut Instance, other: &mut Instance, what: &str) {
    let (one, other) = (one.freeze().unwrap(), other.freeze().unwrap());
    assert_eq!(one.fuel_used(), other.fuel_used(), "{what}");
    assert!(one.image() == other.image(), "memory differs {what}");
}

fn on_guest_thread(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(wasm::THREAD_STACK_BYTES);
    if let Err(panic) = thread.spawn(test).unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}

/// A guest that failed many times equals, to the byte and in fuel, one that was given only what
/// succeeded, whenever images were taken, whether one was being written from, whether the
/// failure met the live guest or a fork, and whether earlier batches were still in memory.
#[test]
fn failures_leave_no_trace() {
    on_guest_thread(|| {
        for seed in 0..3 {
            let history = Arc::new(MemoryHistory::default());
            let mut random = fastrand::Rng::with_seed(seed);
            let mut tried = Instance::start(blueprint_with(Arc::clone(&history))).unwrap();
            let mut spared = Instance::start(blueprint()).unwrap();
            let mut written_from = None;
            for index in 0..80 {
                let commands = commands(&mut random);
                let context = context(index);
                history.put(index, batch(&commands));
                let outcomes = tried.apply(context, &batch(&commands), ROOM).unwrap();
                let good: Vec<Vec<String>> = if commands.iter().any(|command| is_poison(command)) {
                    commands.iter().filter(|c| !is_poison(c)).map(|c| vec![c.clone()]).collect()
                } else {
                    vec![commands.clone()]
                };
                let mut expected = Vec::new();
                for commands in good {
                    expected.extend(spared.apply(context, &batch(&commands), ROOM).unwrap());
                }
                let (failed, succeeded): (Vec<_>, Vec<_>) = outcomes
                    .into_iter()
                    .zip(&commands)
                    .partition(|(_, command)| is_poison(command));
                let succeeded: Vec<Outcome> = succeeded.into_iter().map(|(one, _)| one).collect();
                assert_eq!(succeeded, expected, "seed {seed}, entry {index}");
                let answered = |(outcome, _): &(Outcome, &String)| {
                    matches!(outcome, Outcome::Accepted(_) | Outcome::Rejected(_))
                };
                assert!(!failed.iter().any(answered), "seed {seed}, entry {index}: {failed:?}");
                match random.u8(..8) {
                    0 => tried.replace_image().unwrap(),
                    1 => written_from = Some(tried.freeze().unwrap()),
                    2 => written_from = None,
                    3 => tried.cautious = 0,
                    4 => tried.journal.shed(0),
                    5 => tried.journal.shed(300),
                    _ => {}
                }
            }
            drop(written_from);
            assert_equal(&mut tried, &mut spared, &format!("after seed {seed}"));
        }
    });
}

/// A call that the log does not give back stops the node: it is no outcome.
#[test]
fn a_lost_history_stops_the_node() {
    on_guest_thread(|| {
        let mut guest = Instance::start(blueprint()).unwrap();
        guest.apply(context(1), &batch(&["remember it".to_owned()]), ROOM).unwrap();
        guest.journal.shed(0);
        let failure =
            guest.apply(context(2), &batch(&["unreachable".to_owned()]), ROOM).unwrap_err();
        assert!(failure.to_string().contains("log index 1 cannot be applied again"), "{failure}");
    });
}

/// A guest restored from an image goes on as the one that lived: equal answers, fuel and memory,
/// with a map whose order depends on where things lie.
#[test]
fn a_restored_guest_goes_on_as_the_one_that_lived() {
    on_guest_thread(|| {
        let mut random = fastrand::Rng::with_seed(11);
        let mut lived = Instance::start(blueprint()).unwrap();
        for index in 0..40 {
            lived.apply(context(index), &batch(&commands(&mut random)), ROOM).unwrap();
        }
        let frozen = lived.freeze().unwrap();
        let copy = frozen.image().copy().unwrap();
        let mut restored = Instance::restore(blueprint(), copy, frozen.fuel_used()).unwrap();
        drop(frozen);
        for index in 40..120 {
            let commands = commands(&mut random);
            let context = context(index);
            let outcomes = lived.apply(context, &batch(&commands), ROOM).unwrap();
            assert_eq!(restored.apply(context, &batch(&commands), ROOM).unwrap(), outcomes);
        }
        assert_equal(&mut lived, &mut restored, "after a restore");
    });
}

/// Neither queries, nor queries that write or fail, nor exports change the state.
#[test]
fn forks_change_nothing() {
    on_guest_thread(|| {
        let mut asked = Instance::start(blueprint()).unwrap();
        let mut left_alone = Instance::start(blueprint()).unwrap();
        for guest in [&mut asked, &mut left_alone] {
            guest.apply(context(0), &batch(&["flood at export".to_owned()]), ROOM).unwrap();
        }
        let mut random = fastrand::Rng::with_seed(5);
        for index in 0..60 {
            let commands = commands(&mut random);
            asked.apply(context(index), &batch(&commands), ROOM).unwrap();
            left_alone.apply(context(index), &batch(&commands), ROOM).unwrap();
            for query in ["remember me", "eat memory", POISON[random.usize(..POISON.len())]] {
                let length = [u32::try_from(query.len()).unwrap()];
                let queries = wasm::Batch { data: query.as_bytes(), ends: &length };
                drop(asked.query(context(index), queries, u64::MAX).unwrap());
            }
            let frozen = asked.freeze().unwrap();
            assert!(
                Frozen::export_on(frozen.fork().unwrap(), &mut |_| true).unwrap().is_err(),
                "its export is too long"
            );
        }
        assert_equal(&mut asked, &mut left_alone, "after queries and exports");
    });
}

/// A blueprint of the reference guest.
fn kv() -> Blueprint {
    Blueprint { module: ENGINE.compile(&component("guest-kv"), WORK_MAX).unwrap(), ..blueprint() }
}

/// Some hundred thousand bytes in the reference guest, as the chunks of an export.
fn exported() -> Vec<Vec<u8>> {
    let mut guest = Instance::start(kv()).unwrap();
    let set = |key: u64| {
        let value = "v".repeat(80_000);
        format!("*3\r\n$3\r\nSET\r\n$1\r\n{key}\r\n$80000\r\n{value}\r\n")
    };
    for key in 0..9 {
        let outcomes = guest.apply(context(key), &batch(&[set(key)]), ROOM).unwrap();
        assert_eq!(outcomes, [Outcome::Accepted(Bytes::from_static(b"+OK\r\n"))]);
    }
    let mut chunks = Vec::new();
    let fork = guest.freeze().unwrap().fork().unwrap();
    let taken = Frozen::export_on(fork, &mut |chunk| {
        chunks.push(chunk);
        true
    });
    assert_eq!(taken, Ok(Ok(())));
    assert!(chunks.len() > 2, "an export of {} chunks shows little", chunks.len());
    chunks
}

fn import_part(guest: &mut Instance, chunks: &[Vec<u8>], number: usize) {
    let last = number + 1 == chunks.len();
    assert_eq!(guest.import(1, &chunks[number], last), Ok(Ok(())), "part {number}");
}

/// A guest that took in an export is the same, to the byte and in fuel, whether it did so at one
/// go or was restored from an image between any two parts; and it is what a rollback leads to.
#[test]
fn an_import_goes_on_after_a_restart() {
    on_guest_thread(|| {
        let chunks = exported();
        let mut at_one_go = Instance::start(kv()).unwrap();
        let mut broken_off = Instance::start(kv()).unwrap();
        let before = at_one_go.freeze().unwrap();
        for number in 0..chunks.len() {
            import_part(&mut at_one_go, &chunks, number);
            let frozen = broken_off.freeze().unwrap();
            let image = frozen.image().copy().unwrap();
            broken_off = Instance::restore(kv(), image, frozen.fuel_used()).unwrap();
            import_part(&mut broken_off, &chunks, number);
        }
        assert!(at_one_go.image.as_ref().unwrap().as_ref() != before.image(), "it was imaged");
        at_one_go.roll_back().unwrap();
        assert_equal(&mut at_one_go, &mut broken_off, "after an import");
        let get = "*2\r\n$6\r\nEXISTS\r\n$1\r\n8\r\n".to_owned();
        let found = [Outcome::Accepted(Bytes::from_static(b":1\r\n"))];
        assert_eq!(at_one_go.apply(context(20), &batch(&[get]), ROOM).unwrap(), found);
    });
}

/// What a guest says of an export that it does not take in is its own outcome.
#[test]
fn a_refused_import_says_why() {
    on_guest_thread(|| {
        let outcome = Instance::start(blueprint()).unwrap().import(1, b"", true);
        let words = Bytes::from_static(b"it takes nothing in");
        assert_eq!(outcome, Ok(Err(Outcome::Rejected(words))));
        let mut poor = kv();
        poor.limits.fuel_per_export_step = 1_000;
        let outcome = Instance::start(poor).unwrap().import(1, &exported()[0], false);
        assert_eq!(
            outcome,
            Ok(Err(Outcome::OutOfFuel { limit: "fuel_per_export_step", fuel: 1_000 }))
        );
    });
}

/// Memory that grows by values of 1 byte to 1 MiB, under queries, work ahead of queries, exports
/// of frozen states, rollbacks and new limits: each answer is right, and the state equals that of
/// a guest that was given only what succeeded.
#[test]
fn memory_grows_under_everything() {
    on_guest_thread(|| {
        let mut random = fastrand::Rng::with_seed(11);
        let module = ENGINE.compile(&component("guest-kv"), WORK_MAX).unwrap();
        let limits = Limits::default();
        let start = |history: &Arc<MemoryHistory>| {
            let blueprint = blueprint_with(Arc::clone(history));
            Instance::start(Blueprint { module: module.clone(), limits, ..blueprint }).unwrap()
        };
        let history = Arc::new(MemoryHistory::default());
        let mut busy = start(&history);
        let mut quiet = start(&Arc::default());
        let (mut values, mut frozen) = (Vec::<usize>::new(), Vec::new());
        for index in 0..120_u64 {
            // The longest is what a reply of 1 MiB can hold.
            let length = (1_usize << random.u32(..=20)).min((1 << 20) - 64);
            let key = format!("key-{}", values.len());
            let set = batch(&[resp(&["SET", &key, &"v".repeat(length)])]);
            history.put(index, set.clone());
            let fails = random.u8(..6) == 0 && length > 1 << 16;
            if fails {
                let few = Limits { fuel_per_command: 2_000, ..limits };
                busy.set_limits(few).unwrap();
                let outcomes = busy.apply(context(index), &set, ROOM).unwrap();
                assert!(matches!(outcomes[..], [Outcome::OutOfFuel { .. }]), "{outcomes:?}");
                busy.set_limits(limits).unwrap();
            } else {
                let ok = vec![Outcome::Accepted(Bytes::from_static(b"+OK\r\n"))];
                assert_eq!(busy.apply(context(index), &set, ROOM).unwrap(), ok);
                assert_eq!(quiet.apply(context(index), &set, ROOM).unwrap(), ok);
                values.push(length);
            }
            for _ in 0..random.usize(..4) {
                let Some(number) = (!values.is_empty()).then(|| random.usize(..values.len()))
                else {
                    continue;
                };
                let get = resp(&["GET", &format!("key-{number}")]).into_bytes();
                let ends = [u32::try_from(get.len()).unwrap()];
                let asked = wasm::Batch { data: &get, ends: &ends };
                let answered = busy.query(context(index), asked, u64::MAX).unwrap().unwrap();
                let length = values[number];
                let expected = format!("${length}\r\n{}\r\n", "v".repeat(length));
                assert!(answered == [Outcome::Accepted(Bytes::from(expected))], "{number}");
                for _ in 0..random.usize(..300) {
                    busy.prepare_queries();
                }
            }
            match random.u8(..6) {
                0 => frozen.push((busy.freeze().unwrap(), values.len())),
                1 => frozen.clear(),
                2 => busy.replace_image().unwrap(),
                _ => {}
            }
        }
        for (frozen, count) in frozen {
            let mut chunks = 0;
            let mut take = |_| {
                chunks += 1;
                true
            };
            Frozen::export_on(frozen.fork().unwrap(), &mut take).unwrap().unwrap();
            assert!(chunks > 0 || count == 0);
        }
        assert_equal(&mut busy, &mut quiet, "after growing");
    });
}

fn resp(words: &[&str]) -> String {
    let bulk = |word: &&str| format!("${}\r\n{word}\r\n", word.len());
    format!("*{}\r\n{}", words.len(), words.iter().map(bulk).collect::<String>())
}

/// Once the replies to a batch have so many bytes, the rest of it is not executed. It is the same
/// whether the guest stops by itself or has to be stopped, and a replay of the calls leads to the
/// same state as they did, from memory and from the log.
#[test]
fn replies_to_an_entry_are_bounded() {
    on_guest_thread(|| {
        let get = resp(&["GET", "key"]);
        let stops = vec![get.clone(); 100];
        let is_stopped = (0..100).map(|number| format!("big {number}")).collect();
        for (module, commands) in [("guest-kv", stops), ("hostile", is_stopped)] {
            let history = Arc::new(MemoryHistory::default());
            let module = ENGINE.compile(&component(module), WORK_MAX).unwrap();
            let limits = Limits::default();
            let blueprint = Blueprint { module, limits, ..blueprint_with(Arc::clone(&history)) };
            let start = || Instance::start(blueprint.clone()).unwrap();
            let (mut one, mut other) = (start(), start());
            let set = batch(&[resp(&["SET", "key", &"v".repeat(600 << 10)])]);
            let asked = batch(&commands);
            for guest in [&mut one, &mut other] {
                guest.apply(context(1), &set, ROOM).unwrap();
                history.put(1, set.clone());
                history.put(2, asked.clone());
            }
            one.cautious = CAUTIOUS_BATCHES;
            let outcomes = one.apply(context(2), &asked, ROOM).unwrap();
            assert!(outcomes == other.apply(context(2), &asked, ROOM).unwrap(), "not the same");
            let reached = outcomes.iter().position(|one| *one == Outcome::NotReached).unwrap();
            assert!(outcomes[reached..].iter().all(|one| *one == Outcome::NotReached));
            assert!(outcomes[..reached].iter().all(|one| matches!(one, Outcome::Accepted(_))));
            let (all, without_last) = (&outcomes[..reached], &outcomes[..reached - 1]);
            assert!(bytes_of(without_last) < ROOM && ROOM <= bytes_of(all), "{reached} of 100");
            one.roll_back().unwrap();
            other.journal.shed(0);
            other.roll_back().unwrap();
            assert_equal(&mut one, &mut other, "after replays");
        }
    });
}

/// What was not executed left nothing in the state.
#[test]
fn what_is_not_reached_changes_nothing() {
    on_guest_thread(|| {
        let mut guest = Instance::start(blueprint()).unwrap();
        let commands: Vec<String> = (0..40).map(|number| format!("big {number}")).collect();
        let outcomes = guest.apply(context(1), &batch(&commands), ROOM).unwrap();
        let reached = outcomes.iter().filter(|one| **one != Outcome::NotReached).count();
        assert!(0 < reached && reached < 40, "{reached}");
        let told = guest.apply(context(2), &batch(&["remember".to_owned()]), ROOM).unwrap();
        let [Outcome::Accepted(told)] = &told[..] else { panic!("{told:?}") };
        let told = String::from_utf8_lossy(told);
        for (position, command) in commands.iter().enumerate() {
            let knows = told.contains(&format!("{command}=1 "));
            assert_eq!(knows, position < reached, "{command} in {told}");
        }
    });
}

/// The journal of a guest is of one machine, in order, and the batch of a call is as long as the
/// part of the entry's batch that it is said to be.
#[test]
fn a_journal_is_of_one_machine() {
    let journal = || Journal::new(Arc::new(MemoryHistory::default()));
    let commands = |count| vec!["x".to_owned(); count];
    let pushed = |index, next, part| {
        std::panic::catch_unwind(move || {
            let mut journal = journal();
            journal.push(context(5), batch(&commands(1)), 0..1, 1);
            journal.push(context(index), next, part, 1);
        })
        .is_ok()
    };
    assert!(pushed(5, batch(&commands(2)), 0..2));
    assert!(pushed(6, batch(&commands(1)), 3..4));
    assert!(!pushed(4, batch(&commands(1)), 0..1), "an earlier entry");
    assert!(!pushed(6, batch(&commands(2)), 0..1), "two commands for one");
    let command = Command { machine: MachineId(2), session: None, bytes: Bytes::new() };
    assert!(!pushed(6, Batch::new(MachineId(2), &[command]), 0..1), "another machine");
}

/// A call leaves no more fuel than it had: a guest that was given some back would run for ever.
#[test]
fn fuel_does_not_grow() {
    assert_eq!((used(5, 5), used(5, 0)), (0, 5));
    assert!(std::panic::catch_unwind(|| used(5, 6)).is_err());
}
