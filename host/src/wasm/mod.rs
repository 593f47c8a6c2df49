//! The sandbox: runs guests, and is the only module that knows wasmtime.
//!
//! It knows neither the log nor the disk nor machines: [`Engine`] turns bytes into a [`Module`],
//! and [`Guest`] is one live instance of it that answers calls.
//!
//! Invariants:
//! - What a call comes to, its failure and the text of it included, is a function of the module,
//!   the calls before it on that instance, and the engine profile. Nothing of the host shows.
//! - What the host fails at is [`Failure::Host`] and never an answer.
//! - A guest has no import but `log`, and `log` returns nothing.

mod admission;
mod bindings;
#[cfg(test)]
mod c_tests;
mod cache;
mod caller;
#[cfg(test)]
mod charge_tests;
mod engine;
mod guest;
mod guest_log;
mod limits;
mod machine_limits;
mod memory;
mod self_test;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod text_tests;

pub use admission::{Error, Heaviest, Place, Shape};
pub use caller::Emit;
pub use engine::{Engine, Manifest, Module, stand_for_another_build};
pub use guest::{Batch, Context, ExportError, ExportStopped, Failure, Fork, Guest, Replies};
pub use guest_log::GuestLog;
pub use limits::THREAD_STACK_BYTES;
pub use machine_limits::{
    InvalidLimit, LIMITS, LIMITS_COUNT, Limit, LimitUnit, Limits, LimitsChange,
};
pub use memory::{Image, PAGE_BYTES};
