//! What is replicated beside guest memory: modules, machines, sessions, and the apply of an entry.

use crate::types::Outcome;

/// What an applied entry came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// An entry that answers nothing: membership, blank, tick.
    Nothing,
    /// One outcome for each command of the entry, in order.
    Commands(Vec<Outcome>),
}
