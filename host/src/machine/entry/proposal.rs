//! What a log entry can say, and its bytes. An entry is encoded once; the same bytes go to disk
//! and to the peers (layout: docs/formats.md, "Log entries").
//!
//! Decoding trusts nothing: a wrong magic, length or checksum is an error, and so is every body
//! that its kind does not explain. Numbers of kinds are never reused.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::config::limits;
use crate::machine::entry::batch::Batch;
use crate::machine::tables::agreement::CheckpointReport;
use crate::machine::tables::cluster_limits::ClusterLimits;
use crate::types::{MachineId, ModuleDigest, NodeId, TimeMs};
use crate::wasm::{Limits, LimitsChange};

/// `LS`, the first two bytes of every entry.
const MAGIC: u16 = u16::from_le_bytes(*b"LS");
/// Version of the envelope and of the bodies.
const VERSION: u8 = 1;
/// Bytes before the body: magic, version, kind, body length, checksum.
pub const ENVELOPE_BYTES: usize = 12;

/// Number of each kind on disk and wire. Those without a variant in `Proposal` are reserved for
/// later versions: a node that meets one parks, because it cannot apply it as the others do.
mod kind {
    pub(in crate::machine) const COMMANDS: u8 = 1;
    pub(in crate::machine) const TICK: u8 = 2;
    pub(in crate::machine) const STAGE_MODULE: u8 = 3;
    pub(in crate::machine) const MODULE_READY: u8 = 4;
    pub(in crate::machine) const CREATE_MACHINE: u8 = 5;
    // 6 UpgradeMachine, 7 RollbackMachine
    pub(in crate::machine) const REMOVE_MACHINE: u8 = 8;
    // 9 OpenSession, 10 KeepAlive, 11 ExpireSessions
    pub(in crate::machine) const CHECKPOINT: u8 = 12;
    pub(in crate::machine) const CHECKPOINT_REPORT: u8 = 13;
    pub(in crate::machine) const SET_LIMITS: u8 = 14;
    pub(in crate::machine) const ENGINE_PROFILE: u8 = 15;
    pub(in crate::machine) const SEAL: u8 = 16;
    pub(in crate::machine) const BEGIN_RESTORE: u8 = 17;
    pub(in crate::machine) const IMPORT_STATE: u8 = 18;
    pub(in crate::machine) const SET_CLUSTER_LIMITS: u8 = 19;
}

/// One log entry of the replicated state machine. Membership and blank entries are openraft's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proposal {
    /// Commands, grouped into batches; each batch is one apply call.
    Commands {
        /// The leader's time, never before that of an earlier entry.
        time_ms: TimeMs,
        /// Applied in this order.
        batches: Vec<Batch>,
    },
    /// Moves the replicated time on, so that queries see it pass.
    Tick {
        /// The leader's time.
        time_ms: TimeMs,
    },
    /// A piece of a module, in order, so that every node has its bytes.
    StageModule(ModuleChunk),
    /// A voter has, or has not, compiled a staged module.
    ModuleReady(ModuleReport),
    /// Creates a machine; its id is the index of this entry.
    CreateMachine {
        /// Its name, unique among machines.
        name: String,
        /// Its module, staged before.
        module: ModuleDigest,
        /// What its guest may use.
        limits: Limits,
    },
    /// Removes a machine and its state.
    RemoveMachine {
        /// The machine.
        machine: MachineId,
    },
    /// All nodes take a snapshot of the state as of this entry.
    Checkpoint,
    /// Changes what the guest of a machine may use, from the next entry on.
    SetLimits {
        /// The machine.
        machine: MachineId,
        /// What changes.
        change: LimitsChange,
    },
    /// Changes what every node keeps to, from the next entry on.
    SetClusterLimits(ClusterLimits),
    /// A node says which state its snapshot of a checkpoint holds.
    CheckpointReport(CheckpointReport),
    /// The engine profile that replicas of this cluster apply with; the first one stands, until a
    /// `Seal`, which the next one ends.
    EngineProfile(String),
    /// Creates a machine whose state comes in by `ImportState`; its id is the index of this entry.
    /// Until that is complete it takes no commands and no queries.
    BeginRestore {
        /// Its name, unique among machines.
        name: String,
        /// Its module, staged before.
        module: ModuleDigest,
        /// What its guest may use.
        limits: Limits,
        /// Version of the state that comes in, one that the module imports.
        schema: u32,
    },
    /// Hands a machine that is being restored a part of an export.
    ImportState(StatePart),
    /// All nodes take a snapshot, and nothing is written until the engine profile is decided.
    Seal {
        /// The engine profile that the cluster shall go on with.
        to: String,
    },
}

/// A part of an export on its way into a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatePart {
    /// The machine.
    pub machine: MachineId,
    /// Its number, from 0 on. One that is in already changes nothing, so that it may be sent again
    /// when nobody knows what became of it.
    pub number: u64,
    /// The part, with the boundaries that it was exported with.
    pub bytes: Vec<u8>,
    /// No other follows.
    pub last: bool,
}

/// A piece of a module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleChunk {
    /// SHA-256 of the whole module.
    pub digest: ModuleDigest,
    /// Length of the whole module, in bytes.
    pub length: u64,
    /// Where this piece begins; pieces come in order.
    pub offset: u64,
    /// The piece.
    pub bytes: Vec<u8>,
}

/// What a node says of a staged module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleReport {
    /// The module.
    pub digest: ModuleDigest,
    /// Who says so.
    pub node: NodeId,
    /// `None` when it compiled, else why it cannot be run there.
    pub failure: Option<String>,
}

/// Why bytes are not a proposal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes are damaged or were never an entry.
    #[error("not a log entry: {0}")]
    Malformed(&'static str),
    /// A later version of Lockstep wrote it.
    #[error("a log entry of version {version}, kind {kind}: this node runs an older Lockstep")]
    Unknown {
        /// Version in the envelope.
        version: u8,
        /// Kind in the envelope.
        kind: u8,
    },
}

impl Proposal {
    /// The entry's bytes, envelope included.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(ENVELOPE_BYTES + self.body_bytes());
        out.put_bytes(0, ENVELOPE_BYTES);
        self.put_body(&mut out);
        let length = u32::try_from(out.len() - ENVELOPE_BYTES)
            .expect("the proposer bounds entries far below 4 GiB");
        let mut envelope = [0; ENVELOPE_BYTES];
        envelope[..2].copy_from_slice(&MAGIC.to_le_bytes());
        envelope[2] = VERSION;
        envelope[3] = self.kind();
        envelope[4..8].copy_from_slice(&length.to_le_bytes());
        let checksum = checksum(&envelope[..8], &out[ENVELOPE_BYTES..]);
        envelope[8..].copy_from_slice(&checksum.to_le_bytes());
        if let Self::Commands { .. } = self {
            assert_eq!(out.len(), ENVELOPE_BYTES + self.body_bytes(), "the length of an entry");
        }
        out[..ENVELOPE_BYTES].copy_from_slice(&envelope);
        out.freeze()
    }

    /// Checks the envelope and takes the entry apart; the commands' bytes are not copied.
    pub fn decode(bytes: &Bytes) -> Result<Self, Error> {
        let (version, kind) = check_envelope(bytes)?;
        let body = bytes.slice(ENVELOPE_BYTES..);
        match kind {
            _ if version != VERSION => Err(Error::Unknown { version, kind }),
            kind::COMMANDS => decode_commands(body),
            kind::TICK => Ok(Self::Tick { time_ms: from_bincode(&body)? }),
            kind::STAGE_MODULE => Ok(Self::StageModule(from_bincode(&body)?)),
            kind::MODULE_READY => Ok(Self::ModuleReady(from_bincode(&body)?)),
            kind::CREATE_MACHINE => {
                let (name, module, limits) = from_bincode(&body)?;
                Ok(Self::CreateMachine { name, module, limits })
            }
            kind::REMOVE_MACHINE => Ok(Self::RemoveMachine { machine: from_bincode(&body)? }),
            kind::CHECKPOINT if body.is_empty() => Ok(Self::Checkpoint),
            kind::CHECKPOINT => Err(Error::Malformed("a checkpoint has no body")),
            kind::SET_LIMITS => {
                let (machine, change) = from_bincode(&body)?;
                Ok(Self::SetLimits { machine, change })
            }
            kind::CHECKPOINT_REPORT => Ok(Self::CheckpointReport(from_bincode(&body)?)),
            kind::ENGINE_PROFILE => Ok(Self::EngineProfile(from_bincode(&body)?)),
            kind::BEGIN_RESTORE => {
                let (name, module, limits, schema) = from_bincode(&body)?;
                Ok(Self::BeginRestore { name, module, limits, schema })
            }
            kind::IMPORT_STATE => Ok(Self::ImportState(from_bincode(&body)?)),
            kind::SET_CLUSTER_LIMITS => Ok(Self::SetClusterLimits(from_bincode(&body)?)),
            kind::SEAL => Ok(Self::Seal { to: from_bincode(&body)? }),
            0 => Err(Error::Malformed("kind 0")),
            _ => Err(Error::Unknown { version, kind }),
        }
    }

    /// Whether it is refused while writes have stopped: what changes the state that nodes differ
    /// in. What can settle the difference goes on.
    pub fn is_write(&self) -> bool {
        match self {
            Self::Commands { .. }
            | Self::Tick { .. }
            | Self::StageModule(_)
            | Self::CreateMachine { .. }
            | Self::RemoveMachine { .. }
            | Self::SetLimits { .. }
            | Self::SetClusterLimits(_)
            | Self::BeginRestore { .. }
            | Self::ImportState(_)
            | Self::Seal { .. } => true,
            Self::ModuleReady(_)
            | Self::Checkpoint
            | Self::CheckpointReport(_)
            | Self::EngineProfile(_) => false,
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Commands { .. } => kind::COMMANDS,
            Self::Tick { .. } => kind::TICK,
            Self::StageModule(_) => kind::STAGE_MODULE,
            Self::ModuleReady(_) => kind::MODULE_READY,
            Self::CreateMachine { .. } => kind::CREATE_MACHINE,
            Self::RemoveMachine { .. } => kind::REMOVE_MACHINE,
            Self::Checkpoint => kind::CHECKPOINT,
            Self::SetLimits { .. } => kind::SET_LIMITS,
            Self::SetClusterLimits(_) => kind::SET_CLUSTER_LIMITS,
            Self::CheckpointReport(_) => kind::CHECKPOINT_REPORT,
            Self::EngineProfile(_) => kind::ENGINE_PROFILE,
            Self::BeginRestore { .. } => kind::BEGIN_RESTORE,
            Self::ImportState(_) => kind::IMPORT_STATE,
            Self::Seal { .. } => kind::SEAL,
        }
    }

    /// A guess at the body's length that spares growing the buffer.
    fn body_bytes(&self) -> usize {
        match self {
            Self::Commands { batches, .. } => {
                12 + batches.iter().map(Batch::encoded_bytes).sum::<usize>()
            }
            Self::StageModule(chunk) => 64 + chunk.bytes.len(),
            Self::ImportState(part) => 64 + part.bytes.len(),
            _ => 128,
        }
    }

    fn put_body(&self, out: &mut BytesMut) {
        match self {
            Self::Commands { time_ms, batches } => {
                out.put_u64_le(*time_ms);
                let count = u32::try_from(batches.len()).expect("fewer batches than commands");
                out.put_u32_le(count);
                batches.iter().for_each(|batch| batch.put(out));
            }
            Self::Tick { time_ms } => put_bincode(out, time_ms),
            Self::StageModule(chunk) => put_bincode(out, chunk),
            Self::ModuleReady(report) => put_bincode(out, report),
            Self::CreateMachine { name, module, limits } => {
                put_bincode(out, &(name, module, limits));
            }
            Self::RemoveMachine { machine } => put_bincode(out, machine),
            Self::Checkpoint => {}
            Self::SetLimits { machine, change } => put_bincode(out, &(machine, change)),
            Self::SetClusterLimits(limits) => put_bincode(out, limits),
            Self::CheckpointReport(report) => put_bincode(out, report),
            Self::EngineProfile(profile) => put_bincode(out, profile),
            Self::BeginRestore { name, module, limits, schema } => {
                put_bincode(out, &(name, module, limits, schema));
            }
            Self::ImportState(part) => put_bincode(out, part),
            Self::Seal { to } => put_bincode(out, to),
        }
    }
}

/// Checks everything that is around a body; the version and the kind.
fn check_envelope(bytes: &[u8]) -> Result<(u8, u8), Error> {
    let (envelope, body) = bytes
        .split_first_chunk::<ENVELOPE_BYTES>()
        .ok_or(Error::Malformed("shorter than its envelope"))?;
    let u32_at = |at: usize| {
        u32::from_le_bytes([envelope[at], envelope[at + 1], envelope[at + 2], envelope[at + 3]])
    };
    if envelope[..2] != MAGIC.to_le_bytes() {
        return Err(Error::Malformed("wrong magic"));
    }
    if usize::try_from(u32_at(4)) != Ok(body.len()) {
        return Err(Error::Malformed("wrong length"));
    }
    if u32_at(8) != checksum(&envelope[..8], body) {
        return Err(Error::Malformed("wrong checksum"));
    }
    Ok((envelope[2], envelope[3]))
}

fn checksum(head: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), body)
}

fn decode_commands(mut body: Bytes) -> Result<Proposal, Error> {
    if body.len() < 12 {
        return Err(Error::Malformed("commands without a time"));
    }
    let head = body.split_to(12);
    let time_ms = u64::from_le_bytes(head[..8].try_into().expect("eight bytes"));
    let count = u32::from_le_bytes(head[8..].try_into().expect("four bytes"));
    if usize::try_from(count).map_or(true, |count| count > limits::ENTRY_COMMANDS_MAX) {
        return Err(Error::Malformed("more batches than an entry may hold"));
    }
    let batches = (0..count).map(|_| Batch::take(&mut body)).collect::<Result<_, _>>()?;
    if body.is_empty() {
        Ok(Proposal::Commands { time_ms, batches })
    } else {
        Err(Error::Malformed("bytes behind the last batch"))
    }
}

fn put_bincode(out: &mut BytesMut, value: &impl Serialize) {
    bincode::serde::encode_into_std_write(value, &mut out.writer(), bincode::config::standard())
        .expect("these types encode, and a buffer in memory grows");
}

fn from_bincode<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    let limit = bincode::config::standard().with_limit::<{ limits::MODULE_BYTES_MAX }>();
    match bincode::serde::decode_from_slice(body, limit) {
        Ok((value, length)) if length == body.len() => Ok(value),
        Ok(_) => Err(Error::Malformed("bytes behind the body")),
        Err(_) => Err(Error::Malformed("a body that its kind does not explain")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Command, SessionSlot, StateDigest};

    fn slot() -> SessionSlot {
        SessionSlot { session: 9, sequence: 2, acknowledged_up_to: 1 }
    }

    fn batch(machine: u64, commands: &[&'static [u8]], session: Option<SessionSlot>) -> Batch {
        let commands = commands.iter().map(|bytes| Command {
            machine: MachineId(machine),
            session,
            bytes: Bytes::from_static(bytes),
        });
        Batch::new(MachineId(machine), &commands.collect::<Vec<_>>())
    }

    fn examples() -> Vec<Proposal> {
        let digest = ModuleDigest([7; 32]);
        let failure = Some("no".to_owned());
        vec![
            Proposal::Commands { time_ms: 1, batches: vec![] },
            Proposal::Commands {
                time_ms: u64::MAX,
                batches: vec![batch(1, &[b"a", b"", b"bc"], None), batch(2, &[b"x"], Some(slot()))],
            },
            Proposal::Tick { time_ms: 5 },
            Proposal::StageModule(ModuleChunk { digest, length: 3, offset: 1, bytes: vec![1, 2] }),
            Proposal::ModuleReady(ModuleReport { digest, node: NodeId(3), failure }),
            Proposal::CreateMachine {
                name: "kv".to_owned(),
                module: digest,
                limits: Limits::default(),
            },
            Proposal::RemoveMachine { machine: MachineId(77) },
            Proposal::Checkpoint,
            Proposal::SetLimits {
                machine: MachineId(9),
                change: LimitsChange { reply_bytes_max: Some(300), ..LimitsChange::default() },
            },
            Proposal::CheckpointReport(CheckpointReport {
                index: 300,
                node: NodeId(2),
                digest: StateDigest([9; 32]),
            }),
            Proposal::EngineProfile("0a1b".to_owned()),
            Proposal::BeginRestore {
                name: "kv".to_owned(),
                module: digest,
                limits: Limits::default(),
                schema: 300,
            },
            Proposal::ImportState(StatePart {
                machine: MachineId(900),
                number: 70_000,
                bytes: vec![3, 4],
                last: true,
            }),
            Proposal::Seal { to: "2c3d".to_owned() },
            Proposal::SetClusterLimits(ClusterLimits { compile_work_max: 70_000 }),
        ]
    }

    /// Every kind of entry comes back as it was.
    #[test]
    fn every_kind_round_trips() {
        for proposal in examples() {
            assert_eq!(Proposal::decode(&proposal.encode()), Ok(proposal));
        }
    }

    /// No single flipped bit of an entry goes unnoticed.
    #[test]
    fn every_bit_flip_is_noticed() {
        for proposal in examples() {
            let bytes = proposal.encode();
            for bit in 0..bytes.len() * 8 {
                let mut damaged = bytes.to_vec();
                damaged[bit / 8] ^= 1 << (bit % 8);
                let decoded = Proposal::decode(&Bytes::from(damaged));
                assert!(matches!(decoded, Err(Error::Malformed(_))), "bit {bit} of {proposal:?}");
            }
        }
    }

    /// An entry of a kind reserved for later versions is told apart from damage.
    #[test]
    fn a_reserved_kind_is_unknown_not_malformed() {
        for (version, kind) in [(VERSION, 11), (VERSION, 6), (VERSION + 1, 1)] {
            let mut bytes = Proposal::Checkpoint.encode().to_vec();
            bytes[2] = version;
            bytes[3] = kind;
            let checksum = checksum(&bytes[..8], &[]);
            bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
            let expected = Err(Error::Unknown { version, kind });
            assert_eq!(Proposal::decode(&Bytes::from(bytes)), expected);
        }
    }

    proptest! {
        /// A valid envelope around arbitrary bytes never panics the decoder.
        #[test]
        fn arbitrary_bodies_do_not_panic(
            kind in 0..=20u8,
            body in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut bytes = vec![0; ENVELOPE_BYTES];
            bytes[..2].copy_from_slice(&MAGIC.to_le_bytes());
            bytes[2] = VERSION;
            bytes[3] = kind;
            let length = u32::try_from(body.len()).unwrap();
            bytes[4..8].copy_from_slice(&length.to_le_bytes());
            let sum = checksum(&bytes[..8], &body);
            bytes[8..12].copy_from_slice(&sum.to_le_bytes());
            bytes.extend_from_slice(&body);
            let _ = Proposal::decode(&Bytes::from(bytes));
        }
    }
}
