//! How clients, operators and peers reach this node: connections, the door that all of them but
//! peers come in by, and one folder a protocol.

mod connection;
mod door;
mod grpc;

pub use connection::Listener;
pub use door::{Door, Options};
pub use grpc::{peer, serve_clients};
