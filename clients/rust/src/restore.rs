//! Rebuilding a machine from an export: the parts one after the other, each of them until it is
//! certain that it is in, over changes of the leader.

use bytes::Bytes;
use lockstep_proto::v1;
use tokio::time::Instant;

use crate::client::Client;
use crate::error::{Error, Outcome};
use crate::reason;
use crate::retry::Retry;

/// A machine whose state is coming in. One that is given up stays as it is, and hidden, until it
/// is removed ([`Restore::abandon`]).
pub struct Restore {
    client: Client,
    machine: v1::Machine,
    next: u64,
}

impl Client {
    /// Begins to restore a machine on an uploaded module.
    ///
    /// # Errors
    /// `MACHINE_EXISTS`, `REFUSED` where the module does not import states of that schema, and
    /// those of every call. After UNKNOWN a machine of this name may be there and wait for parts.
    pub async fn restore(&self, message: v1::BeginRestoreRequest) -> Result<Restore, Error> {
        let machine = self.begin_restore(message).await?;
        Ok(Restore { client: self.clone(), machine, next: 0 })
    }
}

impl Restore {
    /// The machine as it was when it began.
    pub fn machine(&self) -> &v1::Machine {
        &self.machine
    }

    /// Hands over the next part of the export, with `last` the last one. While nobody knows what
    /// became of it, it is sent again, as long as calls that change a machine may take.
    ///
    /// # Errors
    /// `IMPORT_FAILED` when the guest did not take it in, and the machine is gone; `REFUSED` when
    /// the machine was removed; and those of every call.
    pub async fn push(&mut self, bytes: Bytes, last: bool) -> Result<(), Error> {
        let (machine_id, number) = (self.machine.id, self.next);
        let message = v1::ImportStateRequest { machine_id, number, bytes, last };
        let deadline = Instant::now() + self.client.options().admin_timeout;
        let mut retry = Retry::new();
        let mut in_doubt = false;
        loop {
            let error = match self.client.import_state(message.clone()).await {
                Ok(()) => break,
                Err(error) => error,
            };
            match judge(&error, last && in_doubt) {
                Verdict::IsIn => break,
                Verdict::Again if retry.pause(&error, deadline).await => {}
                Verdict::Again | Verdict::Failed => return Err(error),
            }
            in_doubt |= error.outcome == Outcome::Unknown;
        }
        self.next += 1;
        Ok(())
    }

    /// Removes the machine.
    ///
    /// # Errors
    /// Those of every call; `NO_SUCH_MACHINE` when it is gone already.
    pub async fn abandon(&self) -> Result<(), Error> {
        self.client.remove_machine_with(&self.machine.name, Some(self.machine.id)).await
    }
}

/// What became of a part.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// An earlier attempt brought it in.
    IsIn,
    /// Nobody knows, or it was not applied: the next attempt brings it in, once.
    Again,
    /// It will not come in.
    Failed,
}

/// Judges by the error of the latest attempt. `may_have_completed`: it is the last part, and nobody
/// knows what became of an earlier attempt.
fn judge(error: &Error, may_have_completed: bool) -> Verdict {
    // The machine is this restore's alone, so what completed it was this part.
    if may_have_completed && error.reason == reason::NOT_RESTORING {
        return Verdict::IsIn;
    }
    match error.outcome {
        Outcome::Unknown => Verdict::Again,
        _ if error.is_transient() => Verdict::Again,
        _ => Verdict::Failed,
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    /// A part is sent again while it may be missing, and an error that shows it to be in is none.
    #[test]
    fn errors_of_parts_are_judged() {
        use Outcome::{AppliedError, NotApplied, Unknown};
        let rows = [
            (Unknown, reason::LEADER_CHANGED, false, Verdict::Again),
            (Unknown, reason::CONNECTION_LOST, true, Verdict::Again),
            (NotApplied, reason::NO_LEADER, false, Verdict::Again),
            (NotApplied, reason::NOT_RESTORING, true, Verdict::IsIn),
            (NotApplied, reason::NOT_RESTORING, false, Verdict::Failed),
            (NotApplied, reason::REFUSED, true, Verdict::Failed),
            (NotApplied, reason::DISK_FULL, false, Verdict::Failed),
            (AppliedError, reason::IMPORT_FAILED, true, Verdict::Failed),
        ];
        for (outcome, reason, may_have_completed, expected) in rows {
            let error = Error::local(outcome, reason, Code::Unavailable, "");
            assert_eq!(judge(&error, may_have_completed), expected, "{error:?}");
        }
    }
}
