//! The replicated state as sections of a snapshot, and back (layout: docs/formats.md, "Snapshot
//! sections"). Where the bytes go and come from is the caller's: sections travel as `Piece`s
//! through bounded channels.
//!
//! Invariant: what is frozen is the state as of the last applied entry, because that happens inside
//! apply; it is sent while later entries are applied. Invariant: equal states are sent as equal
//! pieces, on every node.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::config::limits;
use crate::machine::HostFailure;
use crate::machine::guest::instance::Frozen;
use crate::machine::guest::thread::GuestHandle;
use crate::machine::library::ModuleLibrary;
use crate::machine::machines::{Environment, Machines, Running, describe, describe_failure};
use crate::machine::snapshot::unsent::{Retry, Unsent, had};
use crate::machine::tables::{MachineRecord, Tables};
use crate::types::{LogIndex, MachineId, ModuleDigest};
use crate::wasm::{self, Image, Limits};

/// Section of a module: a chunk with its `ModuleHead`, then its bytes, all or those staged so far.
pub const SECTION_MODULE: u8 = 1;
/// Section of a machine: a chunk with its `ExportHead`, then its guest's export.
pub const SECTION_EXPORT: u8 = 2;
/// Section that follows an export which is complete: a chunk with the machine's id. An export
/// without it was broken off by a failure of the guest.
pub const SECTION_EXPORT_END: u8 = 3;
/// Section of the tables: one chunk. The last section.
pub const SECTION_TABLES: u8 = 4;
// 5 was a kept export.
/// Section of a machine: a chunk with its `ImageHead`, then the blocks of its memory that are not
/// all zeros, each behind its offset.
pub const SECTION_IMAGE: u8 = 6;

/// Bytes of the offset before a block of an image.
const OFFSET_BYTES: usize = 8;

/// What a snapshot is made of, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A section of this kind begins.
    Begin(u8),
    /// The next chunk of the section.
    Chunk(Vec<u8>),
    /// The content is whole. A channel that closes before it was broken off.
    End,
}

/// What a machine's guest is rebuilt from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Its exact image, for a replica of the engine profile that made it.
    Images,
    /// Its own export, for a replica of the engine profile that the cluster was sealed for.
    Exports,
}

/// Head of a module's section.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::machine) struct ModuleHead {
    pub(in crate::machine) digest: ModuleDigest,
    pub(in crate::machine) length: u64,
}

/// Head of a machine's export.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::machine) struct ExportHead {
    pub(in crate::machine) machine: MachineId,
    pub(in crate::machine) name: String,
    pub(in crate::machine) module: ModuleDigest,
    pub(in crate::machine) schema: u32,
}

/// Head of a machine's image.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::machine) struct ImageHead {
    pub(in crate::machine) machine: MachineId,
    pub(in crate::machine) name: String,
    pub(in crate::machine) module: ModuleDigest,
    /// Length of its memory.
    memory_bytes: u64,
    /// Fuel of all calls that succeeded.
    fuel_used: u64,
    /// What its guest may use.
    pub(in crate::machine) limits: Limits,
}

/// The whole state as of one entry. It does not change any more.
pub struct FrozenState {
    tables: Tables,
    modules: Vec<FrozenModule>,
    guests: Vec<FrozenGuest>,
    library: Arc<dyn ModuleLibrary>,
}

struct FrozenModule {
    head: ModuleHead,
    /// What is staged of it, while that is not all.
    staged: Option<Vec<Bytes>>,
}

struct FrozenGuest {
    image: ImageHead,
    /// None while its state comes in.
    export: Option<ExportHead>,
    frozen: Frozen,
}

impl Machines {
    /// Freezes the state as it is. It takes as long as copying what changed of the guests' memory.
    pub async fn freeze(&mut self) -> Result<FrozenState, HostFailure> {
        let module =
            |(digest, record): (&ModuleDigest, &crate::machine::ModuleRecord)| FrozenModule {
                head: ModuleHead { digest: *digest, length: record.length },
                staged: self.staging.get(digest).cloned(),
            };
        let modules = self.tables.modules.iter().map(module).collect();
        let mut guests = Vec::with_capacity(self.running.len());
        for (machine, running) in &self.running {
            let frozen = running.guest.freeze().await?;
            guests.push(FrozenGuest::new(
                *machine,
                &self.tables.machines[machine],
                running,
                frozen,
            ));
        }
        assert_eq!(guests.len(), self.tables.machines.len(), "each machine is frozen");
        let library = Arc::clone(&self.environment.library);
        Ok(FrozenState { tables: self.tables.clone(), modules, guests, library })
    }

    /// Builds the state from the pieces of a snapshot; not live yet. The channel ends after the
    /// last piece; an error in it is the reader's and ends the restore.
    pub async fn restore(
        environment: Environment,
        source: Source,
        pieces: mpsc::Receiver<Result<Piece, String>>,
    ) -> Result<Self, HostFailure> {
        let mut machines = Self::empty(environment);
        let mut sections = Sections::new(pieces);
        let mut limits = BTreeMap::new();
        let mut complete = false;
        while let Some((kind, head)) = sections.begin().await? {
            if complete {
                return Err(malformed("a section behind the tables"));
            }
            match kind {
                SECTION_MODULE => machines.restore_module(decode(&head)?, &mut sections).await?,
                SECTION_EXPORT if source == Source::Exports => {
                    let head: ExportHead = decode(&head)?;
                    let limits = limits.remove(&head.machine);
                    let limits = limits.ok_or_else(|| malformed("an export without an image"))?;
                    machines.import_guest(&head, limits, &mut sections).await?;
                }
                SECTION_IMAGE => {
                    let head: ImageHead = decode(&head)?;
                    let found = head.limits.check();
                    found.map_err(|error| malformed(&format!("of an image, {error}")))?;
                    if source == Source::Images {
                        machines.restore_guest(head, &mut sections).await?;
                    } else {
                        limits.insert(head.machine, head.limits);
                        sections.skip().await?;
                    }
                }
                SECTION_EXPORT | SECTION_EXPORT_END => sections.skip().await?,
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
                self.staging.insert(head.digest, vec![bytes.into()]);
                Ok(())
            }
            Ordering::Equal => match self.keep_module(head.digest, bytes).await? {
                Ok(()) => Ok(()),
                Err(refusal) => Err(HostFailure::Stop(refusal.to_string())),
            },
        }
    }

    /// Starts a guest in the state of its image.
    async fn restore_guest(
        &mut self,
        head: ImageHead,
        sections: &mut Sections,
    ) -> Result<(), HostFailure> {
        let failed = |reason: String| {
            HostFailure::Stop(format!("machine {:?} cannot be restored: {reason}", head.name))
        };
        let image = restore_image(head.memory_bytes, sections).await?;
        let blueprint = self.blueprint(head.module, head.limits).await;
        let (blueprint, manifest) = blueprint.map_err(|failure| failed(failure.to_string()))?;
        let guest = GuestHandle::restore(&head.name, blueprint, image, head.fuel_used).await;
        let guest = guest.map_err(|failure| failed(describe_failure(&failure)))?;
        self.running.insert(head.machine, Running { guest, manifest, limits: head.limits });
        Ok(())
    }

    /// Exactly the machines in the tables have come with their guest's state.
    fn check_complete(&self) -> Result<(), HostFailure> {
        // How far the log is applied is not in the tables: `go_live` asserts that as well.
        if let Some(rule) = self.tables.broken_rule(LogIndex::MAX) {
            return Err(malformed(&format!("its tables break the rule that {rule}")));
        }
        if let Some(digest) = self.misstaged() {
            return Err(malformed(&format!("not all that its tables tell of module {digest}")));
        }
        let is_other = |(id, running): (&MachineId, &Running)| {
            self.tables.machines.get(id).is_some_and(|record| record.limits != running.limits)
        };
        if self.running.iter().any(is_other) {
            return Err(malformed("a machine has other limits in its tables"));
        }
        if self.running.keys().any(|id| !self.tables.machines.contains_key(id)) {
            return Err(malformed("it has the state of a machine that does not exist"));
        }
        let missing = |(id, _): &(&MachineId, &MachineRecord)| !self.running.contains_key(id);
        match self.tables.machines.iter().find(missing) {
            None => Ok(()),
            Some((_, record)) => Err(HostFailure::Stop(format!(
                "the snapshot has no state of machine {:?}",
                record.name
            ))),
        }
    }
}

/// Puts an image together from its blocks.
async fn restore_image(bytes: u64, sections: &mut Sections) -> Result<Image, HostFailure> {
    let within = bytes <= limits::GUEST_MEMORY_BYTES_MAX;
    let length = usize::try_from(bytes)
        .ok()
        .filter(|length| within && length.is_multiple_of(wasm::PAGE_BYTES));
    let length = length.ok_or_else(|| malformed("an image of a length that no memory has"))?;
    let no_room = |error| HostFailure::Stop(format!("no memory for an image: {error}"));
    let mut image = Image::zeroed(length).map_err(no_room)?;
    while let Some(chunk) = sections.chunk().await? {
        let (offset, block) = chunk
            .split_first_chunk::<OFFSET_BYTES>()
            .ok_or_else(|| malformed("a block of an image without an offset"))?;
        let offset = usize::try_from(u64::from_le_bytes(*offset)).unwrap_or(usize::MAX);
        if !image.put(offset, block) {
            return Err(malformed("a block behind the end of its image"));
        }
    }
    Ok(image)
}

impl FrozenGuest {
    fn new(machine: MachineId, record: &MachineRecord, running: &Running, frozen: Frozen) -> Self {
        let (name, module) = (record.name.clone(), record.module);
        assert_eq!(running.limits, record.limits, "{machine:?} is frozen with its limits");
        let memory_bytes = u64::try_from(frozen.image().bytes()).expect("a length fits");
        let image = ImageHead {
            machine,
            name: name.clone(),
            module,
            memory_bytes,
            fuel_used: frozen.fuel_used(),
            limits: record.limits,
        };
        let export = ExportHead { machine, name, module, schema: running.manifest.schema_version };
        let export = Some(export).filter(|_| record.restoring.is_none());
        Self { image, export, frozen }
    }

    fn send_image(&self, pieces: &Pieces) -> Result<(), HostFailure> {
        pieces.begin(SECTION_IMAGE, encode(&self.image))?;
        let image = self.frozen.image();
        let failed = |error| HostFailure::Stop(format!("cannot read an image: {error}"));
        let mut end = 0;
        for block in image.blocks().map_err(failed)? {
            assert!(block.end <= image.bytes(), "a block lies in its image: {block:?}");
            assert!(end <= block.start, "blocks are sent in order, each once: {block:?} at {end}");
            assert!(!block.is_empty(), "a block has bytes: {block:?}");
            end = block.end;
            let offset = u64::try_from(block.start).expect("a length fits");
            let mut chunk = Vec::with_capacity(OFFSET_BYTES + block.len());
            chunk.extend_from_slice(&offset.to_le_bytes());
            chunk.extend_from_slice(&image.contents()[block]);
            pieces.send(Piece::Chunk(chunk))?;
        }
        Ok(())
    }

    /// Sends the guest's own export. Why there is none, if the guest fails.
    fn send_export(&self, pieces: &Pieces, retry: &mut Retry) -> Result<Option<String>, Unsent> {
        let Some(export) = &self.export else { return Ok(None) };
        let fork = had(retry, || {
            self.frozen.fork().map_err(|failure| Unsent::Lacks(failure.to_string()))
        })?;
        pieces.begin(SECTION_EXPORT, encode(export))?;
        let mut sink = |chunk| pieces.send(Piece::Chunk(chunk)).is_ok();
        let Err(outcome) = Frozen::export_on(fork, &mut sink)? else {
            pieces.begin(SECTION_EXPORT_END, encode(&export.machine))?;
            return Ok(None);
        };
        let reason = describe(&outcome);
        let name = &export.name;
        Ok(Some(format!("snapshots hold no export of machine {name}: {reason}")))
    }
}

impl FrozenState {
    /// Sends the whole state as pieces, from a thread of its own. The result is a sentence for each
    /// machine whose guest could not export its state. A receiver that goes away ends it with
    /// an error. What cannot be had is tried again as `retry` says.
    ///
    /// # Errors
    /// The system has no thread for it.
    pub fn send(
        self,
        pieces: mpsc::Sender<Piece>,
        mut retry: Retry,
    ) -> Result<oneshot::Receiver<Result<Vec<String>, Unsent>>, Unsent> {
        let (sent, done) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("snapshot-content".to_owned())
            .stack_size(wasm::THREAD_STACK_BYTES);
        let spawned = thread.spawn(move || {
            // Whoever waits is gone only when the node is stopping.
            let _ = sent.send(self.send_here(&Pieces(pieces), &mut retry));
        });
        let lacks = |error| Unsent::Lacks(format!("no thread for a snapshot: {error}"));
        spawned.map(|_| done).map_err(lacks)
    }

    fn send_here(self, pieces: &Pieces, retry: &mut Retry) -> Result<Vec<String>, Unsent> {
        for module in self.modules {
            let (digest, is_partial) = (module.head.digest, module.staged.is_some());
            let bytes = match module.staged {
                Some(staged) => staged.concat(),
                None => had(retry, || {
                    let read = self.library.get(&digest).map(Vec::from);
                    read.map_err(|error| unread(&digest, &error))
                })?,
            };
            let length = u64::try_from(bytes.len()).expect("a length in memory fits");
            let is_whole = length == module.head.length;
            assert!(
                is_whole != is_partial,
                "{length} bytes of module {digest}, of {:?}",
                module.head
            );
            pieces.begin(SECTION_MODULE, encode(&module.head))?;
            pieces.send(Piece::Chunk(bytes))?;
        }
        let mut failures = Vec::new();
        // Each image is let go as soon as it is not needed: the machine wants its room.
        for guest in self.guests {
            guest.send_image(pieces)?;
            failures.extend(guest.send_export(pieces, retry)?);
        }
        pieces.begin(SECTION_TABLES, encode(&self.tables))?;
        pieces.send(Piece::End)?;
        Ok(failures)
    }
}

fn unread(digest: &ModuleDigest, error: &io::Error) -> Unsent {
    let reason = format!("cannot read module {digest}: {error}");
    match error.kind() {
        io::ErrorKind::ResourceBusy => Unsent::Lacks(reason),
        _ => HostFailure::Stop(reason).into(),
    }
}

/// Where pieces go, from a thread that may block.
struct Pieces(mpsc::Sender<Piece>);

impl Pieces {
    fn begin(&self, kind: u8, head: Vec<u8>) -> Result<(), HostFailure> {
        self.send(Piece::Begin(kind))?;
        self.send(Piece::Chunk(head))
    }

    fn send(&self, piece: Piece) -> Result<(), HostFailure> {
        let stopped = |_| HostFailure::Stop("the snapshot's writer stopped".to_owned());
        self.0.blocking_send(piece).map_err(stopped)
    }
}

/// Reads pieces section by section.
pub(in crate::machine) struct Sections {
    pieces: mpsc::Receiver<Result<Piece, String>>,
    ahead: Option<Piece>,
}

impl Sections {
    fn new(pieces: mpsc::Receiver<Result<Piece, String>>) -> Self {
        Self { pieces, ahead: None }
    }

    async fn next(&mut self) -> Result<Option<Piece>, HostFailure> {
        match self.ahead.take() {
            Some(piece) => Ok(Some(piece)),
            None => self.pieces.recv().await.transpose().map_err(HostFailure::Stop),
        }
    }

    /// The next section's kind and first chunk, or none where the snapshot ends.
    async fn begin(&mut self) -> Result<Option<(u8, Vec<u8>)>, HostFailure> {
        let kind = match self.next().await? {
            None => return Ok(None),
            Some(Piece::Begin(kind)) => kind,
            Some(_) => return Err(malformed("a chunk outside a section")),
        };
        let head = self.chunk().await?.ok_or_else(|| malformed("a section without a head"))?;
        Ok(Some((kind, head)))
    }

    /// The next chunk of the section, or none where it ends.
    pub(in crate::machine) async fn chunk(&mut self) -> Result<Option<Vec<u8>>, HostFailure> {
        match self.next().await? {
            Some(Piece::Chunk(chunk)) => Ok(Some(chunk)),
            other => {
                self.ahead = other;
                Ok(None)
            }
        }
    }

    /// Passes over the rest of the section.
    async fn skip(&mut self) -> Result<(), HostFailure> {
        while self.chunk().await?.is_some() {}
        Ok(())
    }

    /// Where a section has ended: the kind of the next.
    pub(in crate::machine) fn next_kind(&self) -> Option<u8> {
        match &self.ahead {
            Some(Piece::Begin(kind)) => Some(*kind),
            _ => None,
        }
    }
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, bincode::config::standard())
        .expect("these types encode, and a buffer in memory grows")
}

pub(in crate::machine) fn decode<T: serde::de::DeserializeOwned>(
    bytes: &[u8],
) -> Result<T, HostFailure> {
    match bincode::serde::decode_from_slice(bytes, bincode::config::standard()) {
        Ok((value, length)) if length == bytes.len() => Ok(value),
        _ => Err(malformed("the head of a section is not what its kind says")),
    }
}

pub(in crate::machine) fn malformed(reason: &str) -> HostFailure {
    HostFailure::Stop(format!("the snapshot's content is malformed: {reason}"))
}
