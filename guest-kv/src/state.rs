//! The map itself, and when its keys end.
//!
//! It knows commands as they were read, and no wire format but its replies'.
//!
//! Invariants: `due` and `expiries` hold the same keys, each of which is in `entries`.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use lockstep_guest_sdk::{Rejection, Reply};

use crate::command::{Condition, Expiry, Set};
use crate::key::Key;
use crate::{error, write_bulk};

/// Keys past their time that one command drops beside its own work: keys that nobody asks for
/// must go too, and no command may have to pay for all of them.
const DROPPED_PER_COMMAND_MAX: usize = 16;

/// The state of the guest: keys, values, and when keys end.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Kv {
    pub(crate) entries: BTreeMap<Key, Box<[u8]>>,
    /// When a key ends, in milliseconds since the epoch: it is there up to that very millisecond.
    /// Few keys end, so that the others do not pay for it.
    expiries: BTreeMap<Key, u64>,
    /// The same, the next first.
    due: BTreeSet<(u64, Key)>,
}

impl Kv {
    /// The value of a key, unless its time has passed.
    pub(crate) fn get(&self, time_ms: u64, key: &[u8]) -> Option<&[u8]> {
        let key = Key::new(key);
        let value = self.entries.get(&key)?;
        if self.has_ended(time_ms, &key) { None } else { Some(value) }
    }

    /// SET, and its reply.
    pub(crate) fn set(
        &mut self,
        time_ms: u64,
        set: &Set<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Rejection> {
        let ends_at = ends_at(time_ms, set.expiry)?;
        let key = Key::new(set.key);
        if self.has_ended(time_ms, &key) {
            self.drop_key(&key);
        }
        if set.condition.is_some() || set.get {
            let old = self.entries.get(&key).map(|value| &value[..]);
            if set.get {
                write_bulk(reply, old);
            }
            let holds = match set.condition {
                None => true,
                Some(Condition::Absent) => old.is_none(),
                Some(Condition::Present) => old.is_some(),
            };
            if !holds {
                if !set.get {
                    write_bulk(reply, None);
                }
                return Ok(());
            }
        }
        if set.expiry != Expiry::Keep {
            self.set_end(&key, ends_at);
        }
        self.put(key, set.value);
        if !set.get {
            reply.push(b"+OK\r\n");
        }
        Ok(())
    }

    /// Removes a key and says whether it was there.
    pub(crate) fn remove(&mut self, time_ms: u64, key: &[u8]) -> bool {
        let key = Key::new(key);
        let had_ended = self.has_ended(time_ms, &key);
        self.drop_key(&key) && !had_ended
    }

    /// Drops some of the keys whose time has passed, the longest first. No answer changes by it.
    pub(crate) fn drop_due(&mut self, time_ms: u64) {
        for _ in 0..DROPPED_PER_COMMAND_MAX {
            let Some((ends_at, _)) = self.due.first() else { return };
            if *ends_at >= time_ms {
                return;
            }
            let (_, key) = self.due.pop_first().expect("it has a first");
            self.expiries.remove(&key);
            self.entries.remove(&key);
        }
    }

    /// Adds a key of an import, and says whether it is new.
    pub(crate) fn restore(&mut self, key: &[u8], value: &[u8], ends_at: Option<u64>) -> bool {
        let key = Key::new(key);
        if let Some(ends_at) = ends_at {
            self.set_end(&key, Some(ends_at));
        }
        self.entries.insert(key, value.into()).is_none()
    }

    /// When a key ends, if it does.
    pub(crate) fn end_of(&self, key: &Key) -> Option<u64> {
        if self.expiries.is_empty() { None } else { self.expiries.get(key).copied() }
    }

    /// Redis's rule: a key is gone once its time is over, not at it.
    fn has_ended(&self, time_ms: u64, key: &Key) -> bool {
        self.end_of(key).is_some_and(|ends_at| time_ms > ends_at)
    }

    fn put(&mut self, key: Key, value: &[u8]) {
        match self.entries.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(value.into());
            }
            // Equal lengths are common, and then the old allocation does.
            Entry::Occupied(mut entry) if entry.get().len() == value.len() => {
                entry.get_mut().copy_from_slice(value);
            }
            Entry::Occupied(mut entry) => {
                entry.insert(value.into());
            }
        }
    }

    fn set_end(&mut self, key: &Key, ends_at: Option<u64>) {
        if self.expiries.is_empty() && ends_at.is_none() {
            return;
        }
        let old = match ends_at {
            Some(ends_at) => self.expiries.insert(key.clone(), ends_at),
            None => self.expiries.remove(key),
        };
        if let Some(old) = old {
            self.due.remove(&(old, key.clone()));
        }
        if let Some(ends_at) = ends_at {
            self.due.insert((ends_at, key.clone()));
        }
    }

    fn drop_key(&mut self, key: &Key) -> bool {
        self.set_end(key, None);
        self.entries.remove(key).is_some()
    }
}

/// When a key that is set now ends.
fn ends_at(time_ms: u64, expiry: Expiry) -> Result<Option<u64>, Rejection> {
    let ends_at = match expiry {
        Expiry::Never | Expiry::Keep => return Ok(None),
        Expiry::At(at) => Some(at),
        Expiry::After(after) => i64::try_from(time_ms).ok().and_then(|now| now.checked_add(after)),
    };
    match ends_at.and_then(|at| u64::try_from(at).ok()) {
        Some(ends_at) => Ok(Some(ends_at)),
        None => Err(error::expire_time()),
    }
}
