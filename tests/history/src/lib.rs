//! Histories: what concurrent clients asked of a few keys, when, and what they were told; and the
//! check that all of it can be explained.
//!
//! - [`operation`]: one thing that a client asked, and what came of it.
//! - [`file`](mod@file): a history as a file, so that it can be looked at and checked again.
//! - [`check`](mod@check): the verdict on a history, and the first operation that nothing explains.
//!
//! A history is **linearizable** when every operation can be given one moment between its call and
//! its end, such that one register per key, asked at these moments in their order, would have
//! answered the same (Herlihy and Wing, 1990). An operation of unknown outcome may take effect at
//! any moment after its call, or never.
//!
//! Stale reads are no part of that order: each must show what the log holds up to its index.
//!
//! What is not here: clusters, clients, clocks. The crate knows operations and nothing else, so
//! that its tests take a second, and any harness can use it.

pub mod check;
pub mod file;
pub mod operation;
mod order;
mod search;
mod stale;
mod transition;

pub use check::{Summary, Violation, check};
pub use operation::{Action, Event, History, Operation, Outcome, Reply};
