//! Failures without a trace, on a guest whose answers tell where its state lies in memory.

use super::*;
use crate::machine::MemoryHistory;
use crate::types::{Command, MachineId};
use crate::wasm::tests::{ENGINE, component};

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
    let module = ENGINE.compile(&component("hostile")).unwrap();
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
                let outcomes = tried.apply(context, batch(&commands)).unwrap();
                let good: Vec<Vec<String>> = if commands.iter().any(|command| is_poison(command)) {
                    commands.iter().filter(|c| !is_poison(c)).map(|c| vec![c.clone()]).collect()
                } else {
                    vec![commands.clone()]
                };
                let mut expected = Vec::new();
                for commands in good {
                    expected.extend(spared.apply(context, batch(&commands)).unwrap());
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
        guest.apply(context(1), batch(&["remember it".to_owned()])).unwrap();
        guest.journal.shed(0);
        let failure = guest.apply(context(2), batch(&["unreachable".to_owned()])).unwrap_err();
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
            lived.apply(context(index), batch(&commands(&mut random))).unwrap();
        }
        let frozen = lived.freeze().unwrap();
        let copy = frozen.image().copy().unwrap();
        let mut restored = Instance::restore(blueprint(), copy, frozen.fuel_used()).unwrap();
        drop(frozen);
        for index in 40..120 {
            let commands = commands(&mut random);
            let context = context(index);
            let outcomes = lived.apply(context, batch(&commands)).unwrap();
            assert_eq!(restored.apply(context, batch(&commands)).unwrap(), outcomes);
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
        let mut random = fastrand::Rng::with_seed(5);
        for index in 0..60 {
            let commands = commands(&mut random);
            asked.apply(context(index), batch(&commands)).unwrap();
            left_alone.apply(context(index), batch(&commands)).unwrap();
            for query in ["remember me", "eat memory", POISON[random.usize(..POISON.len())]] {
                let length = [u32::try_from(query.len()).unwrap()];
                let queries = wasm::Batch { data: query.as_bytes(), ends: &length };
                drop(asked.query(context(index), queries, u64::MAX).unwrap());
            }
            let frozen = asked.freeze().unwrap();
            assert!(frozen.export(&mut |_| true).unwrap().is_err(), "its export is too long");
        }
        assert_equal(&mut asked, &mut left_alone, "after queries and exports");
    });
}
