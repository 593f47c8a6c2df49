//! A machine's state at a boundary of calls: what a snapshot is made from.

use std::sync::Arc;

use super::{Blueprint, host};
use crate::machine::HostFailure;
use crate::machine::guest::outcome::outcome_of;
use crate::types::Outcome;
use crate::wasm::{ExportError, ExportStopped, Fork, Image};

/// A machine's state at a boundary of calls, for a snapshot; it stays as it is while the machine
/// goes on.
#[derive(Clone)]
pub struct Frozen {
    blueprint: Blueprint,
    image: Arc<Image>,
    fuel_used: u64,
}

impl Frozen {
    pub(super) fn new(blueprint: Blueprint, image: Arc<Image>, fuel_used: u64) -> Self {
        Self { blueprint, image, fuel_used }
    }

    /// The exact state.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Fuel of all calls that succeeded.
    pub fn fuel_used(&self) -> u64 {
        self.fuel_used
    }

    /// A fork to have the state exported on. To be called on a thread with the stack for guests.
    ///
    /// # Errors
    /// The system has no memory or no descriptor for it. Nothing else hangs on a fork.
    pub fn fork(&self) -> Result<Fork, HostFailure> {
        let Blueprint { engine, module, limits, .. } = &self.blueprint;
        Fork::of_image(engine, module, *limits, &self.image).map_err(host)
    }

    /// Has the guest serialize its state on a fork of it, chunk by chunk, until `sink` wants no
    /// more. The inner error is the guest's own. To be called as [`Frozen::fork`].
    pub fn export_on(
        mut fork: Fork,
        sink: &mut dyn FnMut(Vec<u8>) -> bool,
    ) -> Result<Result<(), Outcome>, HostFailure> {
        let mut emit = |chunk| if sink(chunk) { Ok(()) } else { Err(ExportStopped) };
        match fork.export(&mut emit) {
            Ok(_) => Ok(Ok(())),
            Err(ExportError::Guest(failure)) => outcome_of(failure).map(Err),
            Err(ExportError::Stopped) => {
                Err(HostFailure::Stop("nobody takes the export of a guest".to_owned()))
            }
        }
    }
}
