//! Agreement: the only module that knows openraft. It keeps the log store, the state machine, the
//! network between nodes, and the way commands and queries go through them.

pub mod admin;
pub mod ask;
pub mod clock;
pub mod duties;
pub mod network;
pub mod store;
pub mod type_config;

pub use crate::machine::entry::proposal::StatePart;
pub use crate::machine::{ClusterLimits, InvalidLimit, LIMITS, Limits, LimitsChange};
pub use admin::Fetched;
pub use ask::error::{Certainty, Error};
pub use ask::replica::{Answered, Consistency, Executed, Replica};
pub use ask::status;
pub use clock::TimeSet;
pub use type_config::{EntryBytes, TypeConfig};

/// openraft, as this daemon runs it.
pub type Raft = openraft::Raft<TypeConfig, store::state_machine::StateMachine>;
