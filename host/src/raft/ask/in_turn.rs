//! What many have queued, taken in turn: one of each, so that who has queued little does not wait
//! behind who has queued much. What one has queued keeps its order.

use std::collections::{BTreeMap, VecDeque};

/// Queues by whose they are. None is empty.
pub(super) struct InTurn<T> {
    queues: BTreeMap<u64, VecDeque<T>>,
    /// Whose turn was last.
    last: u64,
}

impl<T> Default for InTurn<T> {
    fn default() -> Self {
        Self { queues: BTreeMap::new(), last: 0 }
    }
}

impl<T> InTurn<T> {
    /// Queues one more of `whose`.
    pub(super) fn push(&mut self, whose: u64, item: T) {
        self.queues.entry(whose).or_default().push_back(item);
    }

    /// The next one.
    pub(super) fn pop(&mut self) -> Option<T> {
        let behind = self.queues.range(self.last.saturating_add(1)..).next();
        let (whose, _) = behind.or_else(|| self.queues.first_key_value())?;
        self.last = *whose;
        let queue = self.queues.get_mut(&self.last).expect("it was just seen");
        let item = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&self.last);
        }
        item
    }

    /// True when nobody has queued anything.
    pub(super) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each has a turn, in its own order, whoever has queued more.
    #[test]
    fn each_has_a_turn() {
        let mut queued = InTurn::default();
        for item in ["a1", "a2", "a3", "a4"] {
            queued.push(1, item);
        }
        queued.push(2, "b1");
        assert_eq!(queued.pop(), Some("a1"));
        queued.push(7, "c1");
        queued.push(7, "c2");
        let order: Vec<_> = std::iter::from_fn(|| queued.pop()).collect();
        assert_eq!(order, ["b1", "c1", "a2", "c2", "a3", "a4"]);
        assert!(queued.is_empty());
    }
}
