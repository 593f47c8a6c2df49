//! Everything on disk: the only module that touches files. Blocking code, to be called off the
//! async workers (`blocking`).
//!
//! It knows neither openraft nor wasm: entries, snapshots' contents and modules are bytes to it.
//! The layouts are in docs/formats.md.
//!
//! **Invariant:** a file becomes visible under its name only when it is whole and synced.
//! **Invariant:** nothing read back is trusted before its checksum is.

mod blocking;
pub mod code;
mod data_dir;
mod durable;
mod error;
mod identity;
mod lock;
pub mod log;
pub mod modules;
mod quarantine;
pub mod snapshot;
pub mod space;

pub use blocking::forbid_on_async_workers;
pub use data_dir::DataDir;
pub use error::Error;
pub(crate) use error::snapshot_repair;
pub use identity::Identity;
pub use log::{FlushDone, Log, LogConfig, LogPlace, LogState, Payload, ShortOfRoom};
pub use quarantine::Quarantine;
