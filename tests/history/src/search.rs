//! The search for an order of the operations of one key that explains every answer.
//!
//! The algorithm is that of Wing and Gong (1993) with the memory of Lowe (2017): place one of the
//! operations that may come next, those that were called before the first end of one that is not
//! placed; where none fits, go back and try another. A set of placed operations that led to a state
//! in vain is not tried again.
//!
//! What makes it fast, and changes no verdict:
//! - An operation that fits and changes nothing is placed at once: later it could only fit less.
//! - A write of unknown outcome whose value somebody was told of did take effect, and before the
//!   end of whoever was told first: it is as good as answered.
//! - Values that nobody was told of can't be told apart: they are one value.
//! - Other operations of unknown outcome (the [`Spare`]s) need not be placed. One is placed only
//!   where the operation right after it would not have been allowed without. (In an order with the
//!   fewest of them each is of use so. What follows changes the state to the same, whatever it was,
//!   so an order without one that is of no use is as good.) Those of one kind are interchangeable,
//!   and a set that led to a state in vain would do so with more of them used up, too.
//!
//! Moments are compared by order alone. A call and an end of the same moment overlap.

use std::collections::{BTreeMap, BTreeSet};

use crate::transition::{State, Transition};

/// One operation of the key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timed {
    pub(crate) transition: Transition,
    pub(crate) called_us: u64,
    /// `None` when its outcome is unknown; it changes the state then.
    pub(crate) ended_us: Option<u64>,
}

/// What the search came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// There is an order that explains all.
    Order,
    /// There is none.
    Nothing {
        /// What the key could hold where the last of the operations to end was the only one left,
        /// and did not fit.
        states: BTreeSet<State>,
        /// Everything that ended before this moment could be placed.
        until_us: u64,
    },
    /// It was given up after so many attempts as were allowed.
    GivenUp,
}

/// Looks for an order of `operations`, by at most so many placements.
pub(crate) fn search(operations: &[Timed], placements_max: u64) -> Found {
    let (definite, spares) = sort_out(operations);
    Search::new(&definite, &spares).run(placements_max)
}

/// An operation that must be placed.
#[derive(Clone, Copy)]
struct Definite {
    transition: Transition,
    called_us: u64,
    ended_us: u64,
}

/// Operations of unknown outcome that do the same.
struct Spare {
    transition: Transition,
    /// When they were called, in order.
    calls_us: Vec<u64>,
}

/// Tells the operations that must be placed from those that may be.
fn sort_out(operations: &[Timed]) -> (Vec<Definite>, Vec<Spare>) {
    let mut told: BTreeMap<u32, u64> = BTreeMap::new();
    for operation in operations {
        if let (Some(value), Some(ended)) = (operation.transition.sees(), operation.ended_us) {
            told.entry(value).and_modify(|first| *first = ended.min(*first)).or_insert(ended);
        }
    }
    let (mut definite, mut spares) = (Vec::new(), BTreeMap::<Transition, Vec<u64>>::new());
    for operation in operations {
        let Timed { mut transition, called_us, mut ended_us } = *operation;
        if let Some(value) = transition.writes() {
            let first_told = told.get(&value).copied();
            if first_told.is_none() {
                transition = transition.unseen();
            }
            // One that was told of before it was called can't be placed in time.
            ended_us = ended_us.or(first_told.map(|first| first.max(called_us)));
        }
        match ended_us {
            Some(ended_us) => definite.push(Definite { transition, called_us, ended_us }),
            None => spares.entry(transition).or_default().push(called_us),
        }
    }
    let spares = spares.into_iter().map(|(transition, mut calls_us)| {
        calls_us.sort_unstable();
        Spare { transition, calls_us }
    });
    (definite, spares.collect())
}

/// Where the walk begins, in `Search::next`: before the first event.
const HEAD: usize = 0;

/// What the walk meets.
#[derive(Clone, Copy)]
enum Event {
    /// The call of this operation.
    Call(usize),
    /// The end of any, at this moment.
    End(u64),
}

/// What may be placed next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Candidate {
    /// An operation that must be placed, by its place among them.
    Definite(usize),
    /// One of these.
    Spare(usize),
}

/// One operation that is placed.
struct Placed {
    candidate: Candidate,
    /// Which of the candidates it was; `None` when no other has to be tried.
    turn: Option<usize>,
    /// The state before it.
    state: State,
    /// What `Search::useless_from` was before it.
    useless_from: Option<State>,
}

struct Search<'a> {
    definite: &'a [Definite],
    spares: &'a [Spare],
    /// In time; the event of place `i` is linked as `i + 1`.
    events: Vec<Event>,
    /// A ring through [`HEAD`] of the events that are not placed.
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Where the call and the end of each operation are linked.
    calls: Vec<usize>,
    ends: Vec<usize>,
    /// The operation that ends last.
    last: Option<usize>,
    placed: Vec<Placed>,
    set: PlacedSet,
    /// How many of the spares of each kind are placed.
    used: Vec<usize>,
    state: State,
    /// The state before a spare, while that is the last one placed: what fits here, too, makes
    /// the spare useless.
    useless_from: Option<State>,
    visited: Visited,
    states: BTreeSet<State>,
    until_us: u64,
}

impl<'a> Search<'a> {
    fn new(definite: &'a [Definite], spares: &'a [Spare]) -> Self {
        let mut moments: Vec<(u64, bool, usize)> = Vec::new();
        for (place, operation) in definite.iter().enumerate() {
            moments.push((operation.called_us, false, place));
            moments.push((operation.ended_us, true, place));
        }
        moments.sort_unstable();
        let count = moments.len();
        let (mut calls, mut ends) = (vec![HEAD; definite.len()], vec![HEAD; definite.len()]);
        let mut events = Vec::with_capacity(count);
        let mut by_end = Vec::with_capacity(definite.len());
        for (place, (moment, is_end, operation)) in moments.into_iter().enumerate() {
            if is_end {
                ends[operation] = place + 1;
                by_end.push(operation);
                events.push(Event::End(moment));
            } else {
                calls[operation] = place + 1;
                events.push(Event::Call(operation));
            }
        }
        Self {
            definite,
            spares,
            events,
            next: (1..=count).chain([HEAD]).collect(),
            previous: std::iter::once(count).chain(0..count).collect(),
            calls,
            ends,
            last: by_end.last().copied(),
            placed: Vec::new(),
            set: PlacedSet::new(&by_end),
            used: vec![0; spares.len()],
            state: None,
            useless_from: None,
            visited: Visited::default(),
            states: BTreeSet::new(),
            until_us: 0,
        }
    }

    fn run(mut self, placements_max: u64) -> Found {
        let mut turn = 0;
        for _ in 0..placements_max {
            if self.set.left == 0 {
                return Found::Order;
            }
            let (candidate, of_turn) = match self.that_changes_nothing() {
                Some(forced) => (Some(forced).filter(|_| turn == 0), None),
                None => (self.candidates().get(turn).copied(), Some(turn)),
            };
            match candidate {
                Some(candidate) if self.place(candidate, of_turn) => turn = 0,
                Some(_) => turn += 1,
                None => {
                    self.note_dead_end();
                    match self.go_back() {
                        Some(next) => turn = next,
                        None => return self.nothing(),
                    }
                }
            }
        }
        Found::GivenUp
    }

    /// An operation that may come next, fits, and leaves the state as it is.
    fn that_changes_nothing(&self) -> Option<Candidate> {
        let keeps = |operation: &usize| self.definite[*operation].transition.keeps();
        let mut callable = self.callable().filter(keeps);
        let found = callable.find(|operation| self.fits(self.definite[*operation].transition));
        found.map(Candidate::Definite)
    }

    /// Everything that may come next and fits, spares last.
    fn candidates(&self) -> Vec<Candidate> {
        let definite = self.callable().map(Candidate::Definite);
        let callable = |kind: &usize| {
            let calls_us = &self.spares[*kind].calls_us;
            calls_us.get(self.used[*kind]).is_some_and(|call| *call <= self.first_end())
        };
        let spares = (0..self.spares.len()).filter(callable).map(Candidate::Spare);
        let all = definite.chain(spares);
        all.filter(|candidate| self.fits(self.transition(*candidate))).collect()
    }

    /// The operations that were called before the first end of one that is not placed.
    fn callable(&self) -> impl Iterator<Item = usize> {
        let after = |place: &usize| Some(self.next[*place]);
        let places = std::iter::successors(Some(self.next[HEAD]), after);
        places.map_while(|place| match self.events.get(place.checked_sub(1)?)? {
            Event::Call(operation) => Some(*operation),
            Event::End(_) => None,
        })
    }

    /// The first end of an operation that is not placed.
    fn first_end(&self) -> u64 {
        let mut place = self.next[HEAD];
        while let Event::Call(_) = self.events[place - 1] {
            place = self.next[place];
        }
        let Event::End(moment) = self.events[place - 1] else { return u64::MAX };
        moment
    }

    fn transition(&self, candidate: Candidate) -> Transition {
        match candidate {
            Candidate::Definite(place) => self.definite[place].transition,
            Candidate::Spare(kind) => self.spares[kind].transition,
        }
    }

    fn fits(&self, transition: Transition) -> bool {
        let fits_before = |before| transition.apply(before).is_some();
        transition.apply(self.state).is_some() && !self.useless_from.is_some_and(fits_before)
    }

    /// Places an operation that fits; false when all that follows was tried in vain before.
    fn place(&mut self, candidate: Candidate, turn: Option<usize>) -> bool {
        let next = self.transition(candidate).apply(self.state).expect("only what fits is placed");
        let before = Placed { candidate, turn, state: self.state, useless_from: self.useless_from };
        self.useless_from = match candidate {
            Candidate::Definite(place) => {
                self.set.add(place);
                self.unlink(self.calls[place]);
                self.unlink(self.ends[place]);
                None
            }
            Candidate::Spare(kind) => {
                self.used[kind] += 1;
                Some(self.state)
            }
        };
        self.state = next;
        self.placed.push(before);
        let fresh = self.visited.visit(self.set.key(next), self.useless_from, &self.used);
        if !fresh {
            self.take_back();
        }
        fresh
    }

    fn take_back(&mut self) -> Option<Placed> {
        let last = self.placed.pop()?;
        (self.state, self.useless_from) = (last.state, last.useless_from);
        match last.candidate {
            Candidate::Definite(place) => {
                self.set.remove(place);
                self.link(self.ends[place]);
                self.link(self.calls[place]);
            }
            Candidate::Spare(kind) => self.used[kind] -= 1,
        }
        Some(last)
    }

    /// Takes back until another candidate can be tried; returns its turn.
    fn go_back(&mut self) -> Option<usize> {
        while let Some(last) = self.take_back() {
            if let Some(turn) = last.turn {
                return Some(turn + 1);
            }
        }
        None
    }

    fn nothing(self) -> Found {
        Found::Nothing { states: self.states, until_us: self.until_us }
    }

    fn note_dead_end(&mut self) {
        self.until_us = self.until_us.max(self.first_end());
        if self.set.left == 1 && self.last.is_some_and(|last| !self.set.holds(last)) {
            self.states.insert(self.state);
        }
    }

    fn unlink(&mut self, place: usize) {
        let (previous, next) = (self.previous[place], self.next[place]);
        self.next[previous] = next;
        self.previous[next] = previous;
    }

    /// Undoes the last `unlink` that is not undone.
    fn link(&mut self, place: usize) {
        let (previous, next) = (self.previous[place], self.next[place]);
        self.next[previous] = place;
        self.previous[next] = place;
    }
}

/// Which of the operations that must be placed are: a bit each, in the order of their ends, so that
/// the set is nearly a beginning.
struct PlacedSet {
    bits: Vec<usize>,
    words: Vec<u64>,
    /// How many are not placed.
    left: usize,
}

impl PlacedSet {
    fn new(by_end: &[usize]) -> Self {
        let mut bits = vec![0; by_end.len()];
        for (bit, &operation) in by_end.iter().enumerate() {
            bits[operation] = bit;
        }
        Self { bits, words: vec![0; by_end.len().div_ceil(64)], left: by_end.len() }
    }

    fn holds(&self, operation: usize) -> bool {
        let bit = self.bits[operation];
        self.words[bit / 64] & (1 << (bit % 64)) != 0
    }

    fn add(&mut self, operation: usize) {
        let bit = self.bits[operation];
        self.words[bit / 64] |= 1 << (bit % 64);
        self.left -= 1;
    }

    fn remove(&mut self, operation: usize) {
        let bit = self.bits[operation];
        self.words[bit / 64] &= !(1 << (bit % 64));
        self.left += 1;
    }

    /// What tells this set, with a state, from every other: where it is no longer whole, and what
    /// follows there.
    fn key(&self, state: State) -> Box<[u64]> {
        let whole = self.words.iter().take_while(|word| **word == u64::MAX).count();
        let used = self.words.iter().rposition(|word| *word != 0).map_or(0, |place| place + 1);
        let begin = u64::try_from(whole).expect("a place is a number");
        let state = state.map_or(0, |value| u64::from(value) + 1);
        let rest = self.words[whole..used.max(whole)].iter().copied();
        [begin, state].into_iter().chain(rest).collect()
    }
}

/// The spares that were used up on the way to a set and a state.
struct Way {
    useless_from: Option<State>,
    used: Box<[usize]>,
}

/// What was tried.
#[derive(Default)]
struct Visited(BTreeMap<Box<[u64]>, Vec<Way>>);

impl Visited {
    /// Notes a set and a state; false when it was tried with no more spares used up, and no less
    /// allowed.
    fn visit(&mut self, key: Box<[u64]>, useless_from: Option<State>, used: &[usize]) -> bool {
        let ways = self.0.entry(key).or_default();
        let no_more = |one: &[usize], other: &[usize]| one.iter().zip(other).all(|(a, b)| a <= b);
        let tried = |way: &Way| {
            let no_less = way.useless_from.is_none() || way.useless_from == useless_from;
            no_less && no_more(&way.used, used)
        };
        if ways.iter().any(tried) {
            return false;
        }
        ways.push(Way { useless_from, used: used.into() });
        true
    }
}
