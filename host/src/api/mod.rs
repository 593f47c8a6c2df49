//! The doors: how clients, operators and peers reach this node. One folder a protocol.
//!
//! The only module besides `raft::network` that knows tonic.

mod connection;
mod grpc;

pub use connection::Listener;
pub use grpc::{Options, Services, peer, serve_clients};
