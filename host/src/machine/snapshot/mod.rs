//! What a snapshot holds of the machines: its pieces, their digest, and what is read back of a
//! file.

pub mod backup;
pub mod content;
pub(in crate::machine) mod digest;
pub mod unsent;
