//! What is asked of the replica: commands, queries, and what the node says of itself.

pub mod error;
pub mod proposer;
pub mod queue;
pub mod reader;
pub mod replica;
mod returning;
pub mod status;
