//! A register that many clients use at once, without a cluster: histories that are right by the way
//! they are made, or wrong in a way that is known.

use std::collections::BTreeMap;

use fastrand::Rng;
use lockstep_history::{Action, History, Operation, Outcome, Reply};

/// One operation before it is answered.
pub struct Planned {
    pub operation: Operation,
    /// When it takes effect; never, if there is none.
    pub effect_us: Option<u64>,
    pub known: bool,
}

/// What clients do: how many, on how many keys, how often.
#[derive(Clone, Copy)]
pub struct Shape {
    pub clients: u32,
    pub keys: u64,
    pub operations_each: u64,
    /// One of so many has an unknown outcome.
    pub unknown_one_in: u64,
}

/// Plans what every client does, one thing after the other.
pub fn plan(random: &mut Rng, shape: Shape) -> Vec<Planned> {
    let mut planned = Vec::new();
    for client in 0..shape.clients {
        let mut now = random.u64(0..500);
        for number in 0..shape.operations_each {
            let called_us = now + random.u64(1..100);
            let known = random.u64(0..shape.unknown_one_in) != 0;
            let delay = if known { random.u64(1..300) } else { random.u64(1..20_000) };
            let effect_us = (known || random.bool()).then_some(called_us + delay);
            let ended_us = called_us + if known { delay + random.u64(1..300) } else { 600 };
            now = ended_us;
            let operation = Operation {
                client,
                route: "simulated".to_owned(),
                key: format!("k{}", random.u64(0..shape.keys)),
                action: action(random, format!("c{client}-{number}")),
                called_us,
                ended_us,
                outcome: if known { Outcome::Refused } else { Outcome::Unknown },
                note: String::new(),
            };
            planned.push(Planned { operation, effect_us, known });
        }
    }
    planned
}

/// Any action, more often one that says what it saw.
pub fn action(random: &mut Rng, value: String) -> Action {
    match random.u32(0..12) {
        0 => Action::Set(value),
        1 => Action::SetAbsent(value),
        2 => Action::SwapAbsent(value),
        3 => Action::SwapPresent(value),
        4 => Action::Delete,
        5 => Action::GetLogged,
        6..9 => Action::Get,
        _ => Action::Swap(value),
    }
}

/// The places of the operations in the order in which they take effect.
pub fn order(planned: &[Planned]) -> Vec<usize> {
    let mut order: Vec<usize> = Vec::new();
    order.extend((0..planned.len()).filter(|&place| planned[place].effect_us.is_some()));
    order.sort_by_key(|&place| planned[place].effect_us);
    order
}

/// Lets the operations take effect in this order, and tells what the clients were told. One that
/// stands there twice takes effect twice, and one of `lost` is answered without taking effect.
pub fn run(planned: &[Planned], order: &[usize], lost: Option<usize>) -> History {
    let mut states: BTreeMap<&str, Option<String>> = BTreeMap::new();
    let mut operations: Vec<Operation> =
        planned.iter().map(|planned| planned.operation.clone()).collect();
    let mut index = 0;
    for &place in order {
        let state = states.entry(&planned[place].operation.key).or_default();
        let action = &planned[place].operation.action;
        let (reply, next) = execute(state.as_deref(), action);
        index += u64::from(*action != Action::Get);
        if lost != Some(place) {
            *state = next;
        }
        let operation = &mut operations[place];
        if planned[place].known && operation.outcome == Outcome::Refused {
            operation.outcome = Outcome::Answered { reply, index };
        }
    }
    History { title: "simulated".to_owned(), operations, events: Vec::new() }
}

/// What the guest does and says, by its documentation.
pub fn execute(state: Option<&str>, action: &Action) -> (Reply, Option<String>) {
    let old = state.map(str::to_owned);
    let told = Reply::Value(old.clone());
    match action {
        Action::Set(value) => (Reply::Done, Some(value.clone())),
        Action::SetAbsent(_) if old.is_some() => (Reply::Value(None), old),
        Action::SetAbsent(value) => (Reply::Done, Some(value.clone())),
        Action::Swap(value) => (told, Some(value.clone())),
        Action::SwapAbsent(_) if old.is_some() => (told, old),
        Action::SwapPresent(_) if old.is_none() => (told, old),
        Action::SwapAbsent(value) | Action::SwapPresent(value) => (told, Some(value.clone())),
        Action::Delete => (Reply::Count(u64::from(old.is_some())), None),
        Action::GetLogged | Action::Get | Action::GetStale => (told, old),
    }
}
