//! The keys of a run: few at a time, and a fresh one in the place of one that has seen enough.
//!
//! A key is given up after so many operations, or when several had an unknown outcome, since each
//! of those may show at any later time. So the history of one key stays short enough to be decided
//! quickly however long the run is; what was given up is still read now and then, and at the end.

use std::sync::{Mutex, MutexGuard};

use fastrand::Rng;

/// Operations on one key.
const OPERATIONS_MAX: u32 = 1_000;
/// Unknown outcomes on one key. Every client may have one more under way.
const UNKNOWN_MAX: u32 = 4;
/// One of so many operations reads a key that was given up.
const LOOK_BACK_ONE_IN: usize = 25;

/// Every key that a run has used.
pub(super) struct Keys(Mutex<Vec<Place>>);

/// One of the few keys of the moment, and those before it.
struct Place {
    generation: u32,
    operations: u32,
    unknown: u32,
}

/// Which key an operation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    place: usize,
    generation: u32,
    /// It is one that was given up, and is only read.
    pub(super) past: bool,
}

impl Key {
    /// Its name in the cluster.
    pub(super) fn name(self) -> String {
        format!("k{}-{}", self.place, self.generation)
    }
}

impl Keys {
    /// So many keys at a time.
    pub(super) fn new(count: usize) -> Self {
        let place = || Place { generation: 0, operations: 0, unknown: 0 };
        Self(Mutex::new(std::iter::repeat_with(place).take(count).collect()))
    }

    /// Picks the key of the next operation.
    pub(super) fn pick(&self, random: &mut Rng) -> Key {
        let mut places = self.lock();
        let place = random.usize(0..places.len());
        let chosen = &mut places[place];
        if chosen.generation > 0 && random.usize(0..LOOK_BACK_ONE_IN) == 0 {
            return Key { place, generation: random.u32(0..chosen.generation), past: true };
        }
        chosen.operations += 1;
        let key = Key { place, generation: chosen.generation, past: false };
        if chosen.operations >= OPERATIONS_MAX {
            chosen.give_up();
        }
        key
    }

    /// Hears that an operation had an unknown outcome.
    pub(super) fn unknown(&self, key: Key) {
        let mut places = self.lock();
        let place = &mut places[key.place];
        if place.generation == key.generation {
            place.unknown += 1;
            if place.unknown >= UNKNOWN_MAX {
                place.give_up();
            }
        }
    }

    /// The names of all keys, of the moment and before.
    pub(super) fn all(&self) -> Vec<String> {
        let places = self.lock();
        let generations = places.iter().enumerate().flat_map(|(place, last)| {
            let key = move |generation| Key { place, generation, past: true };
            (0..=last.generation).map(key)
        });
        generations.map(Key::name).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Place>> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

impl Place {
    fn give_up(&mut self) {
        *self = Self { generation: self.generation + 1, operations: 0, unknown: 0 };
    }
}
