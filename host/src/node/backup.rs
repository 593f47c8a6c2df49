//! A snapshot file of any node of any cluster, as a backup that machines are rebuilt from. It is
//! read twice at least: whole, to check every byte before anything is done with it, then
//! for each thing that is wanted. It is never held in memory.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::machine::snapshot::backup::{Contents, Extract, SavedMachine, Survey, Wanted};
use crate::raft::store::snapshots::content::{for_each_piece, verify_pieces};
use crate::storage::snapshot::Snapshot;
use crate::types::{LogIndex, MachineId, ModuleDigest};

/// Chunks of an export that are read ahead.
const CHUNKS_AHEAD: usize = 16;

/// A snapshot file, all of which has been checked.
#[derive(Clone, Debug)]
pub struct Backup {
    snapshot: Snapshot,
    contents: Contents,
}

impl Backup {
    /// Reads and checks all of a file.
    ///
    /// # Errors
    /// When it is no snapshot, or is damaged; the text says where.
    pub async fn open(path: PathBuf) -> anyhow::Result<Self> {
        tokio::task::spawn_blocking(move || Self::read(&path)).await?
    }

    fn read(path: &std::path::Path) -> anyhow::Result<Self> {
        let snapshot = Snapshot::open_file(path)?;
        let mut survey = Survey::default();
        let mut surveyed = Ok(());
        verify_pieces(&snapshot, |piece| {
            surveyed = survey.add(&piece);
            surveyed.is_ok()
        })?;
        surveyed.with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { snapshot, contents: survey.finish() })
    }

    /// Index of the last log entry whose effects it holds.
    pub fn index(&self) -> Option<LogIndex> {
        self.snapshot.id().last.map(|last| last.index)
    }

    /// The machines in it, by their ids.
    pub fn machines(&self) -> impl Iterator<Item = &SavedMachine> {
        self.contents.machines.values()
    }

    /// The bytes of a module.
    ///
    /// # Errors
    /// When it is not in the file, or that cannot be read any more.
    pub async fn module(&self, digest: ModuleDigest) -> anyhow::Result<Vec<u8>> {
        let mut chunks = self.extract(Wanted::Module(digest));
        let mut module = Vec::new();
        while let Some(chunk) = chunks.recv().await {
            module.extend_from_slice(&chunk?);
        }
        if module.is_empty() {
            bail!("{} does not hold module {digest}", self.snapshot.path().display());
        }
        Ok(module)
    }

    /// The export of a machine, chunk by chunk. What can't be read any more ends it as an error.
    pub fn export(&self, machine: MachineId) -> mpsc::Receiver<anyhow::Result<Bytes>> {
        self.extract(Wanted::Export(machine))
    }

    fn extract(&self, wanted: Wanted) -> mpsc::Receiver<anyhow::Result<Bytes>> {
        let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
        let snapshot = self.snapshot.clone();
        // It ends with the file, or once nobody wants more.
        tokio::task::spawn_blocking(move || {
            if let Err(error) = send_chunks(&snapshot, wanted, &sender) {
                let _ = sender.blocking_send(Err(error));
            }
        });
        chunks
    }
}

fn send_chunks(
    snapshot: &Snapshot,
    wanted: Wanted,
    chunks: &mpsc::Sender<anyhow::Result<Bytes>>,
) -> anyhow::Result<()> {
    let mut extract = Extract::new(wanted);
    let mut extracted = Ok(());
    for_each_piece(snapshot, |piece| match extract.take(piece) {
        Ok(None) => !chunks.is_closed(),
        Ok(Some(chunk)) => chunks.blocking_send(Ok(Bytes::from(chunk))).is_ok(),
        Err(failure) => {
            extracted = Err(failure);
            false
        }
    })?;
    Ok(extracted?)
}
