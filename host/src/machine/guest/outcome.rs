//! What commands come to, and what they take.

use bytes::Bytes;

use crate::machine::HostFailure;
use crate::types::Outcome;
use crate::wasm::Failure;

/// Fuel that commands took since this node made the guest, for whoever sets limits. Commands that
/// were one call are told of by their average.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FuelUse {
    /// Of the last command.
    pub last: u64,
    /// Of the one that took most.
    pub highest: u64,
}

impl FuelUse {
    pub(super) fn note(&mut self, fuel: u64) {
        self.last = fuel;
        self.highest = self.highest.max(fuel);
    }
}

/// A guest's failure as an outcome; the host's own is an error.
pub(in crate::machine) fn outcome_of(failure: Failure) -> Result<Outcome, HostFailure> {
    match failure {
        Failure::Trapped(reason) => Ok(Outcome::Trapped(reason)),
        Failure::Malformed(reason) => {
            Ok(Outcome::Trapped(format!("the guest broke its contract: {reason}")))
        }
        Failure::NoStart(reason) => {
            Ok(Outcome::Trapped(format!("the guest does not start: {reason}")))
        }
        Failure::Refused(words) => Ok(Outcome::Rejected(Bytes::from(words))),
        Failure::OutOfFuel { limit, fuel } => Ok(Outcome::OutOfFuel { limit, fuel }),
        Failure::TooLarge { length, limit } => Ok(Outcome::TooLarge { length, limit }),
        Failure::Host(reason) => Err(HostFailure::Stop(reason)),
    }
}
