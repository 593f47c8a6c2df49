//! The check against the definition: on histories of a few operations, every order is tried.

#[expect(dead_code, reason = "made for long histories, too")]
mod simulated;

use fastrand::Rng;
use lockstep_history::{History, Operation, Outcome, Violation, check};

/// Histories that are tried.
const CASES: u64 = 30_000;
/// Longest of them.
const OPERATIONS_MAX: usize = 7;

/// The check says of every small history what trying all orders says of it, be it right or wrong.
#[test]
fn the_check_agrees_with_trying_every_order() {
    let mut verdicts = [0_u64; 2];
    for seed in 0..CASES {
        let history = small(&mut Rng::with_seed(seed));
        let every_order = explains(&history.operations, &mut Vec::new(), None);
        let checked = match check(&history) {
            Ok(_) => true,
            Err(Violation::Unplaced(_)) => false,
            Err(other) => panic!("seed {seed}: {other}"),
        };
        assert_eq!(checked, every_order, "seed {seed}: {}", lines(&history));
        verdicts[usize::from(checked)] += 1;
    }
    assert!(verdicts.iter().all(|count| *count > CASES / 10), "wrong and right: {verdicts:?}");
}

/// The operation that is named as the first is the first: without it the history is right.
#[test]
fn the_operation_that_is_named_is_the_first() {
    for seed in 0..CASES / 10 {
        let history = small(&mut Rng::with_seed(seed));
        let Err(Violation::Unplaced(unplaced)) = check(&history) else { continue };
        let named = unplaced.operation.ended_us;
        let cut = |moment_us: u64| {
            let begun = history.operations.iter().filter(|o| o.called_us <= moment_us);
            let known = begun.map(|operation| {
                let mut operation = operation.clone();
                if operation.ended_us > moment_us {
                    operation.outcome = Outcome::Unknown;
                }
                operation
            });
            explains(&known.collect::<Vec<_>>(), &mut Vec::new(), None)
        };
        assert!(!cut(named), "seed {seed}: {unplaced}{}", lines(&history));
        assert!(cut(named - 1), "seed {seed}: {}", lines(&history));
    }
}

/// A history of one key, answered in an order that has something to do with the time, or nothing.
fn small(random: &mut Rng) -> History {
    let strict = random.bool();
    let mut moments: Vec<(u64, simulated::Planned)> = Vec::new();
    for number in 0..random.usize(1..=OPERATIONS_MAX) {
        let called_us = random.u64(1..12);
        let ended_us = called_us + random.u64(1..6);
        let known = random.u8(0..4) != 0;
        let effect = if strict { random.u64(called_us..ended_us) } else { random.u64(1..18) };
        let operation = Operation {
            client: 0,
            route: "small".to_owned(),
            key: "k".to_owned(),
            action: simulated::action(random, format!("v{number}")),
            called_us,
            ended_us,
            outcome: if known { Outcome::Refused } else { Outcome::Unknown },
            note: String::new(),
        };
        let effect_us = (known || random.bool()).then_some(effect);
        moments.push((effect, simulated::Planned { operation, effect_us, known }));
    }
    let planned: Vec<_> = moments.into_iter().map(|(_, planned)| planned).collect();
    let mut history = simulated::run(&planned, &simulated::order(&planned), None);
    // The order of the indexes has a test of its own.
    for operation in &mut history.operations {
        if let Outcome::Answered { index, .. } = &mut operation.outcome {
            *index = operation.ended_us;
        }
    }
    history
}

/// True when the operations that are not in `placed` can follow in some order.
fn explains(operations: &[Operation], placed: &mut Vec<usize>, state: Option<&str>) -> bool {
    let left = |placed: &Vec<usize>| {
        let all = 0..operations.len();
        all.filter(|place| !placed.contains(place)).collect::<Vec<_>>()
    };
    let answered = |place: &usize| matches!(operations[*place].outcome, Outcome::Answered { .. });
    let open = left(placed);
    if !open.iter().any(answered) {
        return true;
    }
    let first_end = open.iter().filter(|place| answered(place));
    let first_end = first_end.map(|place| operations[*place].ended_us).min().unwrap_or(u64::MAX);
    for &place in &open {
        let operation = &operations[place];
        if operation.called_us > first_end {
            continue;
        }
        let (expected, next) = simulated::execute(state, &operation.action);
        let fits = match &operation.outcome {
            Outcome::Answered { reply, .. } => *reply == expected,
            Outcome::Unknown => true,
            Outcome::Refused => false,
        };
        placed.push(place);
        if fits && explains(operations, placed, next.as_deref()) {
            return true;
        }
        placed.pop();
    }
    false
}

fn lines(history: &History) -> String {
    history.operations.iter().map(|operation| format!("\n{operation}")).collect()
}
