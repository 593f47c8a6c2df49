//! What operators ask of the replica: nodes, modules, machines, restores, another engine.

mod engine_change;
mod fetch;
pub mod machine_admin;
mod membership;
mod restores;

pub use fetch::Fetched;
