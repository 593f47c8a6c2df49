//! What many have queued, taken in turn: one of each, so that who has queued little does not wait
//! behind who has queued much. What one has queued keeps its order.
//!
//! It bounds nothing: whoever queues holds a place and bytes for what it queues.

use std::collections::{BTreeMap, VecDeque};

/// Queues by whose they are. None is empty.
#[derive(Debug)]
pub struct InTurn<T> {
    queues: BTreeMap<u64, VecDeque<T>>,
    /// Whose turn was last.
    last: u64,
    length: usize,
}

impl<T> Default for InTurn<T> {
    fn default() -> Self {
        Self { queues: BTreeMap::new(), last: 0, length: 0 }
    }
}

impl<T> InTurn<T> {
    /// Queues one more of `whose`.
    pub fn push(&mut self, whose: u64, item: T) {
        self.queues.entry(whose).or_default().push_back(item);
        self.length += 1;
    }

    /// Whose turn is next.
    fn whose(&self) -> Option<u64> {
        let behind = self.queues.range(self.last.saturating_add(1)..).next();
        behind.or_else(|| self.queues.first_key_value()).map(|(whose, _)| *whose)
    }

    /// The one that [`Self::pop`] would take.
    pub fn peek(&self) -> Option<&T> {
        self.queues.get(&self.whose()?)?.front()
    }

    /// The next one.
    pub fn pop(&mut self) -> Option<T> {
        self.last = self.whose()?;
        let queue = self.queues.get_mut(&self.last).expect("it was just seen");
        let item = queue.pop_front();
        self.length -= usize::from(item.is_some());
        if queue.is_empty() {
            self.queues.remove(&self.last);
        }
        item
    }

    /// Drops those that `is_kept` is not true for.
    pub fn retain(&mut self, mut is_kept: impl FnMut(&T) -> bool) {
        self.queues.values_mut().for_each(|queue| queue.retain(&mut is_kept));
        self.queues.retain(|_, queue| !queue.is_empty());
        self.length = self.queues.values().map(VecDeque::len).sum();
    }

    /// How many are queued.
    pub fn len(&self) -> usize {
        self.length
    }

    /// True when nobody has queued anything.
    pub fn is_empty(&self) -> bool {
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
        assert_eq!((queued.len(), queued.peek()), (6, Some(&"b1")));
        let order: Vec<_> = std::iter::from_fn(|| queued.pop()).collect();
        assert_eq!(order, ["b1", "c1", "a2", "c2", "a3", "a4"]);
        assert!(queued.is_empty());
    }

    /// What is dropped leaves the others in their order.
    #[test]
    fn what_is_dropped_has_no_turn() {
        let mut queued = InTurn::default();
        for (whose, item) in [(1, 10), (1, 11), (2, 20), (3, 31), (1, 12)] {
            queued.push(whose, item);
        }
        queued.retain(|item| item % 10 > 0);
        assert_eq!(queued.len(), 3);
        let order: Vec<_> = std::iter::from_fn(|| queued.pop()).collect();
        assert_eq!(order, [11, 31, 12]);
    }
}
