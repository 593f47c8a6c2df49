//! The verdict on a history.
//!
//! Each key is looked at by itself: a history is linearizable when that of every key is (Herlihy
//! and Wing, theorem 1). Of a key whose history is not, the first operation that cannot be placed
//! is found: all that ended before it can be explained, and with its answer it can't be.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::operation::{Action, History, Operation, Outcome};
use crate::order;
use crate::search::{Found, Timed, search};
use crate::stale;
use crate::transition::{State, Transition, Values};

/// Placements that the search on one key may take before it is given up. A key of some thousand
/// operations takes about as many when its history is right.
const PLACEMENTS_MAX: u64 = 2_000_000;
/// Operations that are shown before the one that cannot be placed.
const SHOWN: usize = 16;

/// What a history that is right was made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Keys.
    pub keys: usize,
    /// Operations that were answered.
    pub answered: usize,
    /// Operations that were refused without having an effect.
    pub refused: usize,
    /// Operations of unknown outcome.
    pub unknown: usize,
}

/// Why a history is refused.
#[derive(Debug, thiserror::Error)]
pub enum Violation {
    /// Nothing explains the answer to an operation.
    #[error("{0}")]
    Unplaced(Box<Unplaced>),
    /// An operation stands in the log before one that was answered before it was called.
    #[error("the log has them the other way round: first\n  {earlier}\nthen\n  {later}")]
    Reversed {
        /// The one that was answered first.
        earlier: Box<Operation>,
        /// The one that was called later.
        later: Box<Operation>,
    },
    /// A stale read shows what the log does not hold up to its index.
    #[error("a stale read shows what was not there at its index:\n  {read}\n{}", against(.other))]
    Stale {
        /// The read.
        read: Box<Operation>,
        /// What stands against it; `None` when nobody wrote the value.
        other: Option<Box<Operation>>,
    },
    /// The guest never answers such a command so.
    #[error("no such command is ever answered so:\n  {0}")]
    Malformed(Box<Operation>),
    /// A value was written by two operations: the history says nothing then.
    #[error("two operations write the value {value}: nothing can be said of key {key}")]
    NotUnique {
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
    /// The search took too long, so nothing is shown.
    #[error("key {key} is undecided: no order of its {operations} operations was found in time")]
    Undecided {
        /// The key.
        key: String,
        /// How many operations it has.
        operations: usize,
    },
}

fn against(other: &Option<Box<Operation>>) -> String {
    other.as_ref().map_or("nobody wrote that".to_owned(), |other| format!("against it:\n  {other}"))
}

/// The first operation of a key that cannot be placed.
#[derive(Debug)]
pub struct Unplaced {
    /// The operation.
    pub operation: Operation,
    /// What the key could hold, in every order that explains all other answers.
    pub states: Vec<String>,
    /// What went on in the key before it ended, in the order of the calls.
    pub around: Vec<Operation>,
}

impl fmt::Display for Unplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the first operation that cannot be placed:\n  {}\n", self.operation)?;
        if !self.states.is_empty() {
            writeln!(f, "the key could hold: {}", self.states.join(", "))?;
        }
        writeln!(f, "before it on this key:")?;
        self.around.iter().try_for_each(|operation| writeln!(f, "  {operation}"))
    }
}

/// Checks a whole history.
///
/// # Errors
/// When it can't be explained, or it could not be found out whether it can.
pub fn check(history: &History) -> Result<Summary, Violation> {
    let mut keys: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    let mut summary = Summary::default();
    for operation in &history.operations {
        keys.entry(&operation.key).or_default().push(operation);
        match operation.outcome {
            Outcome::Answered { .. } => summary.answered += 1,
            Outcome::Refused => summary.refused += 1,
            Outcome::Unknown => summary.unknown += 1,
        }
    }
    summary.keys = keys.len();
    keys.into_iter().try_for_each(|(key, operations)| check_key(key, &operations))?;
    if let Some((earlier, later)) = order::first_reversal(&history.operations) {
        let (earlier, later) = (Box::new(earlier.clone()), Box::new(later.clone()));
        return Err(Violation::Reversed { earlier, later });
    }
    Ok(summary)
}

fn check_key(key: &str, operations: &[&Operation]) -> Result<(), Violation> {
    let mut written = BTreeSet::new();
    if let Some(value) = operations
        .iter()
        .filter_map(|operation| operation.action.value())
        .find(|value| !written.insert(*value))
    {
        return Err(Violation::NotUnique { key: key.to_owned(), value: value.to_owned() });
    }
    if let Some((read, other)) = stale::first_contradiction(operations) {
        let other = other.map(|other| Box::new(other.clone()));
        return Err(Violation::Stale { read: Box::new(read.clone()), other });
    }
    let mut values = Values::default();
    let known: Vec<Known> = operations
        .iter()
        .filter(|operation| operation.outcome != Outcome::Refused)
        .filter(|operation| operation.action != Action::GetStale)
        .map(|operation| Known::of(operation, &mut values))
        .collect::<Result<_, _>>()?;
    let undecided = || Violation::Undecided { key: key.to_owned(), operations: operations.len() };
    match search(&until(&known, u64::MAX), PLACEMENTS_MAX) {
        Found::Order => Ok(()),
        Found::GivenUp => Err(undecided()),
        Found::Nothing { until_us, .. } => {
            let (ended_us, states) = first_unplaced(&known, until_us).ok_or_else(undecided)?;
            Err(explain(operations, ended_us, states.iter().map(|state| values.name(*state))))
        }
    }
}

/// What is known of an operation that was not refused.
struct Known {
    called_us: u64,
    /// When it was answered, and what it did by that answer.
    answered: Option<(u64, Transition)>,
    /// What it does while it is not answered.
    unknown: Option<Transition>,
}

impl Known {
    fn of(operation: &Operation, values: &mut Values) -> Result<Self, Violation> {
        let unknown = values.unknown(&operation.action);
        let answered = match &operation.outcome {
            Outcome::Answered { reply, .. } => {
                let malformed = || Violation::Malformed(Box::new(operation.clone()));
                let transition = values.answered(&operation.action, reply).ok_or_else(malformed)?;
                Some((operation.ended_us, transition))
            }
            Outcome::Refused | Outcome::Unknown => None,
        };
        Ok(Self { called_us: operation.called_us, answered, unknown })
    }
}

/// What was known at a moment: what was not answered yet may have taken effect, or may yet.
fn until(known: &[Known], moment_us: u64) -> Vec<Timed> {
    let begun = known.iter().filter(|operation| operation.called_us <= moment_us);
    let timed = begun.filter_map(|operation| {
        let called_us = operation.called_us;
        match operation.answered.filter(|(ended_us, _)| *ended_us <= moment_us) {
            Some((ended, transition)) => {
                Some(Timed { transition, called_us, ended_us: Some(ended) })
            }
            None => {
                operation.unknown.map(|transition| Timed { transition, called_us, ended_us: None })
            }
        }
    });
    timed.collect()
}

/// When the first operation ended that cannot be placed, and what the key could hold then. It is
/// none that ended before `from_us`. `None` when it is not found in time.
fn first_unplaced(operations: &[Known], from_us: u64) -> Option<(u64, BTreeSet<State>)> {
    let ends = operations.iter().filter_map(|operation| operation.answered);
    let mut ends: Vec<u64> = ends.map(|(ended_us, _)| ended_us).collect();
    ends.sort_unstable();
    // All before `ends[low]` can be explained, and all up to `ends[high]` can't.
    let mut low = ends.partition_point(|ended_us| *ended_us < from_us);
    let mut high = ends.len().checked_sub(1)?;
    let (mut middle, mut at_high) = (low, None);
    loop {
        match search(&until(operations, *ends.get(middle)?), PLACEMENTS_MAX) {
            Found::Order => low = middle + 1,
            Found::Nothing { states, .. } => (high, at_high) = (middle, Some(states)),
            Found::GivenUp => return None,
        }
        if low >= high && at_high.is_some() {
            return Some((ends[high], at_high?));
        }
        middle = usize::midpoint(low, high);
    }
}

fn explain(
    operations: &[&Operation],
    ended_us: u64,
    states: impl Iterator<Item = String>,
) -> Violation {
    let answered = |operation: &&&Operation| {
        operation.ended_us == ended_us && matches!(operation.outcome, Outcome::Answered { .. })
    };
    let unplaced = operations.iter().find(answered).expect("it ended at this moment");
    let mut around: Vec<Operation> = operations
        .iter()
        .filter(|operation| operation.called_us <= ended_us && *operation != unplaced)
        .map(|operation| (*operation).clone())
        .collect();
    around.sort_by_key(|operation| operation.called_us);
    around.drain(..around.len().saturating_sub(SHOWN));
    let operation = (**unplaced).clone();
    Violation::Unplaced(Box::new(Unplaced { operation, states: states.collect(), around }))
}
