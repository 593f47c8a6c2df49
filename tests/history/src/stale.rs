//! Stale reads: what a node has applied up to an index, however old that is. They are no part of
//! the order of the others, and are held against the indexes that these were answered with.
//!
//! Only what must be so is asked, since an index says nothing about the order inside its entry, and
//! an operation of unknown outcome may stand anywhere:
//! - a value that is shown was written no later than at the index;
//! - nothing between the write and the index has replaced it for certain;
//! - nothing is shown only where nothing is there for certain.

use std::collections::BTreeMap;

use crate::operation::{Action, Operation, Outcome, Reply};

/// A change that stands at a known index.
struct Change<'a> {
    index: u64,
    operation: &'a Operation,
}

/// A stale read of a key, and the operation that it contradicts.
pub(crate) fn first_contradiction<'a>(
    operations: &[&'a Operation],
) -> Option<(&'a Operation, Option<&'a Operation>)> {
    let mut writers: BTreeMap<&str, &Operation> = BTreeMap::new();
    let mut changes = Vec::new();
    for &operation in operations.iter().filter(|o| o.outcome != Outcome::Refused) {
        writers.extend(operation.action.value().map(|value| (value, operation)));
        if let Outcome::Answered { reply, index } = &operation.outcome
            && changes_state(&operation.action, reply)
        {
            changes.push(Change { index: *index, operation });
        }
    }
    changes.sort_by_key(|change| change.index);
    let reads = operations.iter().filter(|operation| operation.action == Action::GetStale);
    reads.copied().find_map(|read| {
        let Outcome::Answered { reply: Reply::Value(value), index } = &read.outcome else {
            return None;
        };
        match value {
            Some(value) => contradicted(writers.get(value.as_str()).copied(), *index, &changes),
            None => missing(*index, &changes, operations),
        }
        .map(|other| (read, other))
    })
}

/// What speaks against a value of this writer at an index: that nobody wrote it, that it was
/// written later, or that it had been replaced.
fn contradicted<'a>(
    writer: Option<&'a Operation>,
    at: u64,
    changes: &[Change<'a>],
) -> Option<Option<&'a Operation>> {
    let Some(writer) = writer else { return Some(None) };
    let Outcome::Answered { index: written, .. } = writer.outcome else { return None };
    if written > at {
        return Some(Some(writer));
    }
    let replaced = changes.iter().find(|change| change.index > written && change.index <= at);
    replaced.map(|change| Some(change.operation))
}

/// What speaks against nothing at an index: a write at or before it, with no removal since that may
/// stand at or before it as well.
fn missing<'a>(
    at: u64,
    changes: &[Change<'a>],
    operations: &[&Operation],
) -> Option<Option<&'a Operation>> {
    let last = changes.iter().rfind(|change| change.index <= at)?;
    let of_entry = changes.iter().filter(|change| change.index == last.index);
    let removed = of_entry.map(|change| change.operation).any(|o| o.action == Action::Delete);
    let may_be_removed = operations.iter().any(|operation| {
        operation.action == Action::Delete && operation.outcome == Outcome::Unknown
    });
    (!removed && !may_be_removed).then_some(Some(last.operation))
}

fn changes_state(action: &Action, reply: &Reply) -> bool {
    match action {
        Action::Set(_) | Action::Swap(_) => true,
        Action::SetAbsent(_) => *reply == Reply::Done,
        Action::SwapAbsent(_) => *reply == Reply::Value(None),
        Action::SwapPresent(_) => *reply != Reply::Value(None),
        Action::Delete => *reply == Reply::Count(1),
        Action::GetLogged | Action::Get | Action::GetStale => false,
    }
}
