//! The replicated state as sections of a snapshot, and back (layout: docs/formats.md, "Snapshot
//! sections"). Where the bytes go and come from is the caller's: sections travel as `Piece`s
//! through bounded channels, so that no state is ever in memory twice.
//!
//! Invariant: a capture holds the state as of the last applied entry, because it runs inside
//! apply; a guest's part of it is the guest's own export.

use std::cmp::Ordering;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::HostFailure;
use super::guest_thread::{CallFailure, ImportChunk};
use super::kept::{self, Previous};
use super::machines::{Environment, Machines};
use super::tables::MachineRecord;
use crate::types::{LogIndex, MachineId, ModuleDigest};

/// Section of a module: a chunk with its `ModuleHead`, then its bytes, all or those staged so far.
pub const SECTION_MODULE: u8 = 1;
/// Section of a machine: a chunk with its `ExportHead`, then its guest's export.
pub const SECTION_EXPORT: u8 = 2;
/// Section that follows an export which is complete: a chunk with the machine's id. An export
/// without it was broken off by a trap of the guest, and its machine is parked in the tables.
pub const SECTION_EXPORT_END: u8 = 3;
/// Section of the tables: one chunk. The last section, because an export can change the tables.
pub const SECTION_TABLES: u8 = 4;
/// Section of a parked machine: its last complete export, laid out as `SECTION_EXPORT` and carried
/// from snapshot to snapshot (`kept`).
pub const SECTION_KEPT: u8 = 5;

/// What a snapshot is made of, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A section of this kind begins.
    Begin(u8),
    /// The next chunk of the section.
    Chunk(Vec<u8>),
    /// The capture is whole. A channel that closes before it was broken off.
    End,
}

/// Head of a module's section.
#[derive(Debug, Serialize, Deserialize)]
struct ModuleHead {
    digest: ModuleDigest,
    length: u64,
}

/// Head of a machine's section.
#[derive(Debug, Serialize, Deserialize)]
struct ExportHead {
    machine: MachineId,
    name: String,
    module: ModuleDigest,
    schema: u32,
}

impl Machines {
    /// Sends the whole state as of `index` as pieces. A receiver that goes away stops it with an
    /// error. A guest whose export fails parks its machine, as a trap does anywhere else: on every
    /// node, because every node captures at the same index.
    pub async fn capture(
        &mut self,
        index: LogIndex,
        previous: Option<Previous>,
        pieces: &mpsc::Sender<Piece>,
    ) -> Result<(), HostFailure> {
        for (digest, record) in &self.tables.modules {
            let bytes = match self.staging.get(digest) {
                Some(staged) => staged.clone(),
                None => self.module_bytes(*digest).await?,
            };
            let head = ModuleHead { digest: *digest, length: record.length };
            send_section(pieces, SECTION_MODULE, [encode(&head), bytes]).await?;
        }
        let machines: Vec<MachineId> = self.running.keys().copied().collect();
        for machine in machines {
            self.capture_guest(machine, index, pieces).await?;
        }
        let parked = self.tables.parked_machines();
        if let Some(previous) = previous.filter(|_| !parked.is_empty()) {
            kept::carry(&parked, &previous, pieces).await?;
        }
        send_section(pieces, SECTION_TABLES, [encode(&self.tables)]).await?;
        send(pieces, Piece::End).await
    }

    async fn capture_guest(
        &mut self,
        machine: MachineId,
        index: LogIndex,
        pieces: &mpsc::Sender<Piece>,
    ) -> Result<(), HostFailure> {
        let record = &self.tables.machines[&machine];
        let running = &self.running[&machine];
        let head = ExportHead {
            machine,
            name: record.name.clone(),
            module: record.module,
            schema: running.manifest.schema_version,
        };
        send_section(pieces, SECTION_EXPORT, [encode(&head)]).await?;
        let sender = pieces.clone();
        let sink = move |chunk: Vec<u8>| sender.blocking_send(Piece::Chunk(chunk)).is_ok();
        let failure = match running.guest.export(Box::new(sink)).await {
            Ok(()) => return send_section(pieces, SECTION_EXPORT_END, [encode(&machine)]).await,
            Err(CallFailure::Guest(failure)) => failure,
            Err(CallFailure::Lost) => return Err(HostFailure::GuestLost),
        };
        self.park(machine, index, failure).map(drop)
    }

    async fn module_bytes(&self, digest: ModuleDigest) -> Result<Vec<u8>, HostFailure> {
        let library = Arc::clone(&self.environment.library);
        tokio::task::spawn_blocking(move || library.get(&digest))
            .await
            .map_err(HostFailure::panicked)?
            .map(Vec::from)
            .map_err(|error| HostFailure::Stop(format!("cannot read module {digest}: {error}")))
    }

    /// Builds the state from the pieces of a snapshot; not live yet. The channel ends after the
    /// last piece; an error in it is the reader's and ends the restore.
    pub async fn restore(
        environment: Environment,
        pieces: mpsc::Receiver<Result<Piece, String>>,
    ) -> Result<Self, HostFailure> {
        let mut machines = Self::empty(environment);
        let mut sections = Sections::new(pieces);
        let mut complete = false;
        while let Some((kind, head)) = sections.begin().await? {
            if complete {
                return Err(malformed("a section behind the tables"));
            }
            match kind {
                SECTION_MODULE => machines.restore_module(decode(&head)?, &mut sections).await?,
                SECTION_EXPORT => machines.restore_guest(decode(&head)?, &mut sections).await?,
                // What is kept of a parked machine stays in the file.
                SECTION_KEPT | SECTION_EXPORT_END => while sections.chunk().await?.is_some() {},
                SECTION_TABLES => {
                    machines.tables = decode(&head)?;
                    complete = true;
                }
                _ => return Err(malformed("a section of a kind this version does not know")),
            }
        }
        if !complete {
            return Err(malformed("it has no tables"));
        }
        machines.check_complete()?;
        Ok(machines)
    }

    async fn restore_module(
        &mut self,
        head: ModuleHead,
        sections: &mut Sections,
    ) -> Result<(), HostFailure> {
        let mut bytes = Vec::new();
        while let Some(chunk) = sections.chunk().await? {
            bytes.extend_from_slice(&chunk);
        }
        let staged = u64::try_from(bytes.len()).expect("a length in memory fits");
        match staged.cmp(&head.length) {
            Ordering::Greater => Err(malformed("a module is longer than its head says")),
            Ordering::Less => {
                self.staging.insert(head.digest, bytes);
                Ok(())
            }
            Ordering::Equal => match self.keep_module(head.digest, bytes).await? {
                Ok(()) => Ok(()),
                Err(refusal) => Err(HostFailure::Stop(refusal.to_string())),
            },
        }
    }

    /// Starts a guest and imports its export, unless that was broken off.
    async fn restore_guest(
        &mut self,
        head: ExportHead,
        sections: &mut Sections,
    ) -> Result<(), HostFailure> {
        let failed = |failure: CallFailure| {
            let CallFailure::Guest(failure) = failure else { return HostFailure::GuestLost };
            let reason = super::machines::describe_failure(&failure);
            HostFailure::Stop(format!("machine {:?} cannot be restored: {reason}", head.name))
        };
        let started = self.start(&head.name, head.module).await;
        let running = started.map_err(CallFailure::Guest).map_err(failed)?;
        let mut held = Vec::new();
        let mut chunks = 0_u64;
        while let Some(chunk) = sections.chunk().await? {
            let bytes = std::mem::replace(&mut held, chunk);
            if chunks > 0 {
                let import = ImportChunk { schema: head.schema, bytes, last: false };
                running.guest.import(import).await.map_err(failed)?;
            }
            chunks += 1;
        }
        if sections.take_export_end().await? == Some(head.machine) {
            let import = ImportChunk { schema: head.schema, bytes: held, last: true };
            running.guest.import(import).await.map_err(failed)?;
            self.running.insert(head.machine, running);
        }
        Ok(())
    }

    /// Exactly the machines that are not parked have come with their guest's state.
    fn check_complete(&self) -> Result<(), HostFailure> {
        let parked = |id: &MachineId| {
            self.tables.machines.get(id).is_none_or(|record| record.parked.is_some())
        };
        if self.running.keys().any(parked) {
            return Err(malformed("it has the state of a machine that does not run"));
        }
        let missing = |(id, record): &(&MachineId, &MachineRecord)| {
            record.parked.is_none() && !self.running.contains_key(id)
        };
        match self.tables.machines.iter().find(missing) {
            None => Ok(()),
            Some((_, record)) => Err(HostFailure::Stop(format!(
                "the snapshot has no state of machine {:?}",
                record.name
            ))),
        }
    }
}

/// Reads pieces section by section.
pub(super) struct Sections {
    pieces: mpsc::Receiver<Result<Piece, String>>,
    ahead: Option<Piece>,
}

impl Sections {
    pub(super) fn new(pieces: mpsc::Receiver<Result<Piece, String>>) -> Self {
        Self { pieces, ahead: None }
    }

    async fn next(&mut self) -> Result<Option<Piece>, HostFailure> {
        match self.ahead.take() {
            Some(piece) => Ok(Some(piece)),
            None => self.pieces.recv().await.transpose().map_err(HostFailure::Stop),
        }
    }

    /// The next section's kind and first chunk, or none where the snapshot ends.
    pub(super) async fn begin(&mut self) -> Result<Option<(u8, Vec<u8>)>, HostFailure> {
        let kind = match self.next().await? {
            None => return Ok(None),
            Some(Piece::Begin(kind)) => kind,
            Some(_) => return Err(malformed("a chunk outside a section")),
        };
        let head = self.chunk().await?.ok_or_else(|| malformed("a section without a head"))?;
        Ok(Some((kind, head)))
    }

    /// The next chunk of the section, or none where it ends.
    pub(super) async fn chunk(&mut self) -> Result<Option<Vec<u8>>, HostFailure> {
        match self.next().await? {
            Some(Piece::Chunk(chunk)) => Ok(Some(chunk)),
            other => {
                self.ahead = other;
                Ok(None)
            }
        }
    }

    /// Takes the section that marks an export complete, if it comes next.
    async fn take_export_end(&mut self) -> Result<Option<MachineId>, HostFailure> {
        match self.next().await? {
            Some(Piece::Begin(SECTION_EXPORT_END)) => match self.chunk().await? {
                Some(head) => decode(&head).map(Some),
                None => Err(malformed("a section without a head")),
            },
            other => {
                self.ahead = other;
                Ok(None)
            }
        }
    }
}

async fn send_section<const N: usize>(
    pieces: &mpsc::Sender<Piece>,
    kind: u8,
    chunks: [Vec<u8>; N],
) -> Result<(), HostFailure> {
    let begin = std::iter::once(Piece::Begin(kind));
    for piece in begin.chain(chunks.into_iter().map(Piece::Chunk)) {
        send(pieces, piece).await?;
    }
    Ok(())
}

pub(super) async fn send(pieces: &mpsc::Sender<Piece>, piece: Piece) -> Result<(), HostFailure> {
    let stopped = |_| HostFailure::Stop("the snapshot's writer stopped".to_owned());
    pieces.send(piece).await.map_err(stopped)
}

/// The machine whose export has this head.
pub(super) fn machine_of_export(head: &[u8]) -> Result<MachineId, HostFailure> {
    decode::<ExportHead>(head).map(|head| head.machine)
}

/// The chunk of the section that ends a machine's export.
pub(super) fn export_end_of(machine: MachineId) -> Vec<u8> {
    encode(&machine)
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, bincode::config::standard())
        .expect("these types encode, and a buffer in memory grows")
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, HostFailure> {
    match bincode::serde::decode_from_slice(bytes, bincode::config::standard()) {
        Ok((value, length)) if length == bytes.len() => Ok(value),
        _ => Err(malformed("the head of a section is not what its kind says")),
    }
}

fn malformed(reason: &str) -> HostFailure {
    HostFailure::Stop(format!("the snapshot's content is malformed: {reason}"))
}
