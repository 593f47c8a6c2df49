//! Queries that wait for a guest: asked together, one by one once that has failed, and not at all
//! when their callers no longer wait.
//!
//! A query runs on a fork, and nothing that it does is seen. So a clock may decide here what is
//! asked and for how long; it decides nothing about commands.

use std::time::{Duration, Instant};

use crate::machine::guest::thread::Done;
use crate::types::Outcome;
use crate::wasm::{self, Context};

/// More fuel than a guest can use in a nanosecond: 1 to 2.5 were measured. Bounding a query by its
/// deadline at this rate ends none before it.
const FUEL_PER_NS: u64 = 4;

/// Queries of one call, laid out as commands are.
#[derive(Clone, Debug, Default)]
pub struct Queries {
    /// All queries, back to back.
    pub data: Vec<u8>,
    /// Where each ends in `data`.
    pub ends: Vec<u32>,
    /// Until when each is worth asking.
    pub deadlines: Vec<Instant>,
}

/// What came of queries, in their order: none for one whose deadline has passed.
pub type Answers = Vec<Option<Outcome>>;

/// Queries that came together, and what is known of their answers.
pub(in crate::machine) struct Window {
    pub(in crate::machine) context: Context,
    queries: Queries,
    /// Positions of those that are neither answered nor late, rising.
    waiting: Vec<usize>,
    /// They are asked one by one.
    apart: bool,
    answers: Answers,
    done: Done<Answers>,
}

impl Queries {
    /// Adds a query.
    pub fn push(&mut self, query: &[u8], deadline: Instant) {
        self.data.extend_from_slice(query);
        self.ends.push(u32::try_from(self.data.len()).expect("rounds are bounded"));
        self.deadlines.push(deadline);
    }

    /// As a guest is called with them.
    pub(in crate::machine) fn batch(&self) -> wasm::Batch<'_> {
        wasm::Batch { data: &self.data, ends: &self.ends }
    }

    fn one(&self, position: usize) -> &[u8] {
        let at = |end: u32| usize::try_from(end).expect("32 bits fit");
        let start = if position == 0 { 0 } else { at(self.ends[position - 1]) };
        &self.data[start..at(self.ends[position])]
    }

    /// Fuel that none of them can have used before the last of their deadlines.
    pub(in crate::machine) fn fuel_max(&self, now: Instant) -> u64 {
        let last = self.deadlines.iter().max();
        let left = last.map_or(Duration::ZERO, |last| last.saturating_duration_since(now));
        u64::try_from(left.as_nanos()).unwrap_or(u64::MAX).saturating_mul(FUEL_PER_NS)
    }
}

impl Window {
    pub(in crate::machine) fn new(context: Context, queries: Queries, done: Done<Answers>) -> Self {
        let count = queries.ends.len();
        let (waiting, answers) = ((0..count).collect(), vec![None; count]);
        Self { context, queries, waiting, apart: false, answers, done }
    }

    /// What to ask now: nothing when nobody waits any more.
    pub(in crate::machine) fn next(&mut self, now: Instant) -> Option<Queries> {
        if self.done.is_closed() {
            self.waiting.clear();
        }
        self.waiting.retain(|&position| self.queries.deadlines[position] > now);
        let count = if self.apart { 1 } else { self.waiting.len() };
        let mut asked = Queries::default();
        for &position in self.waiting.iter().take(count) {
            asked.push(self.queries.one(position), self.queries.deadlines[position]);
        }
        (!asked.ends.is_empty()).then_some(asked)
    }

    /// Takes what so many queries came to that were asked together. `cut_short` says that they had
    /// less fuel than their machine gives.
    pub(in crate::machine) fn settle(
        &mut self,
        asked: usize,
        result: Result<Vec<Outcome>, Outcome>,
        cut_short: bool,
    ) {
        let answers: Answers = match result {
            Ok(outcomes) => outcomes.into_iter().map(Some).collect(),
            Err(_) if asked > 1 => {
                self.apart = true;
                return;
            }
            Err(Outcome::OutOfFuel) if cut_short => vec![None],
            Err(outcome) => vec![Some(outcome)],
        };
        for (position, answer) in self.waiting.drain(..asked).zip(answers) {
            self.answers[position] = answer;
        }
    }

    /// Whether something is left to be asked.
    pub(in crate::machine) fn is_open(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whoever waits, and the answers.
    pub(in crate::machine) fn close(self) -> (Done<Answers>, Answers) {
        (self.done, self.answers)
    }
}
