//! Every limit and every setting of a node, each with its unit. Nothing else in the daemon holds
//! a number that an operator could want to know.
//!
//! `Config` comes from the command line and an optional TOML file; a key the file should not have
//! is an error that names it. `limits` are constants of this version: they are part of what
//! replicas must agree on, so an operator cannot set them apart. What one machine may use is set
//! through the log, within bounds that stand here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::types::{LogIndex, NodeId};

/// Limits that every replica shares. Changing one is a change of `apply_version`.
pub mod limits {
    /// Longest command or query, in bytes.
    pub const COMMAND_BYTES_MAX: usize = 1 << 20;
    /// Longest reply to one command or query, in bytes: the default of a machine, and the most that
    /// one can be given.
    pub const REPLY_BYTES_MAX: usize = 1 << 20;
    /// Commands in one log entry, at most.
    pub const ENTRY_COMMANDS_MAX: usize = 256;
    /// Bytes of replies with which a guest ends a call, and leaves the rest of its requests to the
    /// next (`apply` of the contract). With less it answers all.
    pub const CALL_REPLIES_BYTES: usize = 1 << 20;
    /// All replies of one call of a guest together, in bytes. Memory of the host.
    pub const REPLIES_BYTES_MAX: usize = 16 << 20;
    /// Bytes of replies after which no further command of an entry is executed: how long they are
    /// is known only then, and until they are sent the leader holds them. The last one may go
    /// beyond.
    pub const ENTRY_REPLIES_BYTES_MAX: usize = 16 << 20;
    /// Bytes of commands in one log entry, at most (one command always fits).
    pub const ENTRY_BYTES_MAX: usize = 2 << 20;
    /// Bytes of replies that one call of a guest is made for, as far as replies lately tell. What
    /// is beyond goes into the next entry or call; it changes no outcome.
    pub const CALL_REPLY_BYTES_EXPECTED: usize = 4 << 20;
    /// Longest module, in bytes.
    pub const MODULE_BYTES_MAX: usize = 32 << 20;
    /// Core modules in a module. `wit-component` makes two or three.
    pub const MODULE_CORE_MODULES_MAX: u64 = 32;
    /// Functions in a module. A whole JavaScript engine or Python has 10,000 to 30,000.
    pub const MODULE_FUNCTIONS_MAX: u64 = 100_000;
    /// Types of functions in a module. Those engines have below 1,000.
    pub const MODULE_TYPES_MAX: u64 = 10_000;
    /// Names that core modules import and export, all together.
    pub const MODULE_NAMES_MAX: u64 = 10_000;
    /// Globals in a module. Few guests have more than three.
    pub const MODULE_GLOBALS_MAX: u64 = 10_000;
    /// Data and element segments in a module. Pre-initialized modules have up to 10,000.
    pub const MODULE_SEGMENTS_MAX: u64 = 20_000;
    /// Items in all element segments of a module: functions that are called by pointer.
    pub const MODULE_SEGMENT_ITEMS_MAX: u64 = 100_000;
    /// Items that the component is wired with: types, instances, aliases, functions, names. A guest
    /// has about a hundred.
    pub const COMPONENT_ITEMS_MAX: u64 = 10_000;
    /// Locals of one function, in number, parameters not counted. The loop of an interpreter has
    /// below 1,000, unoptimized code some thousands.
    pub const FUNCTION_LOCALS_MAX: u32 = 10_000;
    /// Loops in one another. A compiler looks at all of them for each operator inside.
    pub const FUNCTION_LOOPS_DEEP_MAX: u64 = 100;
    /// Blocks of one function, branches to them, and calls by pointer. The loop of an interpreter
    /// has some 5,000.
    pub const FUNCTION_BRANCHES_MAX: u64 = 15_000;
    /// The same times what may live there: locals, and operands on the stack. A compiler keeps
    /// some 30 bytes for each. The loop of an interpreter has below 4 million.
    pub const FUNCTION_VALUES_MAX: u64 = 8_000_000;
    /// Branches times the assignments of locals that they skip or repeat, which meet where they
    /// lead. A compiler may take 25 bytes for each.
    pub const FUNCTION_MERGES_MAX: u64 = 20_000_000;
    /// Work of compiling all functions of a module, by estimate, where a cluster sets none. A unit
    /// is a millisecond of one processor at the worst, and less for most code.
    pub const COMPILE_WORK_MAX_DEFAULT: u64 = 10_000;
    /// Least limit for it: nothing that does anything is admitted.
    pub const COMPILE_WORK_MAX_MIN: u64 = 1;
    /// Most: a module that keeps a processor of each node busy for ten minutes at the worst.
    pub const COMPILE_WORK_MAX_MAX: u64 = 600_000;
    /// Code of one function, in bytes. The loop of an interpreter has below 200 KiB.
    pub const FUNCTION_BODY_BYTES_MAX: usize = 512 << 10;
    /// Modules whose bytes are not all there. One more takes the place of the one that was touched
    /// longest ago. Each is held in memory.
    pub const MODULES_PARTIAL_MAX: usize = 3;
    /// Modules that no machine runs. One more takes the place of the one that was touched longest
    /// ago.
    pub const MODULES_SPARE_MAX: usize = 16;
    /// Bytes of a module in one `StageModule` entry.
    pub const MODULE_CHUNK_BYTES: usize = 512 << 10;
    /// Why a node cannot run a module, in bytes; what is beyond is cut.
    pub const MODULE_FAILURE_BYTES_MAX: usize = 4 << 10;
    /// Longest entry, encoded, in bytes: commands, their lengths and one command beyond the limit
    /// of their sum. Every limit on the way of an entry is above it.
    pub const ENTRY_ENCODED_BYTES_MAX: usize = 4 << 20;
    /// Machines that may exist at once.
    pub const MACHINES_MAX: usize = 64;
    /// Fuel for one apply call, where a machine sets none. A unit is about one instruction: a loop
    /// without an end holds its node up for 0.2 to 0.5 s, which is no longer than an election.
    pub const FUEL_PER_COMMAND_DEFAULT: u64 = 500_000_000;
    /// Fuel for one query call, where a machine sets none: how long a command may have to wait for
    /// queries, some 40 to 100 ms.
    pub const FUEL_PER_QUERY_DEFAULT: u64 = 100_000_000;
    /// Least fuel for either: what the smallest of calls needs.
    pub const FUEL_MIN: u64 = 1_000_000;
    /// Most fuel for any call: a loop without an end holds its node up for a minute.
    pub const FUEL_MAX: u64 = 100_000_000_000;
    /// Fuel for one call of export or import, where a machine sets none.
    pub const FUEL_PER_EXPORT_STEP_DEFAULT: u64 = 20_000_000_000;
    /// Least fuel for that: a guest that serializes its state at once needs it for the whole.
    pub const FUEL_PER_EXPORT_STEP_MIN: u64 = 1_000_000_000;
    /// Linear memory of one guest, in bytes, where its machine sets none.
    pub const GUEST_MEMORY_BYTES_DEFAULT: u64 = 2 << 30;
    /// Least limit for it: one page.
    pub const GUEST_MEMORY_BYTES_MIN: u64 = 64 << 10;
    /// Most: what 32 bits address, but for the page that would end where they do.
    pub const GUEST_MEMORY_BYTES_MAX: u64 = (4 << 30) - (64 << 10);
    /// Linear memory of a guest while it is admitted, in bytes: what it may declare to start with,
    /// and what it may use to describe itself and in the self-test, which holds up to four copies.
    pub const ADMISSION_MEMORY_BYTES_MAX: u64 = 256 << 20;
    /// Fuel for a call of a guest while it is admitted, but for the probe commands.
    pub const ADMISSION_FUEL: u64 = 100_000_000;
    /// Fuel for making one instance: a start function runs again for each fork and each rollback.
    /// One without an end costs some 30 ms.
    pub const START_FUEL: u64 = 50_000_000;
    /// Fuel for a probe of the self-test: a command, or a query.
    pub const PROBE_FUEL: u64 = 50_000_000;
    /// Bytes of an export that the self-test takes in again; one that is longer it leaves alone.
    pub const PROBE_EXPORT_BYTES_MAX: u64 = 1 << 20;
    /// Fuel that a call of `log` takes beside what the guest does for it: what a call out of the
    /// sandbox takes, in time, of instructions.
    pub const LOG_FUEL: u64 = 2_000;
    /// Fuel for each byte of a line that is read, of the first lines of a call: they are checked,
    /// escaped and written.
    pub const LOG_FUEL_PER_BYTE: u64 = 32;
    /// Chunks of an export that may be as short as they like.
    pub const EXPORT_SMALL_CHUNKS_MAX: u64 = 1_000;
    /// Bytes that the others have at least, on average: each is a call of the guest.
    pub const EXPORT_CHUNK_BYTES_MIN: u64 = 1 << 10;
    /// Table elements of one guest, where its machine sets none.
    pub const GUEST_TABLE_ELEMENTS_DEFAULT: u64 = 20_000;
    /// Most table elements that a machine can be given; the host holds some 16 bytes for each.
    pub const GUEST_TABLE_ELEMENTS_MAX: u64 = 1_000_000;
    /// Length of a whole export, in bytes, where a machine sets none. It may be longer than the
    /// memory it is made from, but not without an end.
    pub const EXPORT_BYTES_DEFAULT: u64 = 8 << 30;
    /// Least limit for it: one chunk.
    pub const EXPORT_BYTES_MIN: u64 = EXPORT_CHUNK_BYTES as u64;
    /// Most.
    pub const EXPORT_BYTES_MAX: u64 = 16 << 30;
    /// Lines that one call of a guest may log; later ones are dropped. The last error among them
    /// stands in the text of a trap, which is replicated.
    pub const GUEST_LOG_LINES_PER_CALL_MAX: u32 = 16;
    /// Lines of one machine that a node writes in a second; later ones are counted.
    pub const GUEST_LOG_LINES_PER_SECOND_MAX: u32 = 64;
    /// Bytes of such a line, before what is unprintable is escaped; what is beyond is cut.
    pub const GUEST_LOG_LINE_BYTES_MAX: usize = 1024;
    /// Bytes that the host asks the guest for in one `export-next`.
    pub const EXPORT_CHUNK_BYTES: u32 = 256 << 10;
    /// Most bytes of an export that one log entry hands to a guest.
    pub const IMPORT_PART_BYTES_MAX: usize = 512 << 10;
    /// Native stack of a guest thread reserved for wasm, in bytes.
    pub const GUEST_STACK_BYTES: usize = 8 << 20;
}

/// With less a connection would have no room for the longest command and its reply.
const MEMORY_BUDGET_BYTES_MIN: usize = 128 << 20;

/// What can be set for one node. Defaults suit three nodes in one data centre.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's id; written to the identity file at the first start.
    pub node_id: NodeId,
    /// Folder that holds everything the node keeps.
    pub data_dir: PathBuf,
    /// Where clients and operators connect.
    pub client_addr: SocketAddr,
    /// Where the other nodes connect.
    pub peer_addr: SocketAddr,
    /// Listening on other than loopback without TLS was asked for.
    pub insecure: bool,
    /// Requests for the leader are passed on to it, one hop.
    pub forward: bool,
    /// What may also be set in the file.
    pub file: FileConfig,
}

/// The TOML file given by `--config`. Every key is optional.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileConfig {
    /// A node that has heard no leader for so long stands for election, or has done so already: it
    /// waits for three quarters of this at least. In milliseconds.
    pub election_timeout_ms: u64,
    /// Time between two heartbeats of a leader, in milliseconds.
    pub heartbeat_interval_ms: u64,
    /// A checkpoint is taken after this many bytes of log since the last.
    pub checkpoint_log_bytes: u64,
    /// A checkpoint is taken after this many entries since the last.
    pub checkpoint_log_entries: u64,
    /// A checkpoint is taken this many seconds after the last, if anything has changed.
    pub checkpoint_interval_s: u64,
    /// The snapshots on this disk are checked again after this many seconds.
    pub snapshot_check_interval_s: u64,
    /// Commands that may wait for their entry; above it a request is refused as OVERLOADED.
    pub proposer_queue_commands_max: usize,
    /// Bytes of commands that may wait for their entry.
    pub proposer_queue_bytes_max: usize,
    /// Entries of commands that may be on their way to commit at once.
    pub entries_in_flight_max: usize,
    /// Size at which a segment of the log is closed, in bytes.
    pub log_segment_bytes: u64,
    /// Log payloads kept in memory for lagging peers, in bytes.
    pub log_cache_bytes: usize,
    /// Writes are refused while the data folder has less room than this, in bytes.
    pub disk_reserve_bytes: u64,
    /// What the node may hold for others beside its guests, in bytes: requests and replies under
    /// way, and the windows of connections.
    pub memory_budget_bytes: usize,
    /// Connections of clients at once. The system's limit on open files may allow fewer.
    pub client_connections_max: usize,
    /// How long a request without a deadline of its own may take, in milliseconds.
    pub request_timeout_ms: u64,
    /// Another address for a peer than the membership's, by node id: for networks in which this
    /// node reaches it by another way.
    pub peer_reach: BTreeMap<String, String>,
    /// Ids of nodes that may call although no member that this node knows names them: for a node
    /// that was away while all others were replaced.
    pub trusted_peers: Vec<u64>,
    /// Log indexes of entries that no build can decode, and that all nodes shall skip. An entry
    /// that can be decoded is applied nevertheless.
    pub skip_entries: Vec<LogIndex>,
}

impl Default for FileConfig {
    fn default() -> Self {
        Self {
            election_timeout_ms: 1000,
            heartbeat_interval_ms: 100,
            checkpoint_log_bytes: 128 << 20,
            checkpoint_log_entries: 200_000,
            checkpoint_interval_s: 600,
            snapshot_check_interval_s: 3600,
            proposer_queue_commands_max: 65_536,
            proposer_queue_bytes_max: 64 << 20,
            entries_in_flight_max: 1,
            log_segment_bytes: 4 << 20,
            log_cache_bytes: 32 << 20,
            disk_reserve_bytes: 64 << 20,
            memory_budget_bytes: 1 << 30,
            client_connections_max: 512,
            request_timeout_ms: 5_000,
            peer_reach: BTreeMap::new(),
            trusted_peers: Vec::new(),
            skip_entries: Vec::new(),
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("cannot read the configuration file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what it should be; the text names the key and the line.
    #[error("configuration file {path}: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parser's message.
        reason: String,
    },
    /// A value is out of its range.
    #[error("configuration: {0}")]
    Value(String),
}

impl FileConfig {
    /// What requests and replies of clients may hold: half of the budget. The rest is for the
    /// windows of connections, peers, and what queues and caches hold.
    pub fn client_budget_bytes(&self) -> usize {
        self.memory_budget_bytes / 2
    }

    /// What messages of peers that are not whole may hold.
    pub fn peer_budget_bytes(&self) -> usize {
        self.memory_budget_bytes / 8
    }

    /// Reads and checks a TOML file.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let config: Self = toml::from_str(&text)
            .map_err(|error| Error::Parse { path: path.to_owned(), reason: error.to_string() })?;
        config.check()?;
        Ok(config)
    }

    /// Refuses values that could not work together.
    pub fn check(&self) -> Result<(), Error> {
        let value = |text: &str| Err(Error::Value(text.to_owned()));
        if self.heartbeat_interval_ms == 0 {
            return value("heartbeat_interval_ms must be above 0");
        }
        // A quarter of it is the shortest wait of openraft, which a heartbeat must come before.
        if self.election_timeout_ms / 4 <= self.heartbeat_interval_ms {
            return value("election_timeout_ms must be above four times heartbeat_interval_ms");
        }
        if self.checkpoint_log_bytes == 0 || self.checkpoint_log_entries == 0 {
            return value("checkpoint_log_bytes and checkpoint_log_entries must be above 0");
        }
        if self.checkpoint_interval_s == 0 || self.snapshot_check_interval_s == 0 {
            return value("checkpoint_interval_s and snapshot_check_interval_s must be above 0");
        }
        if self.entries_in_flight_max == 0 || self.proposer_queue_commands_max == 0 {
            return value("entries_in_flight_max and proposer_queue_commands_max must be above 0");
        }
        if self.memory_budget_bytes < MEMORY_BUDGET_BYTES_MIN {
            return value("memory_budget_bytes must be 128 MiB (134217728) or more");
        }
        if self.client_connections_max == 0 {
            return value("client_connections_max must be above 0");
        }
        if self.log_segment_bytes < 1 << 20 {
            return value("log_segment_bytes must be 1 MiB (1048576) or more");
        }
        if let Some(key) = self.peer_reach.keys().find(|key| key.parse::<u64>().is_err()) {
            return Err(Error::Value(format!("peer_reach: {key:?} is not a node id")));
        }
        Ok(())
    }
}
