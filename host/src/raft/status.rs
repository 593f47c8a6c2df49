//! What a node can say of itself without asking anybody.

use crate::types::{ClusterId, Incarnation, LogIndex, Member, ModuleDigest, NodeId, Term};

/// The part a node plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Never in a cluster: waits for `cluster init` or `cluster add`.
    Uninitialized,
    /// Replicates, does not vote.
    Learner,
    /// Votes, follows a leader or looks for one.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
    /// A broken invariant or a disk error ended it.
    Stopped,
}

/// One node of the membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its id.
    pub node: NodeId,
    /// Whether it votes.
    pub voter: bool,
    /// How it is reached.
    pub member: Member,
    /// On the leader: the last index known to be on that node's disk.
    pub matched: Option<LogIndex>,
}

/// One machine, as applied on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineStatus {
    /// Its name.
    pub name: String,
    /// The log index that created it.
    pub id: crate::types::MachineId,
    /// Its module.
    pub module: ModuleDigest,
    /// The guest's name for itself.
    pub guest_name: String,
    /// Version of the guest's state schema.
    pub schema_version: u32,
    /// Whether its answers depend on the entry's time.
    pub uses_time: bool,
    /// Linear memory it holds here, in bytes.
    pub memory_bytes: u64,
    /// Last index it applied here.
    pub applied: LogIndex,
    /// Why it applies nothing, if so.
    pub parked: Option<String>,
}

/// The whole node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This node.
    pub node: NodeId,
    /// Its cluster, once it is in one.
    pub cluster: Option<ClusterId>,
    /// Its data directory.
    pub incarnation: Incarnation,
    /// Hash of everything that must be equal for replicas to stay equal.
    pub engine_profile: String,
    /// How this node is reached.
    pub member: Member,
    /// Its part.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// The leader it knows.
    pub leader: Option<NodeId>,
    /// Last entry in its log.
    pub last_log: Option<LogIndex>,
    /// Last entry it knows to be committed.
    pub committed: Option<LogIndex>,
    /// Last entry it applied.
    pub applied: Option<LogIndex>,
    /// Last entry in its newest snapshot.
    pub snapshot: Option<LogIndex>,
    /// Last entry removed from its log.
    pub purged: Option<LogIndex>,
    /// The membership.
    pub nodes: Vec<NodeStatus>,
    /// The machines, by name.
    pub machines: Vec<MachineStatus>,
    /// What an operator should look at, a sentence each.
    pub alarms: Vec<String>,
}
