//! What the log holds, as its records say it, and where. Reading a log back and writing to it
//! change this by the same function, so that memory and disk cannot come to differ.
//!
//! **Invariant:** the entries are `(purged, last]` without a gap; while a log is read back, the
//! ones before its first segment may be missing.

use std::collections::VecDeque;
use std::ops::Range;

use super::record::{Payload, Record};
use super::{LogState, as_u64};
use crate::types::{LogId, LogIndex, NodeId, Term, Vote};

/// Where an entry stands, and its payload while that is in memory.
#[derive(Debug)]
struct Slot {
    term: Term,
    node: NodeId,
    /// The byte of the log with which its record begins.
    position: u64,
    payload_bytes: usize,
    payload: Option<Payload>,
}

/// An entry of a range.
pub(super) enum Entry {
    InMemory(LogId, Payload),
    /// Its record begins at this byte of the log.
    OnDisk {
        id: LogId,
        position: u64,
        payload_bytes: usize,
    },
}

impl Entry {
    pub(super) fn id(&self) -> LogId {
        match self {
            Self::InMemory(id, _) | Self::OnDisk { id, .. } => *id,
        }
    }

    pub(super) fn payload_bytes(&self) -> usize {
        match self {
            Self::InMemory(_, payload) => payload.bytes.len(),
            Self::OnDisk { payload_bytes, .. } => *payload_bytes,
        }
    }
}

/// State, and the entries behind it.
#[derive(Debug, Default)]
pub(super) struct Contents {
    state: LogState,
    /// Entries before this one lie in segments that are gone: they must be purged by the end.
    absent_until: LogIndex,
    /// Index of the first slot.
    first: LogIndex,
    slots: VecDeque<Slot>,
    /// Slots from here on, counted from the first one, have their payload.
    cached_from: usize,
    cached_bytes: usize,
}

impl Contents {
    pub(super) fn state(&self) -> LogState {
        self.state
    }

    /// The first of the entries that a log read back should have and does not.
    pub(super) fn missing(&self) -> Option<LogIndex> {
        let wanted = index_after(self.state.purged);
        (wanted < self.absent_until).then_some(wanted)
    }

    /// Takes in a record that stands at `position`, with its payload as long as there is room
    /// (see [`Self::shrink`]).
    ///
    /// # Errors
    /// Why it cannot follow what is there; nothing has changed then.
    pub(super) fn apply(&mut self, record: &Record, position: u64) -> Result<(), &'static str> {
        match record {
            Record::State(state) => return self.check(state),
            Record::Vote(vote) => {
                if self.state.vote.is_some_and(|last| order(&last) > order(vote)) {
                    return Err("a vote is less than the one before it");
                }
                self.state.vote = Some(*vote);
            }
            Record::Entry(id, payload) => {
                // A log may begin anywhere; after that, one follows the other.
                if self.state.last.is_some_and(|last| last.index + 1 != id.index) {
                    return Err("an entry is not consecutive to the one before it");
                }
                self.push(*id, payload.clone(), position);
            }
            Record::Committed(id) => {
                if Some(id) > self.state.last.as_ref() {
                    return Err("what is committed is after the last entry");
                }
                self.state.committed = Some(*id);
            }
            Record::Truncated(last) => self.truncate(*last)?,
            Record::Purged(upto) => self.purge(*upto),
            Record::Announced(id) => self.state.announced = self.state.announced.max(Some(*id)),
        }
        self.check_invariants();
        Ok(())
    }

    /// Begins with a state whose entries lie in segments that are gone.
    pub(super) fn begin(&mut self, state: LogState) {
        self.state = state;
        self.first = index_after(state.last);
        self.absent_until = self.first;
    }

    /// What holds after every record, whether it is written or read back. What was damaged on disk
    /// was refused before: a break of these is a fault of this program.
    fn check_invariants(&self) {
        let LogState { purged, last, committed, .. } = self.state;
        assert!(purged <= last, "the log ends at {last:?} and is purged up to {purged:?}");
        assert!(committed <= last, "the log ends at {last:?} and is committed up to {committed:?}");
        assert_eq!(self.next_slot(), index_after(last), "the entries end where the log does");
        assert!(self.cached_from <= self.slots.len(), "what is cached is there");
        let none_is_cached = self.cached_from == self.slots.len();
        assert!(!none_is_cached || self.cached_bytes == 0, "the bytes of the cache are counted");
        let is_behind = purged.is_none_or(|purged| self.first > purged.index);
        assert!(is_behind, "entries from {} on, purged up to {purged:?}", self.first);
    }

    fn check(&self, state: &LogState) -> Result<(), &'static str> {
        let same = *state == self.state;
        same.then_some(()).ok_or("a segment does not begin with the state in which the last ended")
    }

    fn push(&mut self, id: LogId, payload: Payload, position: u64) {
        if self.slots.is_empty() {
            self.first = id.index;
        }
        let LogId { term, node, .. } = id;
        let payload_bytes = payload.bytes.len();
        self.cached_bytes += payload_bytes;
        self.slots.push_back(Slot { term, node, position, payload_bytes, payload: Some(payload) });
        self.state.last = Some(id);
    }

    fn truncate(&mut self, last: Option<LogId>) -> Result<(), &'static str> {
        if last < self.state.purged {
            return Err("entries that were purged cannot be truncated");
        }
        if last < self.state.committed {
            return Err("entries that are committed cannot be truncated");
        }
        let found = last.and_then(|id| self.id(id.index));
        if found.is_some() && found != last {
            return Err("the log is truncated after an entry that it does not hold");
        }
        let end = index_after(last);
        while self.slots.back().is_some() && self.next_slot() > end {
            self.drop_slot(VecDeque::pop_back);
        }
        self.cached_from = self.cached_from.min(self.slots.len());
        self.first = self.first.min(end);
        self.absent_until = self.absent_until.min(end);
        self.state.last = last;
        Ok(())
    }

    fn purge(&mut self, upto: LogId) {
        if Some(upto) <= self.state.purged {
            return;
        }
        while self.first <= upto.index && self.drop_slot(VecDeque::pop_front) {
            self.first += 1;
            self.cached_from = self.cached_from.saturating_sub(1);
        }
        self.state.purged = Some(upto);
        if self.state.last < Some(upto) {
            self.state.last = Some(upto);
            self.first = upto.index + 1;
        }
    }

    /// Index after that of the last slot.
    fn next_slot(&self) -> LogIndex {
        self.first + as_u64(self.slots.len())
    }

    fn drop_slot(&mut self, pop: impl FnOnce(&mut VecDeque<Slot>) -> Option<Slot>) -> bool {
        let slot = pop(&mut self.slots);
        let cached = slot.as_ref().filter(|slot| slot.payload.is_some());
        self.cached_bytes -= cached.map_or(0, |slot| slot.payload_bytes);
        slot.is_some()
    }

    /// Lets go of the oldest payloads until no more than `bytes_max` are in memory, but keeps those
    /// of records that do not lie before `written_upto`: nowhere else can they be read.
    pub(super) fn shrink(&mut self, bytes_max: usize, written_upto: u64) {
        while self.cached_bytes > bytes_max {
            let Some(slot) = self.slots.get_mut(self.cached_from) else { break };
            let end = slot.position + Record::entry_bytes(slot.payload_bytes);
            if end > written_upto {
                break;
            }
            assert!(slot.payload.is_some(), "what is cached has its payload");
            slot.payload = None;
            self.cached_bytes -= slot.payload_bytes;
            self.cached_from += 1;
        }
    }

    /// The id of the entry with this index, if it is there.
    fn id(&self, index: LogIndex) -> Option<LogId> {
        let place = usize::try_from(index.checked_sub(self.first)?).ok()?;
        let Slot { term, node, .. } = self.slots.get(place)?;
        Some(LogId { term: *term, node: *node, index })
    }

    /// Entries of the range, from its first that is there on: as many as `bytes_max` holds, and at
    /// least one; with `stops_at_disk` none from the first on that is not in memory.
    pub(super) fn find(
        &self,
        range: Range<LogIndex>,
        bytes_max: usize,
        stops_at_disk: bool,
    ) -> Vec<Entry> {
        let mut found = Vec::new();
        let mut bytes = 0;
        let start = range.start.max(self.first);
        let skipped = usize::try_from(start - self.first).unwrap_or(usize::MAX);
        let (indexes, slots) =
            (start..range.end, self.slots.range(skipped.min(self.slots.len())..));
        for (index, slot) in indexes.zip(slots) {
            let Slot { term, node, position, payload_bytes, .. } = *slot;
            let id = LogId { term, node, index };
            if stops_at_disk && slot.payload.is_none() {
                break;
            }
            found.push(match &slot.payload {
                Some(payload) => Entry::InMemory(id, payload.clone()),
                None => Entry::OnDisk { id, position, payload_bytes },
            });
            bytes += payload_bytes;
            if bytes >= bytes_max {
                break;
            }
        }
        let in_range = |entry: &Entry| range.contains(&entry.id().index);
        assert!(found.iter().all(in_range), "what is found was asked for");
        found
    }

    /// Whether the first entry of the range that the log holds is not in memory. A range may begin
    /// before the log does.
    pub(super) fn begins_on_disk(&self, range: Range<LogIndex>) -> bool {
        let start = range.start.max(self.first);
        let place = usize::try_from(start - self.first).ok();
        let slot = place.filter(|_| start < range.end).and_then(|place| self.slots.get(place));
        slot.is_some_and(|slot| slot.payload.is_none())
    }
}

/// Votes of one term and node are ordered: a granted one is more than one asked for.
fn order(vote: &Vote) -> (Term, NodeId, bool) {
    (vote.term, vote.node, vote.committed)
}

/// Index of the entry after this one.
fn index_after(last: Option<LogId>) -> LogIndex {
    last.map_or(0, |id| id.index + 1)
}
