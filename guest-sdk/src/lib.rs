//! What a Lockstep guest is written with: implement [`StateMachine`] for a type, name it in
//! [`export!`], and the crate builds into a component that a cluster can run.
//!
//! ```
//! use lockstep_guest_sdk::{Context, Rejection, Reply, StateMachine};
//! use serde::{Deserialize, Serialize};
//!
//! /// Adds up the whole numbers it is sent.
//! #[derive(Default, Serialize, Deserialize)]
//! struct Counter {
//!     total: i64,
//! }
//!
//! impl StateMachine for Counter {
//!     const NAME: &'static str = "counter";
//!     type Command<'a> = &'a str;
//!
//!     fn apply(&mut self, _: &Context, step: &str, reply: &mut Reply) -> Result<(), Rejection> {
//!         let step: i64 = step.parse().map_err(|_| "not a whole number")?;
//!         self.total = self.total.checked_add(step).ok_or("the total would overflow")?;
//!         self.query(&Context::default(), "", reply)
//!     }
//!
//!     fn query(&self, _: &Context, _: &str, reply: &mut Reply) -> Result<(), Rejection> {
//!         write!(reply, "{}", self.total);
//!         Ok(())
//!     }
//! }
//!
//! lockstep_guest_sdk::export!(Counter);
//! # fn main() {}
//! ```
//!
//! The contract itself, function by function, is `wit/guest.wit`; this crate keeps the guest's
//! half of it. It does not know what a command means.
//!
//! Invariant: nothing here has an order or a content that differs between replicas, and a state
//! machine should have none either. `BTreeMap`, not `HashMap`: std seeds the latter from addresses
//! on this target, which a restored replica does not share.

mod batch;
#[doc(hidden)]
pub mod bindings;
mod export;
mod import;
mod log;
mod portable;
#[doc(hidden)]
pub mod runtime;

pub use batch::{Batch, BatchError, Rejection, Replies, Reply};
pub use log::{Level, log};
pub use portable::Portable;

/// Where and when a call stands, the same on every replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// Index of the log entry; for a query, of the last entry applied.
    pub index: u64,
    /// Milliseconds since the Unix epoch, stamped by the leader; never goes backwards.
    pub time_ms: u64,
    /// A number that differs from entry to entry. It is no secret.
    pub seed: u64,
}

/// A replicated state machine.
///
/// Every replica makes the same calls in the same order, so whatever a call does must follow from
/// the state and its arguments alone. `Default` is the state before the first command.
///
/// Its state leaves and enters through [`Portable`], which any serde type has by itself.
pub trait StateMachine: Default + Portable + 'static {
    /// Name of the guest, for people: 1 to 64 bytes.
    const NAME: &'static str;
    /// Version of the state as it is exported. Raise it when [`Portable`] writes something else.
    const SCHEMA_VERSION: u32 = 1;
    /// Earlier versions that it still imports.
    const OLDER_SCHEMAS: &'static [u32] = &[];
    /// Names of the requests that [`query`](Self::query) answers, for people and tools.
    const READ_ONLY: &'static [&'static str] = &[];
    /// True when answers depend on [`Context::time_ms`].
    const USES_TIME: bool = false;

    /// What a request is read as, before it is applied: `&str`, `&[u8]`, [`Bincode`] of a serde
    /// type, or a type of your own that is [`Decode`].
    type Command<'a>: Decode<'a>;

    /// Applies one command and writes its reply.
    ///
    /// # Errors
    /// A [`Rejection`] is the reply of a command that was refused. It must leave the state as it
    /// was.
    fn apply(
        &mut self,
        context: &Context,
        command: Self::Command<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Rejection>;

    /// Answers a request that changes nothing.
    ///
    /// # Errors
    /// As [`apply`](Self::apply); a request that would change the state is rejected.
    fn query(
        &self,
        context: &Context,
        query: Self::Command<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Rejection>;
}

/// How a request is read.
pub trait Decode<'a>: Sized {
    /// Reads a whole request.
    ///
    /// # Errors
    /// The reply to a request that is none.
    fn decode(bytes: &'a [u8]) -> Result<Self, Rejection>;
}

impl<'a> Decode<'a> for &'a [u8] {
    fn decode(bytes: &'a [u8]) -> Result<Self, Rejection> {
        Ok(bytes)
    }
}

impl<'a> Decode<'a> for &'a str {
    fn decode(bytes: &'a [u8]) -> Result<Self, Rejection> {
        str::from_utf8(bytes).map_err(|_| Rejection::from("not UTF-8"))
    }
}

/// A request that is one serde value in bincode's standard configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bincode<T>(pub T);

impl<'a, T: serde::Deserialize<'a>> Decode<'a> for Bincode<T> {
    fn decode(bytes: &'a [u8]) -> Result<Self, Rejection> {
        match bincode::serde::borrow_decode_from_slice(bytes, bincode::config::standard()) {
            Ok((value, length)) if length == bytes.len() => Ok(Self(value)),
            Ok(_) => Err(Rejection::from("bytes are left over after the command")),
            Err(error) => Err(Rejection::from(error.to_string())),
        }
    }
}
