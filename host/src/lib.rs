//! Lockstep: a Raft host whose state machine is a WebAssembly component of the user's own.
//!
//! The modules, from the outside in:
//!
//! - [`cli`]: one file per subcommand of `lockstep`.
//! - [`node`]: the composition root; opens, wires, spawns and drains everything below.
//! - [`api`]: gRPC for clients and operators; knows tonic and [`raft::Replica`].
//! - [`raft`]: agreement; knows openraft.
//! - [`machine`]: what is replicated, and the apply of one entry.
//! - [`wasm`]: the sandbox; knows wasmtime.
//! - [`storage`]: everything on disk.
//! - [`telemetry`]: the log of the process: its level and its form.
//! - [`types`], [`config`]: the nouns and the limits that all of them share.

pub mod api;
pub mod cli;
pub mod config;
pub mod machine;
pub mod node;
pub mod raft;
pub mod storage;
pub mod telemetry;
pub mod types;
pub mod wasm;
