//! What openraft keeps its log and its state in: its storage traits over `storage` and `machine`.

pub mod convert;
pub mod history;
pub mod log_store;
pub mod snapshots;
pub mod state_machine;
