//! From the daemon's types to messages, and back where this node asks another on behalf of a
//! client. One function per type and direction; nothing here decides anything.

use std::collections::BTreeSet;

use bytes::Bytes;
use lockstep_client::{Outcome, reason};
use lockstep_proto::v1;
use lockstep_proto::v1::fetch_snapshot_reply::Header;
use lockstep_proto::v1::status_reply::Role as WireRole;

use crate::api::door::join::Newcomer;
use crate::api::door::{Class, Error};
use crate::raft::ask::status::{
    CheckpointRecord, FuelUse, MachineStatus, NodeStatus, Restoring, Role, SealStatus, Status,
    VoterChange,
};
use crate::raft::{ClusterLimits, Fetched, Limits, LimitsChange};
use crate::types::{
    ClusterId, Incarnation, LogIndex, MachineId, ModuleDigest, NodeId, StateDigest,
};

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

/// A machine, as the leader told of it.
pub(super) fn machine_status(machine: v1::Machine) -> Result<MachineStatus, Error> {
    Ok(MachineStatus {
        name: machine.name,
        id: MachineId(machine.id),
        module: module_digest(&machine.module_digest)?,
        guest_name: machine.guest_name,
        schema_version: machine.schema_version,
        uses_time: machine.uses_time,
        limits: all_limits(machine.limits)?,
        active_limits: machine.active_limits.map(|limits| all_limits(Some(limits))).transpose()?,
        memory_bytes: machine.memory_bytes,
        fuel_use: FuelUse { last: machine.fuel_last, highest: machine.fuel_highest },
        applied: machine.applied_index,
        parked: Some(machine.parked).filter(|reason| !reason.is_empty()),
        restoring: machine.restoring.map(|restoring| Restoring {
            schema: restoring.schema_version,
            parts: restoring.parts,
        }),
        checkpoint: machine.checkpoint.map(checkpoint_record).transpose()?,
    })
}

/// The digest of a module, as the leader told it.
pub(super) fn module_digest(bytes: &[u8]) -> Result<ModuleDigest, Error> {
    ModuleDigest::from_slice(bytes).ok_or_else(|| malformed("the digest of a module"))
}

fn all_limits(limits: Option<v1::Limits>) -> Result<Limits, Error> {
    let values = limits.unwrap_or_default().values();
    let all = values.iter().all(Option::is_some);
    let values = values.map(Option::unwrap_or_default);
    all.then(|| Limits::from_values(values)).ok_or_else(|| malformed("the limits of a machine"))
}

fn checkpoint_record(wire: v1::Checkpoint) -> Result<(LogIndex, CheckpointRecord), Error> {
    let digest = |bytes: &[u8]| {
        StateDigest::from_slice(bytes).ok_or_else(|| malformed("the digest of a checkpoint"))
    };
    let agreed = Some(&wire.agreed).filter(|bytes| !bytes.is_empty());
    let agreed = agreed.map(|bytes| digest(bytes)).transpose()?;
    let reports = wire.reports.iter();
    let reports = reports.map(|report| Ok((NodeId(report.node_id), digest(&report.digest)?)));
    Ok((wire.index, CheckpointRecord { reports: reports.collect::<Result<_, Error>>()?, agreed }))
}

/// The leader did what it was asked, and said something of it that makes no sense here.
fn malformed(what: &str) -> Error {
    let text = format!("the leader's answer cannot be read: {what}");
    Error::new(Class::Failed, reason::INTERNAL, Outcome::Unknown, text)
}

/// A node that is to join, as it tells of itself.
pub(super) fn newcomer(status: v1::StatusReply) -> Newcomer {
    Newcomer {
        node: NodeId(status.node_id),
        incarnation: Incarnation::from_slice(&status.incarnation),
        cluster: ClusterId::from_slice(&status.cluster_id),
        has_stopped: status.role() == WireRole::Stopped,
        engine_profile: status.engine_profile,
        peer_addr: status.peer_addr,
        client_addr: status.client_addr,
    }
}

fn restoring(Restoring { schema, parts }: Restoring) -> v1::Restoring {
    v1::Restoring { schema_version: schema, parts }
}

/// Limits, all of them.
fn limits(limits: Limits) -> v1::Limits {
    v1::Limits::from_values(limits.values().map(Some))
}

/// The limits that are given.
pub(super) fn limits_change(limits: Option<v1::Limits>) -> LimitsChange {
    LimitsChange::from_values(limits.unwrap_or_default().values())
}

/// The other way.
pub(super) fn wire_limits_change(change: &LimitsChange) -> v1::Limits {
    v1::Limits::from_values(change.values())
}

/// What every node keeps to.
pub(super) fn wire_cluster_limits(limits: ClusterLimits) -> v1::ClusterLimits {
    let ClusterLimits { compile_work_max } = limits;
    v1::ClusterLimits { compile_work_max }
}

/// The other way.
pub(super) fn cluster_limits(limits: Option<v1::ClusterLimits>) -> ClusterLimits {
    let v1::ClusterLimits { compile_work_max } = limits.unwrap_or_default();
    ClusterLimits { compile_work_max }
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
        cluster_limits: Some(wire_cluster_limits(status.cluster_limits)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::LIMITS;

    /// A machine comes back from its message as it was, so that a leader's answer that is passed
    /// on says the same as the leader's own.
    #[test]
    fn a_machine_comes_back() {
        let digest = |byte: u8| StateDigest([byte; 32]);
        let reports = [(NodeId(1), digest(1)), (NodeId(2), digest(2))].into();
        let limits = Limits::from_values([1, 2, 3, 4, 5, 6, 7]);
        let full = MachineStatus {
            name: "kv".into(),
            id: MachineId(7),
            module: ModuleDigest([3; 32]),
            guest_name: "guest-kv".into(),
            schema_version: 2,
            uses_time: true,
            limits,
            active_limits: Some(Limits::default()),
            memory_bytes: 1 << 20,
            fuel_use: FuelUse { last: 5, highest: 6 },
            applied: 9,
            parked: Some("why".into()),
            restoring: Some(Restoring { schema: 4, parts: 5 }),
            checkpoint: Some((8, CheckpointRecord { reports, agreed: Some(digest(1)) })),
        };
        let bare = MachineStatus {
            active_limits: None,
            parked: None,
            restoring: None,
            checkpoint: Some((8, CheckpointRecord::default())),
            ..full.clone()
        };
        for status in [full.clone(), bare, MachineStatus { checkpoint: None, ..full.clone() }] {
            assert_eq!(machine_status(machine(status.clone())), Ok(status));
        }
        let wire = machine(full);
        let digest = v1::Machine { module_digest: "x".into(), ..wire.clone() };
        let limits = v1::Machine { limits: Some(v1::Limits::default()), ..wire };
        for wire in [v1::Machine::default(), digest, limits] {
            assert_eq!(machine_status(wire).unwrap_err().reason, reason::INTERNAL);
        }
    }

    /// The message has the limits of the table that the daemon has, in the same order; each arrives
    /// in its own place.
    #[test]
    fn limits_arrive() {
        assert_eq!(v1::Limits::NAMES, LIMITS.map(|limit| limit.name));
        let given = v1::Limits { memory_bytes_max: Some(1), ..v1::Limits::default() };
        let expected = LimitsChange { memory_bytes_max: Some(1), ..LimitsChange::default() };
        assert_eq!(limits_change(Some(given)), expected);
        assert_eq!(wire_limits_change(&expected), given);
        assert_eq!(limits_change(None), LimitsChange::default());
    }
}
