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

    /// Has the guest serialize its state on a fork, chunk by chunk, until `sink` wants no more.
    /// The inner error is the guest's own. To be called on a thread with the stack for guests.
    pub fn export(
        &self,
        sink: &mut dyn FnMut(Vec<u8>) -> bool,
    ) -> Result<Result<(), Outcome>, HostFailure> {
        let Blueprint { engine, module, limits, .. } = &self.blueprint;
        let fork = Fork::of_image(engine, module, *limits, &self.image);
        let mut emit = |chunk| if sink(chunk) { Ok(()) } else { Err(ExportStopped) };
        match fork.map_err(host)?.export(&mut emit) {
            Ok(_) => Ok(Ok(())),
            Err(ExportError::Guest(failure)) => outcome_of(failure).map(Err),
            Err(ExportError::Stopped) => {
                Err(HostFailure::Stop("nobody takes the export of a guest".to_owned()))
            }
        }
    }
}
