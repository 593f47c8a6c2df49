//! The sandbox: compiles a guest's component, runs it under limits, and reports what it did as
//! data. The only module that knows wasmtime.
//!
//! It decides nothing about replication: whether a failure parks a machine is the caller's
//! business. **Invariant:** what a guest can see is its memory and the arguments of a call, so
//! equal calls on equal modules give equal replies on every node of equal engine profile.

mod admission;
mod bindings;
mod engine;
mod guest;
mod limits;

pub use admission::Refusal;
pub use engine::{Engine, Manifest, Module};
pub use guest::{Batch, Context, Failure, Guest, Replies};

/// Why a module cannot be used, or the sandbox not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The module is not one that this version runs.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The host cannot do what it should: no memory, no threads, a broken configuration.
    #[error("the sandbox failed: {0}")]
    Host(String),
}
