//! What a log entry holds: proposals, and the batches of commands in them.

pub(in crate::machine) mod batch;
pub mod proposal;
