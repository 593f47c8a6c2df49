//! What is replicated beside guest memory: modules, machines, sessions, and the apply of one
//! entry. Knows `wasm` and `types`, not the log, the disk or the network.

mod compiled;
mod directory;
pub mod entry;
mod guest;
mod library;
mod machines;
mod modules;
pub mod snapshot;
mod tables;
#[cfg(test)]
mod tests;

pub use compiled::CompiledModules;
pub use directory::{Directory, Published, View};
pub use entry::batch::Batch;
pub use entry::proposal::Proposal;
pub use guest::expected::Expected;
pub use guest::history::{History, MemoryHistory};
pub use guest::instance::{Blueprint, Frozen, Instance};
pub use guest::outcome::FuelUse;
pub use guest::restoring::check_schema;
pub use guest::thread::GuestHandle;
pub use guest::window::{Asker, Query, Told};
pub use library::{CodeCache, MemoryLibrary, ModuleLibrary};
pub use machines::{Environment, Machines, describe};
pub use snapshot::content::{FrozenState, Source};
pub use snapshot::digest::ContentDigest;
pub use tables::agreement::{CHECKPOINTS_KEPT, CheckpointRecord, CheckpointReport, divergent};
pub use tables::cluster_limits::ClusterLimits;
pub use tables::seal::Sealed;
pub use tables::{ModuleRecord, Refusal, Restoring};

pub use crate::wasm::{
    Context, InvalidLimit, LIMITS, LIMITS_COUNT, Limit, LimitUnit, Limits, LimitsChange,
};

use crate::types::{MachineId, Outcome};

/// What an applied entry came to. Equal on every node that applied it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// An entry that answers nothing: membership, blank, tick, report, checkpoint, staged module,
    /// removed machine, limits, engine profile, seal, a part of a state.
    Nothing,
    /// One outcome for each command of the entry, in order.
    Commands(Vec<Outcome>),
    /// The machine was created.
    MachineCreated(MachineId),
    /// The guest did not take in a part of a state, for this reason: its machine is gone.
    ImportFailed(String),
    /// The entry changed nothing.
    Refused(Refusal),
    /// This node applies nothing; the text says why.
    NodeParked(String),
}

/// An applied entry: what it came to, and what this node has to do about it.
#[derive(Debug)]
pub struct Applied {
    /// What it came to.
    pub response: Response,
    /// What is to be done before the next entry.
    pub then: Then,
}

/// What an entry asks of the node that applied it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    GoOn,
    /// Capture the state as it is now, for a snapshot.
    Capture,
    /// Compare the states of checkpoints here with what was agreed on.
    CompareStates,
    /// Compare the engine profile of this build with the replicated one.
    CompareProfiles {
        /// The entry ended an engine change.
        decided: bool,
    },
}

impl Applied {
    /// What `then` says follows, unless the entry was refused.
    fn new(response: impl Into<Response>, then: Then) -> Self {
        let response = response.into();
        let refused = matches!(response, Response::Refused(_));
        Self { response, then: if refused { Then::GoOn } else { then } }
    }
}

impl<R: Into<Response>> From<R> for Applied {
    fn from(response: R) -> Self {
        Self::new(response, Then::GoOn)
    }
}

impl From<Result<(), Refusal>> for Response {
    fn from(result: Result<(), Refusal>) -> Self {
        match result {
            Ok(()) => Self::Nothing,
            Err(refusal) => Self::Refused(refusal),
        }
    }
}

/// The apply path cannot go on, for a reason that is no outcome of the entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostFailure {
    /// The host failed: the node must stop, because applying on would diverge.
    #[error("{0}")]
    Stop(String),
    /// The engine changes, and a guest does not take in its export under this one: the node must
    /// not go on from there.
    #[error("{0}")]
    Import(String),
}

impl HostFailure {
    pub(crate) fn panicked(error: tokio::task::JoinError) -> Self {
        Self::Stop(format!("a task of the apply path ended early: {error}"))
    }
}
