//! Agreement: the only module that knows openraft. It keeps the log store, the state machine, the
//! network between nodes, and the way commands and queries go through them.

pub mod convert;
pub mod error;
pub mod log_store;
pub mod network;
pub mod replica;
pub mod status;
pub mod type_config;

pub use error::{Certainty, Error};
pub use replica::{Answered, Consistency, Executed, Replica};
pub use type_config::{EntryBytes, TypeConfig};
