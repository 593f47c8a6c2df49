//! What commands come to, and what they take.

use bytes::Bytes;

use crate::machine::HostFailure;
use crate::types::Outcome;
use crate::wasm::{Failure, Replies};

/// Replies of a call that has no more bytes share them.
const SHARED_BYTES_MAX: usize = 2 << 10;

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

/// The replies, one by one. A short one that somebody keeps does not keep the others.
pub(super) fn outcomes_of(replies: Replies) -> Vec<Outcome> {
    let data = Bytes::from(replies.data);
    let mut rejected = replies.rejected.into_iter().peekable();
    let mut start = 0;
    let outcome = |(position, end): (u32, u32)| {
        let end = usize::try_from(end).expect("32 bits fit");
        let is_most = data.len() <= SHARED_BYTES_MAX || 2 * (end - start) >= data.len();
        let reply = if is_most {
            data.slice(start..end)
        } else {
            Bytes::copy_from_slice(&data[start..end])
        };
        start = end;
        match rejected.next_if_eq(&position) {
            Some(_) => Outcome::Rejected(reply),
            None => Outcome::Accepted(reply),
        }
    };
    let outcomes = (0_u32..).zip(replies.ends).map(outcome).collect();
    // `wasm` has checked what the guest gave.
    assert_eq!(start, data.len(), "the replies of a call are all that it gave");
    assert_eq!(rejected.next(), None, "whoever was rejected has a reply");
    outcomes
}

/// Bytes that outcomes hold.
pub(in crate::machine) fn bytes_of(outcomes: &[Outcome]) -> usize {
    outcomes.iter().map(Outcome::length).sum()
}
