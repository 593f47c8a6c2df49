//! The Lockstep client library.
//!
//! [`Client`] finds the leader of a cluster and follows it, keeps to deadlines, and sends again
//! only what is certain not to have been applied. [`Stream`] multiplexes many callers on one
//! pipelined gRPC stream. [`resp`] encodes and prints what the reference guest `kv` speaks.
//!
//! It does not make a command that failed with [`Outcome::Unknown`] happen exactly once: that takes
//! a session, which this version does not have. Such an error is returned, never hidden by a retry.

mod admin;
mod attempts;
mod client;
mod dial;
mod error;
mod fetch;
pub mod reason;
pub mod resp;
mod restore;
mod retry;
mod routes;
mod stream;

pub use admin::UPLOAD_CHUNK_BYTES;
pub use client::{
    Answered, COMMAND_BYTES_MAX, Client, Consistency, Executed, FORWARD_HEADER, FORWARDED_HEADER,
    Options,
};
pub use error::{Error, LogPlace, Outcome};
pub use fetch::FetchedSnapshot;
pub use lockstep_proto::v1;
pub use restore::Restore;
pub use stream::Stream;
