//! What operators ask of the replica: nodes, modules, machines, restores, another engine, the time.

mod changes;
mod engine_change;
mod fetch;
pub mod machine_admin;
mod membership;
mod restores;
mod time;
mod transfer;

pub(super) use changes::BUSY;
pub use changes::{MembershipTask, Request, moved};
pub use fetch::Fetched;
pub(super) use transfer::Successor;
