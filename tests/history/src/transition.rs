//! Operations as the search sees them: a condition on the state of a key, and what becomes of it.
//!
//! An operation with its reply says all about itself: `SET k b GET`, answered `a`, takes place
//! where the key holds `a`, and leaves `b`. Values are numbers here.

use std::collections::BTreeMap;

use crate::operation::{Action, Reply};

/// What a key holds: nothing, or the value of this number.
pub(crate) type State = Option<u32>;

/// Stands for every value that nobody was told of: they can't be told apart.
const UNSEEN: u32 = u32::MAX;

/// What the state must be for the operation to be the one that was answered so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Condition {
    Any,
    Present,
    Exactly(State),
}

/// What the operation leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Effect {
    Keep,
    Leave(State),
}

/// A condition and an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Transition {
    condition: Condition,
    effect: Effect,
}

impl Transition {
    /// What the state becomes; `None` where the operation can't take place.
    pub(crate) fn apply(self, state: State) -> Option<State> {
        let possible = match self.condition {
            Condition::Any => true,
            Condition::Present => state.is_some(),
            Condition::Exactly(wanted) => state == wanted,
        };
        possible.then_some(match self.effect {
            Effect::Keep => state,
            Effect::Leave(next) => next,
        })
    }

    /// True when it leaves every state as it was.
    pub(crate) fn keeps(self) -> bool {
        self.effect == Effect::Keep
    }

    /// The value that must have been written before it, when it takes place as it was answered.
    pub(crate) fn sees(self) -> State {
        if let Condition::Exactly(state) = self.condition { state } else { None }
    }

    /// The value that it writes.
    pub(crate) fn writes(self) -> State {
        if let Effect::Leave(state) = self.effect { state } else { None }
    }

    /// The same, for a value that nobody was told of.
    pub(crate) fn unseen(self) -> Self {
        Self { condition: self.condition, effect: Effect::Leave(Some(UNSEEN)) }
    }
}

/// Gives each value of a key a number.
#[derive(Default)]
pub(crate) struct Values {
    numbers: BTreeMap<String, u32>,
    names: Vec<String>,
}

impl Values {
    fn number(&mut self, value: &str) -> u32 {
        if let Some(number) = self.numbers.get(value) {
            return *number;
        }
        let number = u32::try_from(self.names.len()).expect("a history fits into memory");
        self.numbers.insert(value.to_owned(), number);
        self.names.push(value.to_owned());
        number
    }

    /// A state in words.
    pub(crate) fn name(&self, state: State) -> String {
        let Some(number) = state else { return "nothing".to_owned() };
        let name = usize::try_from(number).ok().and_then(|place| self.names.get(place));
        name.map_or("a value that nobody was told of", String::as_str).to_owned()
    }

    /// What an operation does to its key while nobody knows what it was answered. `None` when it
    /// does nothing.
    pub(crate) fn unknown(&mut self, action: &Action) -> Option<Transition> {
        let condition = match action {
            Action::Set(_) | Action::Swap(_) => Condition::Any,
            Action::SetAbsent(_) | Action::SwapAbsent(_) => Condition::Exactly(None),
            Action::SwapPresent(_) | Action::Delete => Condition::Present,
            Action::GetLogged | Action::Get | Action::GetStale => return None,
        };
        let effect = Effect::Leave(action.value().map(|value| self.number(value)));
        Some(Transition { condition, effect })
    }

    /// What an operation does to its key that was answered so. `None` when none is answered so.
    pub(crate) fn answered(&mut self, action: &Action, reply: &Reply) -> Option<Transition> {
        let written = action.value().map(|value| self.number(value));
        let told = match reply {
            Reply::Value(value) => value.as_deref().map(|value| self.number(value)),
            _ => None,
        };
        let (condition, effect) = match (action, reply) {
            (Action::Set(_), Reply::Done) => (Condition::Any, Effect::Leave(written)),
            (Action::SetAbsent(_), Reply::Done) => {
                (Condition::Exactly(None), Effect::Leave(written))
            }
            (Action::SetAbsent(_), Reply::Value(None)) => (Condition::Present, Effect::Keep),
            (Action::Swap(_), Reply::Value(_)) => {
                (Condition::Exactly(told), Effect::Leave(written))
            }
            (Action::SwapAbsent(_), Reply::Value(None))
            | (Action::SwapPresent(_), Reply::Value(Some(_))) => {
                (Condition::Exactly(told), Effect::Leave(written))
            }
            (Action::SwapAbsent(_), Reply::Value(Some(_)))
            | (Action::SwapPresent(_), Reply::Value(None))
            | (Action::GetLogged | Action::Get, Reply::Value(_)) => {
                (Condition::Exactly(told), Effect::Keep)
            }
            (Action::Delete, Reply::Count(1)) => (Condition::Present, Effect::Leave(None)),
            (Action::Delete, Reply::Count(0)) => (Condition::Exactly(None), Effect::Keep),
            _ => return None,
        };
        Some(Transition { condition, effect })
    }
}
