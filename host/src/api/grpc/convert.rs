//! From the daemon's types to messages, and back where a message holds one. One function per
//! type; nothing here decides anything.

use std::collections::BTreeSet;

use bytes::Bytes;
use lockstep_proto::v1;
use lockstep_proto::v1::fetch_snapshot_reply::Header;
use lockstep_proto::v1::status_reply::Role as WireRole;

use crate::raft::ask::status::{
    CheckpointRecord, MachineStatus, NodeStatus, Restoring, Role, SealStatus, Status, VoterChange,
};
use crate::raft::{Fetched, Limits, LimitsChange, StatePart};
use crate::types::{LogIndex, MachineId, NodeId, StateDigest};

/// A machine.
pub(super) fn machine(status: MachineStatus) -> v1::Machine {
    v1::Machine {
        name: status.name,
        id: status.id.0,
        module_digest: Bytes::copy_from_slice(&status.module.0),
        guest_name: status.guest_name,
        schema_version: status.schema_version,
        uses_time: status.uses_time,
        memory_bytes: status.memory_bytes,
        fuel_last: status.fuel_use.last,
        fuel_highest: status.fuel_use.highest,
        applied_index: status.applied,
        parked: status.parked.unwrap_or_default(),
        limits: Some(limits(status.limits)),
        active_limits: status.active_limits.map(limits),
        restoring: status.restoring.map(restoring),
        checkpoint: status.checkpoint.map(checkpoint),
    }
}

/// A part of an export, from its message.
pub(super) fn state_part(message: &v1::ImportStateRequest) -> StatePart {
    StatePart {
        machine: MachineId(message.machine_id),
        number: message.number,
        bytes: message.bytes.to_vec(),
        last: message.last,
    }
}

fn restoring(Restoring { schema, parts }: Restoring) -> v1::Restoring {
    v1::Restoring { schema_version: schema, parts }
}

/// Limits, all of them.
fn limits(limits: Limits) -> v1::Limits {
    v1::Limits::from_values(limits.values().map(Some))
}

/// The other way: the limits that are given.
pub(super) fn limits_change(limits: &v1::Limits) -> LimitsChange {
    LimitsChange::from_values(limits.values())
}

/// The header of a snapshot that is fetched.
pub(super) fn fetched(fetched: &Fetched) -> Header {
    Header {
        cluster_id: Bytes::copy_from_slice(&fetched.cluster.0),
        index: fetched.last.index,
        term: fetched.last.term,
        leader: fetched.last.node.0,
        digest: Bytes::copy_from_slice(&fetched.digest.0),
        file_crc32c: fetched.file_crc32c,
        length: fetched.length,
    }
}

/// A node's view of itself and the cluster. On the wire 0 stands for "none" in indexes and ids.
pub(super) fn status(status: Status) -> v1::StatusReply {
    v1::StatusReply {
        node_id: status.node.0,
        cluster_id: status.cluster.map_or_else(Bytes::new, |id| Bytes::copy_from_slice(&id.0)),
        incarnation: Bytes::copy_from_slice(&status.incarnation.0),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        engine_profile: status.engine_profile,
        peer_addr: status.member.peer_addr,
        client_addr: status.member.client_addr,
        role: role(status.role).into(),
        term: status.term,
        leader_id: status.leader.map_or(0, |leader| leader.0),
        last_log_index: status.last_log.unwrap_or(0),
        committed_index: status.committed.unwrap_or(0),
        applied_index: status.applied.unwrap_or(0),
        snapshot_index: status.snapshot.unwrap_or(0),
        purged_index: status.purged.unwrap_or(0),
        nodes: status.nodes.into_iter().map(node).collect(),
        machines: status.machines.into_iter().map(machine).collect(),
        alarms: status.alarms,
        parked: status.parked.unwrap_or_default(),
        checkpoints: status.checkpoints.into_iter().map(checkpoint).collect(),
        halted: status.halted.unwrap_or_default(),
        replicated_profile: status.replicated_profile.unwrap_or_default(),
        sealed: status.sealed.map(sealed),
        voter_change: status.change.map(voter_change),
        snapshot_age_s: status.snapshot_age.map(|age| age.as_secs()),
    }
}

fn voter_change(change: VoterChange) -> v1::VoterChange {
    let ids = |nodes: BTreeSet<NodeId>| nodes.into_iter().map(|node| node.0).collect();
    v1::VoterChange { before: ids(change.before), after: ids(change.after) }
}

fn sealed(status: SealStatus) -> v1::Sealed {
    let count = |voters: usize| u32::try_from(voters).unwrap_or(u32::MAX);
    v1::Sealed {
        index: status.sealed.index,
        to: status.sealed.to,
        voters: count(status.voters),
        voters_ready: count(status.voters_ready),
    }
}

fn checkpoint((index, record): (LogIndex, CheckpointRecord)) -> v1::Checkpoint {
    let bytes = |digest: StateDigest| Bytes::copy_from_slice(&digest.0);
    let reports = record
        .reports
        .into_iter()
        .map(|(node, digest)| v1::CheckpointReport { node_id: node.0, digest: bytes(digest) });
    v1::Checkpoint {
        index,
        agreed: record.agreed.map(bytes).unwrap_or_default(),
        reports: reports.collect(),
    }
}

fn role(role: Role) -> WireRole {
    match role {
        Role::Uninitialized => WireRole::Uninitialized,
        Role::Learner => WireRole::Learner,
        Role::Follower => WireRole::Follower,
        Role::Candidate => WireRole::Candidate,
        Role::Leader => WireRole::Leader,
        Role::Stopped => WireRole::Stopped,
    }
}

fn node(status: NodeStatus) -> v1::Node {
    v1::Node {
        node_id: status.node.0,
        voter: status.voter,
        peer_addr: status.member.peer_addr,
        client_addr: status.member.client_addr,
        matched_index: status.matched.unwrap_or(0),
    }
}
