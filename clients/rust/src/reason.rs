//! The reasons that Lockstep gives for an error: `ErrorInfo.reason` on the wire, [`Error::reason`]
//! in this library. The daemon and the client share them from here.
//!
//! [`Error::reason`]: crate::Error::reason

/// `ErrorInfo.domain` of every error of a Lockstep node.
pub const DOMAIN: &str = "lockstep";
/// Metadata key of the outcome class.
pub const OUTCOME: &str = "outcome";
/// Metadata key of the leader's node id.
pub const LEADER_ID: &str = "leader_id";
/// Metadata key of the address at which the leader serves clients.
pub const LEADER_ADDR: &str = "leader_addr";

/// Metadata key of the time after which to try again, in milliseconds; in a unary call's error it
/// stands in a `google.rpc.RetryInfo` as well.
pub const RETRY_AFTER_MS: &str = "retry_after_ms";
/// Metadata key of the index of the log entry that held a command that failed.
pub const LOG_INDEX: &str = "log_index";
/// Metadata key of the command's position in that entry, from 0 on.
pub const LOG_POSITION: &str = "log_position";

/// Another node leads.
pub const NOT_LEADER: &str = "NOT_LEADER";
/// No leader is known.
pub const NO_LEADER: &str = "NO_LEADER";
/// The node is in no cluster.
pub const UNINITIALIZED: &str = "UNINITIALIZED";
/// The node is in a cluster already.
pub const ALREADY_INITIALIZED: &str = "ALREADY_INITIALIZED";
/// Too much waits already.
pub const OVERLOADED: &str = "OVERLOADED";
/// The disk is nearly full.
pub const DISK_FULL: &str = "DISK_FULL";
/// The voters' states differ and no majority agrees: writes have stopped.
pub const HALTED: &str = "HALTED";
/// The engine of the cluster changes: writes go on once a majority runs the new build.
pub const SEALED: &str = "SEALED";
/// The request is malformed, whatever the state.
pub const BAD_REQUEST: &str = "BAD_REQUEST";
/// The request carries a session, which this version does not have.
pub const SESSIONS_UNSUPPORTED: &str = "SESSIONS_UNSUPPORTED";
/// A command, query, module or reply is over its limit.
pub const TOO_LARGE: &str = "TOO_LARGE";
/// No machine has this name.
pub const NO_SUCH_MACHINE: &str = "NO_SUCH_MACHINE";
/// A machine of this name exists.
pub const MACHINE_EXISTS: &str = "MACHINE_EXISTS";
/// The state of the machine is still coming in.
pub const RESTORING: &str = "RESTORING";
/// The state of the machine is complete: no part of an export is taken in any more.
pub const NOT_RESTORING: &str = "NOT_RESTORING";
/// The guest did not take in a part of an export, and its machine is gone.
pub const IMPORT_FAILED: &str = "IMPORT_FAILED";
/// The module is none that a cluster can run.
pub const MODULE_REFUSED: &str = "MODULE_REFUSED";
/// The module was not uploaded, or not every voter compiled it.
pub const MODULE_NOT_READY: &str = "MODULE_NOT_READY";
/// The cluster's state forbids it.
pub const REFUSED: &str = "REFUSED";
/// The node applies nothing.
pub const PARKED: &str = "PARKED";
/// The node has just started and is catching up: ask another, or try again.
pub const RECOVERING: &str = "RECOVERING";
/// The guest trapped.
pub const GUEST_TRAP: &str = "GUEST_TRAP";
/// The guest used more fuel than its limit.
pub const OUT_OF_FUEL: &str = "OUT_OF_FUEL";
/// The guest's reply is over its limit.
pub const REPLY_TOO_LARGE: &str = "REPLY_TOO_LARGE";
/// The deadline passed.
pub const DEADLINE_EXCEEDED: &str = "DEADLINE_EXCEEDED";
/// Leadership was lost while the command was under way.
pub const LEADER_CHANGED: &str = "LEADER_CHANGED";
/// The node is stopping.
pub const SHUTTING_DOWN: &str = "SHUTTING_DOWN";
/// A broken invariant or a disk error stopped the node.
pub const STOPPED: &str = "STOPPED";

/// The node has no such method: it runs another version.
pub const UNIMPLEMENTED: &str = "UNIMPLEMENTED";
/// The node failed in a way that it has no other name for.
pub const INTERNAL: &str = "INTERNAL";

/// Said by the client itself: no connection could be made, so nothing was sent.
pub const UNREACHABLE: &str = "UNREACHABLE";
/// Said by the client itself: the connection broke after the request was sent.
pub const CONNECTION_LOST: &str = "CONNECTION_LOST";
/// Said by the client itself: an error without Lockstep's details.
pub const FOREIGN: &str = "FOREIGN";
