//! `Replica`: what the rest of the daemon asks of the replicated state machine. One handle, cheap
//! to clone; the gRPC services are built on it and know nothing below it.

use std::time::Instant;

use bytes::Bytes;

use super::error::Error;
use super::status::{MachineStatus, Status};
use crate::types::{ClusterId, LogIndex, Member, ModuleDigest, NodeId, Outcome, SessionSlot};

/// A handle on this node's replica.
#[derive(Clone)]
pub struct Replica {}

/// A committed command: what it came to, and where it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executed {
    /// What the command came to, the same on every node.
    pub outcome: Outcome,
    /// Index of the entry that held it.
    pub index: LogIndex,
}

/// The answer to a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// What the guest answered, or how it failed.
    pub outcome: Outcome,
    /// The machine had applied the log up to here.
    pub applied: LogIndex,
}

/// How fresh a query's answer must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// Reflects every command acknowledged before the query was received (ReadIndex, Raft
    /// dissertation, section 6.4). Only the leader answers.
    Linearizable,
    /// What this node has applied, however old.
    Stale,
}

impl Replica {
    /// Orders a command and waits until it is applied. Calls made in order on one task enter the
    /// log in that order up to the first await of the returned future.
    pub async fn execute(
        &self,
        machine: &str,
        session: Option<SessionSlot>,
        command: Bytes,
        deadline: Instant,
    ) -> Result<Executed, Error> {
        unimplemented!()
    }

    /// Asks a machine without changing it.
    pub async fn query(
        &self,
        machine: &str,
        query: Bytes,
        consistency: Consistency,
        deadline: Instant,
    ) -> Result<Answered, Error> {
        unimplemented!()
    }

    /// What this node knows of itself and the cluster.
    pub fn status(&self) -> Status {
        unimplemented!()
    }

    /// Makes this node a cluster of one.
    pub async fn init(&self) -> Result<ClusterId, Error> {
        unimplemented!()
    }

    /// Adds a node as a learner; returns when the membership entry is committed.
    pub async fn add_learner(&self, node: NodeId, member: Member) -> Result<(), Error> {
        unimplemented!()
    }

    /// Makes a learner a voter, once its log has caught up.
    pub async fn promote(&self, node: NodeId, deadline: Instant) -> Result<(), Error> {
        unimplemented!()
    }

    /// Takes a node out of the cluster.
    pub async fn remove(&self, node: NodeId) -> Result<(), Error> {
        unimplemented!()
    }

    /// Hands leadership to `to`, or to the most caught up voter; returns the new leader.
    pub async fn transfer(&self, to: Option<NodeId>, deadline: Instant) -> Result<NodeId, Error> {
        unimplemented!()
    }

    /// Checks a module, stages it on every node and waits until every voter has compiled it.
    pub async fn upload_module(
        &self,
        module: Bytes,
        deadline: Instant,
    ) -> Result<ModuleDigest, Error> {
        unimplemented!()
    }

    /// Creates a machine on an uploaded module.
    pub async fn create_machine(
        &self,
        name: &str,
        module: ModuleDigest,
        deadline: Instant,
    ) -> Result<MachineStatus, Error> {
        unimplemented!()
    }

    /// The machines as this node has applied them, by name.
    pub fn machines(&self) -> Vec<MachineStatus> {
        unimplemented!()
    }

    /// Removes a machine and its state.
    pub async fn remove_machine(&self, name: &str, deadline: Instant) -> Result<(), Error> {
        unimplemented!()
    }

    /// Logs a checkpoint and waits until this node's snapshot of it is on disk; its index.
    pub async fn checkpoint(&self, deadline: Instant) -> Result<LogIndex, Error> {
        unimplemented!()
    }
}
