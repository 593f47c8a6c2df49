//! The doors: how clients, operators and peers reach this node. One folder a protocol.
//!
//! The only module besides `raft::network` that knows tonic.

mod grpc;

pub use grpc::{Door, Options, Services, peer, serve_clients};
