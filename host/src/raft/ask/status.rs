//! What a node can say of itself without asking anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use openraft::{Instant as _, ServerState};

pub use crate::machine::{CheckpointRecord, FuelUse, Restoring};
use crate::machine::{ClusterLimits, GuestHandle, Limits, Published, Sealed, View, divergent};
use crate::raft::ask::replica::Shared;
use crate::raft::duties::timing::patience;
use crate::raft::type_config::{RaftLogId, TypeConfig};
use crate::types::{ClusterId, Incarnation, LogIndex, Member, ModuleDigest, NodeId, Term};

/// A follower that has not answered for so long is taken to be away.
const SILENCE_MAX: Duration = Duration::from_secs(2);

type Metrics = openraft::RaftMetrics<TypeConfig>;

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
    /// What the log says that its guest may use.
    pub limits: Limits,
    /// What the guest that runs here may use.
    pub active_limits: Option<Limits>,
    /// Linear memory it holds here, in bytes.
    pub memory_bytes: u64,
    /// Fuel that its commands took here.
    pub fuel_use: FuelUse,
    /// Last index it applied here.
    pub applied: LogIndex,
    /// Why this node applies nothing to it, if so.
    pub parked: Option<String>,
    /// While its state comes in.
    pub restoring: Option<Restoring>,
    /// The newest checkpoint that was agreed on.
    pub checkpoint: Option<(LogIndex, CheckpointRecord)>,
}

/// An engine change under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealStatus {
    /// Since when, and for which engine profile.
    pub sealed: Sealed,
    /// Voters.
    pub voters: usize,
    /// Voters that run a build of that profile, as far as the asked node hears of it: the leader
    /// hears of all, others of the leader.
    pub voters_ready: usize,
}

/// A change of the voters that is begun and not finished: until then it takes a majority of those
/// before and of those after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoterChange {
    /// The voters before.
    pub before: BTreeSet<NodeId>,
    /// The voters after.
    pub after: BTreeSet<NodeId>,
}

impl fmt::Display for VoterChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |voters: &BTreeSet<NodeId>| {
            voters.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ")
        };
        write!(
            f,
            "the voters are changed from {} to {}: until that is finished, a majority of both \
             must be there",
            list(&self.before),
            list(&self.after)
        )
    }
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
    /// How long ago that was written.
    pub snapshot_age: Option<Duration>,
    /// Last entry removed from its log.
    pub purged: Option<LogIndex>,
    /// The membership.
    pub nodes: Vec<NodeStatus>,
    /// The machines, by name.
    pub machines: Vec<MachineStatus>,
    /// Why this node applies nothing, if so.
    pub parked: Option<String>,
    /// The newest checkpoints, and what the nodes said of them.
    pub checkpoints: BTreeMap<LogIndex, CheckpointRecord>,
    /// Why no node accepts writes, if so.
    pub halted: Option<String>,
    /// The engine profile that entries are applied with, once it is in the log.
    pub replicated_profile: Option<String>,
    /// What every node keeps to, as applied here.
    pub cluster_limits: ClusterLimits,
    /// The engine change under way.
    pub sealed: Option<SealStatus>,
    /// The change of voters under way.
    pub change: Option<VoterChange>,
    /// What an operator should look at, a sentence each.
    pub alarms: Vec<String>,
}

/// The whole node, from what it knows without asking anybody.
pub(in crate::raft) fn of(shared: &Shared) -> Status {
    let metrics = shared.raft.metrics();
    let metrics = metrics.borrow_watched();
    let index = |id: &Option<RaftLogId>| id.as_ref().map(RaftLogId::index);
    let view = shared.directory.view();
    Status {
        node: shared.local.node_id(),
        cluster: shared.local.cluster(),
        incarnation: Incarnation(shared.member.incarnation),
        engine_profile: shared.environment.profile.clone(),
        member: shared.member.clone(),
        role: role(shared, &metrics),
        term: metrics.current_term,
        leader: leader(shared, &metrics),
        last_log: metrics.last_log_index,
        committed: index(&metrics.local_committed),
        applied: applied(shared, &metrics),
        snapshot: shared.snapshots.newest_index(),
        snapshot_age: shared.snapshots.age(),
        purged: index(&metrics.purged),
        nodes: nodes(&metrics),
        machines: machines(shared),
        parked: view.parked.clone(),
        checkpoints: view.checkpoints.clone(),
        halted: view.halted.clone(),
        replicated_profile: view.engine_profile.clone(),
        cluster_limits: view.cluster_limits,
        sealed: sealed(shared, &view, &metrics),
        change: change(&metrics),
        alarms: alarms(shared, &metrics),
    }
}

/// What the machines have applied. openraft counts entries that a parked node only passes over.
fn applied(shared: &Shared, metrics: &Metrics) -> Option<LogIndex> {
    match shared.directory.view().parked {
        Some(_) => Some(shared.directory.applied()),
        None => metrics.last_applied.as_ref().map(RaftLogId::index),
    }
}

fn role(shared: &Shared, metrics: &Metrics) -> Role {
    if metrics.running_state.is_err() {
        return Role::Stopped;
    }
    if shared.local.cluster().is_none() {
        return Role::Uninitialized;
    }
    match metrics.state {
        ServerState::Learner => Role::Learner,
        ServerState::Follower => Role::Follower,
        ServerState::Candidate => Role::Candidate,
        ServerState::Leader => Role::Leader,
        ServerState::Shutdown => Role::Stopped,
    }
}

fn nodes(metrics: &Metrics) -> Vec<NodeStatus> {
    let membership = metrics.membership_config.membership();
    let voters: Vec<NodeId> = membership.voter_ids().collect();
    let matched = |node: &NodeId| {
        let replication = metrics.replication.as_ref()?;
        replication.get(node).copied().flatten().map(|id| id.index())
    };
    membership
        .nodes()
        .map(|(node, member)| NodeStatus {
            node: *node,
            voter: voters.contains(node),
            member: member.clone(),
            matched: matched(node),
        })
        .collect()
}

/// The change of voters under way, as far as this node's log tells.
fn change(metrics: &Metrics) -> Option<VoterChange> {
    match metrics.membership_config.membership().get_joint_config().as_slice() {
        [before, after] => Some(VoterChange { before: before.clone(), after: after.clone() }),
        _ => None,
    }
}

/// The machines as applied here, by name.
pub(in crate::raft) fn machines(shared: &Shared) -> Vec<MachineStatus> {
    let view = shared.directory.view();
    let applied = shared.directory.applied();
    let mut settled = view.checkpoints.iter().filter(|(_, record)| record.agreed.is_some());
    let checkpoint = settled.next_back().map(|(index, record)| (*index, record.clone()));
    let describe = |published: &Published| {
        let manifest = published.manifest.as_ref();
        MachineStatus {
            name: published.name.clone(),
            id: published.id,
            module: published.module,
            guest_name: manifest.map(|manifest| manifest.name.clone()).unwrap_or_default(),
            schema_version: manifest.map_or(0, |manifest| manifest.schema_version),
            uses_time: manifest.is_some_and(|manifest| manifest.uses_time),
            limits: published.limits,
            active_limits: published.active_limits,
            memory_bytes: published.guest.as_ref().map_or(0, GuestHandle::memory_bytes),
            fuel_use: published.guest.as_ref().map(GuestHandle::fuel_use).unwrap_or_default(),
            applied,
            parked: view.parked.clone(),
            restoring: published.restoring,
            checkpoint: checkpoint.clone(),
        }
    };
    view.machines.values().map(describe).collect()
}

/// Who leads and is there, as far as this node knows. openraft names the last leader for ever; here
/// one that was not heard for longer than anybody waits before an election is none.
pub(super) fn leader(shared: &Shared, metrics: &Metrics) -> Option<NodeId> {
    let leader = metrics.current_leader?;
    let is_there = if leader == shared.local.node_id() {
        !is_cut_off(shared, metrics)
    } else {
        shared.local.heard().hears(leader, patience(shared.raft.config()))
    };
    is_there.then_some(leader)
}

/// Whether this node leads by name only: no majority has answered it for longer than followers
/// wait before they elect another.
fn is_cut_off(shared: &Shared, metrics: &Metrics) -> bool {
    let patience = patience(shared.raft.config());
    let others = metrics.membership_config.membership().voter_ids().count() > 1;
    others && metrics.last_quorum_acked.is_some_and(|acked| acked.elapsed() > patience)
}

/// What a node says that was removed: as its own log tells, or the members that it calls.
fn removed(shared: &Shared) -> Option<String> {
    let this = shared.local.node_id();
    let is_removed =
        shared.local.was_removed() || shared.directory.view().retired_nodes.contains(&this);
    is_removed.then(|| {
        "this node was removed from the cluster: stop it, and delete its data folder. It can join \
         again on an empty folder, under a new id"
            .to_owned()
    })
}

/// What a node says that has heard no leader for longer than it waits before an election.
fn leaderless(shared: &Shared, metrics: &Metrics) -> Option<String> {
    let silence = shared.local.heard().silence();
    let is_led =
        matches!(role(shared, metrics), Role::Leader | Role::Uninitialized | Role::Stopped)
            || leader(shared, metrics).is_some();
    let is_member = metrics.membership_config.membership().nodes().next().is_some();
    (is_member && !is_led && silence > patience(shared.raft.config())).then(|| {
        format!(
            "no leader has been heard for {} s: an election is under way, or a majority of the \
             voters cannot be reached",
            silence.as_secs()
        )
    })
}

/// Nodes that this leader has not heard from lately.
fn silent_nodes(shared: &Shared, metrics: &Metrics) -> Vec<NodeId> {
    let this = shared.local.node_id();
    let Some(heartbeat) = &metrics.heartbeat else { return Vec::new() };
    let silent = heartbeat.iter().filter(|(node, heard)| {
        **node != this && heard.is_none_or(|heard| heard.elapsed() > SILENCE_MAX)
    });
    silent.map(|(node, _)| *node).collect()
}

/// Members whose state is another than what was agreed on, and those that report no more.
fn disagreements(view: &View, metrics: &Metrics) -> Vec<String> {
    let membership = metrics.membership_config.membership();
    let is_member = |node: &NodeId| membership.get_node(node).is_some();
    let differing = divergent(&view.checkpoints).into_iter().filter(|(node, _)| is_member(node));
    let differing = differing.map(|(node, index)| {
        format!(
            "node {node} came to another state than was agreed on at checkpoint {index}: stop it \
             and run `lockstep repair`"
        )
    });
    // A checkpoint that a later one has followed, and on which all had the time to report.
    let before = view.checkpoints.iter().rev().skip(1).find(|(_, record)| record.agreed.is_some());
    let silent = before.into_iter().flat_map(|(index, _)| {
        let later = view.checkpoints.range(index..).map(|(_, record)| record);
        let reported = move |node: &NodeId| later.clone().any(|r| r.reports.contains_key(node));
        let from = *index;
        let silent = membership.nodes().map(|(node, _)| *node).filter(move |node| !reported(node));
        silent.map(move |node| {
            format!("node {node} has not reported its state since before checkpoint {from}")
        })
    });
    differing.chain(silent).collect()
}

fn sealed(shared: &Shared, view: &View, metrics: &Metrics) -> Option<SealStatus> {
    let sealed = view.sealed.clone()?;
    let voters: Vec<NodeId> = metrics.membership_config.membership().voter_ids().collect();
    let ready = voters.iter().filter(|voter| shared.local.runs(**voter, &sealed.to)).count();
    Some(SealStatus { sealed, voters: voters.len(), voters_ready: ready })
}

fn alarms(shared: &Shared, metrics: &Metrics) -> Vec<String> {
    let mut alarms = shared.local.alarms();
    if metrics.state == ServerState::Leader && is_cut_off(shared, metrics) {
        alarms.push("this leader cannot reach a majority: it answers nothing".to_owned());
    }
    alarms.extend(removed(shared).or_else(|| leaderless(shared, metrics)));
    let silent = silent_nodes(shared, metrics);
    alarms.extend(silent.iter().map(|node| format!("node {node} does not answer")));
    if let Err(fatal) = &metrics.running_state {
        alarms.push(format!("the replica has stopped: {fatal}"));
    }
    let view = shared.directory.view();
    alarms.extend(view.parked.iter().map(|reason| format!("this node is parked: {reason}")));
    alarms.extend(view.halted.iter().map(|reason| format!("writes have stopped: {reason}")));
    alarms.extend(sealed(shared, &view, metrics).map(|change| {
        let SealStatus { sealed, voters, voters_ready } = change;
        format!("{sealed}, and takes no writes; {voters_ready} of {voters} voters run that build")
    }));
    alarms.extend(change(metrics).map(|change| change.to_string()));
    alarms.extend(shared.local.stalls().current().map(|stall| stall.to_string()));
    alarms.extend(disagreements(&view, metrics));
    alarms.extend(shared.space.alarm());
    alarms.extend(shared.environment.library.alarm());
    alarms.extend(shared.snapshots.alarms().unwritten());
    alarms.extend(shared.clock.alarm());
    alarms.extend(shared.snapshots.damages());
    alarms.extend(shared.snapshots.alarms().export_failures());
    alarms
}
