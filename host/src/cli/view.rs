//! How nodes and machines look in text and in JSON. Scripts rely on the JSON keys: they are the
//! field names of `proto/admin.proto`, and `state` of a machine; ids as hexadecimal, and `null` for
//! what is not there.

use comfy_table::{CellAlignment, Table};
use lockstep_client::v1;
use lockstep_client::v1::status_reply::Role;
use serde_json::{Map, Value, json};

use super::output::say;
use crate::types::short;

/// The name of a role.
pub(super) fn role(role: i32) -> &'static str {
    match Role::try_from(role) {
        Ok(Role::Uninitialized) => "uninitialized",
        Ok(Role::Learner) => "learner",
        Ok(Role::Follower) => "follower",
        Ok(Role::Candidate) => "candidate",
        Ok(Role::Leader) => "leader",
        Ok(Role::Stopped) => "stopped",
        Err(_) => "unknown",
    }
}

/// A node's status.
pub(super) fn status_json(status: &v1::StatusReply) -> Value {
    let cluster = Some(hex::encode(&status.cluster_id)).filter(|id| !id.is_empty());
    let leader = Some(status.leader_id).filter(|id| *id != 0);
    json!({
        "node_id": status.node_id,
        "cluster_id": cluster,
        "incarnation": hex::encode(&status.incarnation),
        "version": status.version,
        "engine_profile": status.engine_profile,
        "peer_addr": status.peer_addr,
        "client_addr": status.client_addr,
        "role": role(status.role),
        "term": status.term,
        "leader_id": leader,
        "last_log_index": status.last_log_index,
        "committed_index": status.committed_index,
        "applied_index": status.applied_index,
        "snapshot_index": status.snapshot_index,
        "snapshot_age_s": status.snapshot_age_s,
        "purged_index": status.purged_index,
        "nodes": status.nodes.iter().map(node_json).collect::<Vec<_>>(),
        "machines": machines_json(&status.machines),
        "parked": Some(&status.parked).filter(|why| !why.is_empty()),
        "halted": Some(&status.halted).filter(|why| !why.is_empty()),
        "replicated_profile": Some(&status.replicated_profile).filter(|it| !it.is_empty()),
        "cluster_limits": status.cluster_limits.as_ref().map(cluster_limits_json),
        "sealed": status.sealed.as_ref().map(sealed_json),
        "voter_change": status.voter_change.as_ref().map(voter_change_json),
        "checkpoints": status.checkpoints.iter().map(checkpoint_json).collect::<Vec<_>>(),
        "alarms": status.alarms,
    })
}

pub(super) fn cluster_limits_json(limits: &v1::ClusterLimits) -> Value {
    json!({ "compile_work_max": limits.compile_work_max })
}

fn sealed_json(sealed: &v1::Sealed) -> Value {
    json!({
        "index": sealed.index,
        "to": sealed.to,
        "voters": sealed.voters,
        "voters_ready": sealed.voters_ready,
    })
}

fn voter_change_json(change: &v1::VoterChange) -> Value {
    json!({ "before": change.before, "after": change.after })
}

fn node_json(node: &v1::Node) -> Value {
    json!({
        "node_id": node.node_id,
        "voter": node.voter,
        "peer_addr": node.peer_addr,
        "client_addr": node.client_addr,
        "matched_index": node.matched_index,
    })
}

/// Machines.
pub(super) fn machines_json(machines: &[v1::Machine]) -> Value {
    machines.iter().map(machine_json).collect()
}

/// One machine.
pub(super) fn machine_json(machine: &v1::Machine) -> Value {
    let parked = Some(&machine.parked).filter(|why| !why.is_empty());
    json!({
        "name": machine.name,
        "id": machine.id,
        "module_digest": hex::encode(&machine.module_digest),
        "guest_name": machine.guest_name,
        "schema_version": machine.schema_version,
        "uses_time": machine.uses_time,
        "memory_bytes": machine.memory_bytes,
        "fuel_last": machine.fuel_last,
        "fuel_highest": machine.fuel_highest,
        "applied_index": machine.applied_index,
        "state": state(machine),
        "restoring": machine.restoring.as_ref().map(restoring_json),
        "parked": parked,
        "limits": machine.limits.as_ref().map(limits_json),
        "active_limits": machine.active_limits.as_ref().map(limits_json),
        "checkpoint": machine.checkpoint.as_ref().map(checkpoint_json),
    })
}

/// What a machine is doing, in a word.
fn state(machine: &v1::Machine) -> &'static str {
    match machine.restoring {
        _ if !machine.parked.is_empty() => "parked",
        Some(_) => "restoring",
        None => "running",
    }
}

/// What a machine is doing, in a line.
pub(super) fn state_text(machine: &v1::Machine) -> String {
    match (machine.parked.as_str(), &machine.restoring) {
        ("", None) => "running".to_owned(),
        ("", Some(restoring)) => format!("restoring ({} parts are in)", restoring.parts),
        (why, _) => format!("parked {why}"),
    }
}

fn restoring_json(restoring: &v1::Restoring) -> Value {
    json!({ "schema_version": restoring.schema_version, "parts": restoring.parts })
}

fn limits_json(limits: &v1::Limits) -> Value {
    let rows = super::limits::rows(limits);
    rows.map(|(name, value)| (name.to_owned(), json!(value))).collect::<Map<_, _>>().into()
}

/// A checkpoint: digests by node.
fn checkpoint_json(checkpoint: &v1::Checkpoint) -> Value {
    let reports = checkpoint.reports.iter();
    let reports =
        reports.map(|report| (report.node_id.to_string(), hex::encode(&report.digest).into()));
    json!({
        "index": checkpoint.index,
        "agreed": Some(hex::encode(&checkpoint.agreed)).filter(|digest| !digest.is_empty()),
        "reports": reports.collect::<Map<_, _>>(),
    })
}

/// What a node said last of a checkpoint, in a few characters: `300 0123456789ab`, and whether
/// that is what was agreed on.
fn last_report(status: &v1::StatusReply, node: u64) -> String {
    let reports = status.checkpoints.iter().rev().filter_map(|checkpoint| {
        let report = checkpoint.reports.iter().find(|report| report.node_id == node)?;
        let digest = hex::encode(&report.digest);
        Some(format!("{} {} {}", checkpoint.index, short(&digest), verdict(checkpoint, report)))
    });
    reports.into_iter().next().unwrap_or_else(|| "-".to_owned())
}

/// Whether what a node reported is what was agreed on.
fn verdict(checkpoint: &v1::Checkpoint, report: &v1::CheckpointReport) -> &'static str {
    match &checkpoint.agreed {
        agreed if *agreed == report.digest => "agreed",
        agreed if agreed.is_empty() => "open",
        _ => "DIFFERS",
    }
}

/// The last checkpoint, and what each node reported of it.
pub(super) fn print_checkpoint(checkpoint: Option<&v1::Checkpoint>) {
    let Some(checkpoint) = checkpoint else { return say!("checkpoint -") };
    say!("checkpoint {}", checkpoint.index);
    for report in &checkpoint.reports {
        let verdict = verdict(checkpoint, report);
        say!("  node {:<4} {} {verdict}", report.node_id, hex::encode(&report.digest));
    }
}

/// A table without lines, whose columns are as wide as what is in them.
pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(header);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// Moves numbers to the right of their columns.
pub(super) fn align_right(table: &mut Table, columns: impl IntoIterator<Item = usize>) {
    for column in columns {
        let column = table.column_mut(column).expect("the table has this column");
        column.set_cell_alignment(CellAlignment::Right);
    }
}

/// The membership as a table.
pub(super) fn print_nodes(status: &v1::StatusReply) {
    let mut nodes = table(&["NODE", "PART", "CLIENTS", "PEERS", "MATCHED", "CHECKPOINT"]);
    for node in &status.nodes {
        let part = match node.voter {
            true if node.node_id == status.leader_id => "leader",
            true => "voter",
            false => "learner",
        };
        let matched = match node.matched_index {
            0 => "-".to_owned(),
            index => index.to_string(),
        };
        nodes.add_row([
            node.node_id.to_string(),
            part.to_owned(),
            node.client_addr.clone(),
            node.peer_addr.clone(),
            matched,
            last_report(status, node.node_id),
        ]);
    }
    say!("{}", nodes.trim_fmt());
}

/// Machines as a table.
pub(super) fn print_machines(machines: &[v1::Machine]) {
    say!("{}", machines_table(machines).trim_fmt());
}

fn machines_table(machines: &[v1::Machine]) -> Table {
    let mut rows = table(&["MACHINE", "MODULE", "GUEST", "MEMORY", "APPLIED", "STATE"]);
    align_right(&mut rows, [3, 4]);
    for machine in machines {
        rows.add_row([
            machine.name.clone(),
            short(&hex::encode(&machine.module_digest)).to_owned(),
            format!("{} v{}", machine.guest_name, machine.schema_version),
            machine.memory_bytes.to_string(),
            machine.applied_index.to_string(),
            state_text(machine),
        ]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is not there is null, and the leader's id is a number.
    #[test]
    fn status_as_json() {
        let fresh = status_json(&v1::StatusReply::default());
        assert_eq!(fresh["cluster_id"], Value::Null);
        assert_eq!(fresh["leader_id"], Value::Null);
        assert_eq!(fresh["role"], "uninitialized");
        assert_eq!((&fresh["sealed"], &fresh["replicated_profile"]), (&Value::Null, &Value::Null));
        let led = v1::StatusReply {
            cluster_id: vec![0xab; 16].into(),
            leader_id: 2,
            role: Role::Follower.into(),
            machines: vec![v1::Machine { name: "kv".into(), ..v1::Machine::default() }],
            sealed: Some(v1::Sealed { index: 9, to: "p".into(), voters: 3, voters_ready: 1 }),
            voter_change: Some(v1::VoterChange { before: vec![1, 2], after: vec![1] }),
            ..v1::StatusReply::default()
        };
        let led = status_json(&led);
        assert_eq!(led["cluster_id"], "ab".repeat(16));
        assert_eq!(led["leader_id"], 2);
        let sealed = json!({ "index": 9, "to": "p", "voters": 3, "voters_ready": 1 });
        assert_eq!(led["sealed"], sealed);
        assert_eq!(led["voter_change"], json!({ "before": [1, 2], "after": [1] }));
        assert_eq!(led["machines"][0]["name"], "kv");
        assert_eq!(led["machines"][0]["parked"], Value::Null);
        assert_eq!(led["machines"][0]["state"], "running");
        assert_eq!(led["machines"][0]["limits"], Value::Null);
    }

    /// A machine shows both its limits and, while it runs, its guest's, each by the field's name.
    #[test]
    fn a_machine_as_json() {
        let limits = v1::Limits { reply_bytes_max: Some(7), ..v1::Limits::default() };
        let parked = machine_json(&v1::Machine {
            parked: "since log index 4: the guest ran out of fuel".to_owned(),
            limits: Some(limits),
            ..v1::Machine::default()
        });
        assert_eq!(parked["state"], "parked");
        assert_eq!(parked["parked"], "since log index 4: the guest ran out of fuel");
        assert_eq!(parked["limits"]["reply_bytes_max"], 7);
        assert_eq!(parked["limits"]["fuel_per_query"], Value::Null);
        assert_eq!(parked["active_limits"], Value::Null);
        assert_eq!(parked["restoring"], Value::Null);
        let half = v1::Machine {
            restoring: Some(v1::Restoring { schema_version: 1, parts: 3 }),
            ..v1::Machine::default()
        };
        assert_eq!(state_text(&half), "restoring (3 parts are in)");
        let half = machine_json(&half);
        assert_eq!((&half["state"], &half["restoring"]["parts"]), (&json!("restoring"), &json!(3)));
    }

    /// The longest name that a machine can have moves the columns of all rows, not of its own.
    #[test]
    fn columns_stand_below_each_other() {
        let machine = |name: String| v1::Machine {
            name,
            module_digest: vec![0xab; 32].into(),
            guest_name: "kv".into(),
            ..v1::Machine::default()
        };
        let table = machines_table(&[machine("kv".into()), machine("m".repeat(64))]).trim_fmt();
        let at: Vec<_> =
            table.lines().map(|line| line.find("abab").or(line.find("MODULE"))).collect();
        assert_eq!(at, [Some(66), Some(66), Some(66)], "{table}");
        assert!(table.lines().all(|line| line == line.trim_end()), "{table}");
    }
}
