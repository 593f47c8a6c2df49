//! Lockstep: a Raft host whose state machine is a WebAssembly component of the user's own.
//!
//! The modules, from the outside in:
//!
//! - [`cli`]: one file per subcommand of `lockstep`.
//! - [`node`]: listeners, signals, and the order of a stop.
//! - `group`: one Raft group; opens, wires, spawns and ends everything below but the doors.
//! - [`api`]: the doors for clients, operators and peers, one folder a protocol.
//! - [`raft`]: agreement; knows openraft.
//! - [`machine`]: what is replicated, and the apply of one entry.
//! - [`wasm`]: the sandbox; knows wasmtime.
//! - [`storage`]: everything on disk.
//! - [`telemetry`]: the log of the process: its level and its form.
//! - [`budget`]: the bytes that a node holds for others.
//! - [`codec`]: the bytes of ids, votes and entries, for disk and wire.
//! - `in_turn`: the order in which callers are served.
//! - [`types`], [`config`]: the nouns and the limits that all of them share.

pub mod api;
pub mod budget;
pub mod cli;
pub mod codec;
pub mod config;
mod group;
mod in_turn;
pub mod machine;
pub mod node;
pub mod raft;
pub mod storage;
pub mod telemetry;
pub mod types;
pub mod wasm;
