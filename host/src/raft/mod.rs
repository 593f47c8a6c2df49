//! Agreement: the only module that knows openraft. It keeps the log store, the state machine, the
//! network between nodes, and the way commands and queries go through them.

pub mod checkpoints;
pub mod convert;
pub mod courier;
mod engine_change;
pub mod error;
mod fetch;
pub mod history;
pub mod log_store;
mod machine_admin;
pub mod membership;
pub mod modules;
pub mod network;
pub mod parking;
pub mod profile;
pub mod proposer;
pub mod pulse;
pub mod reader;
pub mod recovery;
pub mod replica;
pub mod reports;
mod restores;
mod returning;
pub mod snapshots;
pub mod space;
pub mod state_machine;
pub mod status;
pub mod type_config;

pub use crate::machine::proposal::StatePart;
pub use crate::machine::{InvalidLimit, Limits, LimitsChange};
pub use error::{Certainty, Error};
pub use fetch::Fetched;
pub use replica::{Answered, Consistency, Executed, Replica};
pub use type_config::{EntryBytes, TypeConfig};

/// openraft, as this daemon runs it.
pub type Raft = openraft::Raft<TypeConfig, state_machine::StateMachine>;
