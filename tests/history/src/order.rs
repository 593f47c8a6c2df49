//! The order that the nodes themselves claim: the log indexes in the replies, over all keys.
//!
//! What was answered before another operation was called stands before it in the log. This is more
//! than linearizability asks for, and cheap to check: a reply that belongs to another command, or a
//! read from a state that is too old, shows here even where no other client looked at the key.

use crate::operation::{Action, Operation, Outcome};

/// Two operations, the earlier one first, that stand the other way round in the log.
pub(crate) fn first_reversal(operations: &[Operation]) -> Option<(&Operation, &Operation)> {
    let mut answered: Vec<(&Operation, u64)> = operations
        .iter()
        .filter_map(|operation| match operation.outcome {
            Outcome::Answered { index, .. } if operation.action != Action::GetStale => {
                Some((operation, index))
            }
            _ => None,
        })
        .collect();
    answered.sort_by_key(|(operation, _)| operation.ended_us);
    let mut by_call = answered.clone();
    by_call.sort_by_key(|(operation, _)| operation.called_us);
    let mut ended = answered.into_iter().peekable();
    let mut highest: Option<(&Operation, u64)> = None;
    for (operation, index) in by_call {
        while let Some(earlier) = ended.next_if(|(e, _)| e.ended_us < operation.called_us) {
            if highest.is_none_or(|(_, index)| earlier.1 > index) {
                highest = Some(earlier);
            }
        }
        // A command is appended after what was answered; a query may be of the same moment.
        let least = u64::from(operation.action != Action::Get);
        if let Some((earlier, before)) = highest
            && index < before + least
        {
            return Some((earlier, operation));
        }
    }
    None
}
