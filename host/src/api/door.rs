//! The door: all that clients and operators may ask of this node, without any protocol. An adapter,
//! a folder beside this file, reads a message, asks the door, and writes down the answer.
//!
//! The door checks names, sizes and limits, keeps deadlines, passes on to the leader what only the
//! leader can do, and has the one table of [`Error`]s. It decides nothing about the cluster, but
//! for one thing: [`join`] asks a new node who it is before the replica adds it.
//!
//! **Invariant:** a request is passed on at most once.

mod admin;
mod caller;
mod check;
mod drain;
mod error;
pub(super) mod join;
mod turns;
mod upload;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::grpc::Forward;
use crate::raft::ask::status::Status;
use crate::raft::{self, Consistency, Replica};
pub(super) use caller::{Caller, Forwarding, Payload};
pub(super) use drain::Drain;
pub(super) use error::{Class, Error};
use turns::Turns;
pub(super) use upload::Upload;

/// Modules that may be uploaded at once, each held whole.
const UPLOADS_MAX: usize = 2;
/// Uploads that may wait for one of those to be through; nothing of them is read meanwhile.
const UPLOADS_WAITING_MAX: usize = 16;
/// Snapshots that may be fetched at once, and that may wait for one of those to be through.
const FETCHES_MAX: usize = 4;

/// How the door behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Requests for the leader are passed on to it, one hop.
    pub forward: bool,
    /// How long a command or query without a deadline of its own may take.
    pub request_timeout: Duration,
}

/// The way in. Clones share it.
#[derive(Clone)]
pub struct Door(Arc<Inner>);

struct Inner {
    replica: Replica,
    options: Options,
    forward: Forward,
    drain: Drain,
    close: CancellationToken,
    uploads: Turns,
    fetches: Turns,
}

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Executed {
    /// The guest's reply.
    pub(super) reply: Bytes,
    /// The guest rejected the command, by its own rules.
    pub(super) rejected: bool,
    /// Index of the log entry that held the command.
    pub(super) index: u64,
}

/// The answer to a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answered {
    /// The guest's reply.
    pub(super) reply: Bytes,
    /// The guest rejected the query, by its own rules.
    pub(super) rejected: bool,
    /// The machine had applied the log up to here.
    pub(super) applied: u64,
}

impl Door {
    /// A door before a replica. `close` ends what clients keep open.
    pub fn new(replica: Replica, options: Options, close: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            replica,
            options,
            forward: Forward::default(),
            drain: Drain::default(),
            close,
            uploads: Turns::new(UPLOADS_MAX, UPLOADS_WAITING_MAX),
            fetches: Turns::new(FETCHES_MAX, FETCHES_MAX),
        }))
    }

    /// Begins nothing new from now on.
    pub fn begin_drain(&self) {
        self.0.drain.begin();
    }

    /// Completes once all that was begun before the drain is answered.
    pub async fn drained(&self) {
        self.0.drain.drained().await;
    }

    /// How the door is drained.
    pub(super) fn drain(&self) -> &Drain {
        &self.0.drain
    }

    /// Says when what clients keep open must end.
    pub(super) fn close(&self) -> &CancellationToken {
        &self.0.close
    }

    /// One more command under way, of many on one stream, until it is dropped.
    pub(super) fn enter(&self) -> Result<TaskTrackerToken, Error> {
        Ok(self.0.drain.enter()?)
    }

    /// How long a command or query without a deadline of its own may take.
    pub(super) fn request_timeout(&self) -> Duration {
        self.0.options.request_timeout
    }

    /// What this node knows of itself and the cluster.
    pub(super) fn status(&self) -> Status {
        self.0.replica.status()
    }

    /// Orders a command and waits for the guest's reply. Up to the first await of the replica it
    /// runs in the first poll, so that polling in order keeps the order.
    pub(super) async fn execute(
        &self,
        caller: &Caller,
        command: Payload,
    ) -> Result<Executed, Error> {
        let (machine, command, held) = command.checked("the command")?;
        let replica = &self.0.replica;
        let deadline = caller.deadline();
        let result = replica.execute(&machine, None, command.clone(), deadline, held).await;
        let raft::Executed { outcome, index, position } = match result {
            Ok(executed) => executed,
            Err(error) => {
                let Some(leader) = self.leader_address(&error, caller) else {
                    return Err(error.into());
                };
                let _held = caller.hold(&command)?;
                let timeout = caller.remaining();
                let passed_on = self.0.forward.execute(leader, &machine, command, timeout);
                let executed = passed_on.await?;
                caller.account().learn(executed.reply.len());
                return Ok(executed);
            }
        };
        let answered = error::guest_reply(outcome, &machine);
        let (reply, rejected) = answered.map_err(|error| error.at(index, position))?;
        Ok(Executed { reply, rejected, index })
    }

    /// Asks a machine without changing it.
    pub(super) async fn query(
        &self,
        caller: &Caller,
        query: Payload,
        consistency: Consistency,
    ) -> Result<Answered, Error> {
        let (machine, query, held) = query.checked("the query")?;
        let replica = &self.0.replica;
        let (asked, deadline) = (query.clone(), caller.deadline());
        let result = replica.query(&machine, asked, consistency, deadline, held).await;
        let raft::Answered { outcome, applied } = match result {
            Ok(answered) => answered,
            Err(error) => {
                let Some(leader) = self.leader_address(&error, caller) else {
                    return Err(Error::of_read(error));
                };
                let _held = caller.hold(&query)?;
                let timeout = caller.remaining();
                // Only a linearizable query meets a "not leader".
                let passed_on = self.0.forward.query(leader, &machine, query, timeout);
                let answered = passed_on.await?;
                caller.account().learn(answered.reply.len());
                return Ok(answered);
            }
        };
        let (reply, rejected) = error::guest_reply(outcome, &machine)?;
        Ok(Answered { reply, rejected, applied })
    }

    /// The leader's client address, if `error` says that another node leads and this request may
    /// be passed on to it.
    fn leader_address<'a>(&self, error: &'a raft::Error, caller: &Caller) -> Option<&'a str> {
        match error {
            raft::Error::NotLeader { leader: (_, member) }
                if caller.may_go_on(self.0.options.forward) =>
            {
                Some(&member.client_addr)
            }
            _ => None,
        }
    }
}
