//! Repairs a quarantined node while it is stopped: its snapshots go aside as evidence, the
//! newest one that the cluster agreed on takes their place, and the mark goes. The log and the
//! vote stay as they are, so the node forgets nothing that it promised.
//!
//! **Invariant:** the mark goes last. Broken off before, the repair is run again.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use lockstep_client::{Client, FetchedSnapshot};

use crate::config::FileConfig;
use crate::raft::snapshots::compute_digest;
use crate::storage::snapshot::{IncomingSnapshot, Snapshot, SnapshotDir, SnapshotId};
use crate::storage::{DataDir, Log, LogConfig, Quarantine};
use crate::types::{ClusterId, LogId, LogIndex, NodeId, StateDigest};

/// What a repair did.
#[derive(Debug)]
pub struct Repaired {
    /// The repaired node.
    pub node: NodeId,
    /// Index of the checkpoint that it goes on from.
    pub index: LogIndex,
    /// Where the evidence lies.
    pub evidence: PathBuf,
}

/// Repairs the node of a data folder with what the first of `healthy` nodes gives that can.
///
/// # Errors
/// Why nothing was changed: not quarantined, in use, or no node gave a fitting snapshot.
pub async fn repair(folder: PathBuf, healthy: Vec<Client>) -> anyhow::Result<Repaired> {
    let patient = blocking(move || Patient::open(&folder)).await?;
    let mut refusals = Vec::new();
    for client in &healthy {
        match fetch(&patient, client).await {
            Ok(fetched) => return blocking(move || patient.cure(&fetched)).await,
            Err(error) => refusals.push(format!("{error:#}")),
        }
    }
    bail!("no node gave a snapshot to repair with; nothing was changed: {}", refusals.join("; "))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await?
}

/// A stopped, quarantined node.
struct Patient {
    data_dir: DataDir,
    cluster: ClusterId,
    quarantine: Quarantine,
    purged: Option<LogIndex>,
    /// The entries that the log holds: their ids are compared with the snapshot's.
    log: Log,
    /// Where the snapshot arrives.
    staging: SnapshotDir,
}

impl Patient {
    fn open(folder: &Path) -> anyhow::Result<Self> {
        let data_dir = DataDir::open_existing(folder)?;
        let Some(quarantine) = data_dir.quarantine()? else {
            bail!("{} is not quarantined: there is nothing to repair", folder.display());
        };
        let cluster = data_dir.identity().cluster.context("the node is in no cluster")?;
        let log = Log::open(&data_dir.log(), &LogConfig::from(&FileConfig::default()))?;
        let purged = log.state()?.purged.map(|purged| purged.index);
        let staging = SnapshotDir::open(&data_dir.path().join("repair"))?;
        Ok(Self { data_dir, cluster, quarantine, purged, log, staging })
    }

    /// Refuses a snapshot that the log here doesn't lead on from, or of another cluster.
    fn check(&self, offered: &Offered) -> anyhow::Result<()> {
        let Offered { cluster, last, digest, .. } = offered;
        ensure!(*cluster == self.cluster, "it is of cluster {cluster}, this is {}", self.cluster);
        let index = last.index;
        ensure!(
            self.purged.is_none_or(|purged| purged <= index),
            "the log here starts after checkpoint {index}: take a checkpoint and try again"
        );
        let found = &self.quarantine;
        ensure!(
            index != found.index || *digest == found.agreed,
            "its state at checkpoint {index} is {digest}, and {} was agreed on",
            found.agreed
        );
        let here = self.log.read_limited(index..index + 1, 1)?;
        let id = here.first().map_or(*last, |(id, _)| *id);
        ensure!(id == *last, "the log here has entry {id}, the snapshot ends with {last}");
        Ok(())
    }

    fn cure(&self, fetched: &Snapshot) -> anyhow::Result<Repaired> {
        let index = fetched.id().last.context("it holds no entry")?.index;
        let evidence = self.data_dir.put_in_place(fetched.path(), &self.quarantine)?;
        Ok(Repaired { node: self.data_dir.identity().node_id, index, evidence })
    }
}

/// What a node offers, checked for its form.
struct Offered {
    cluster: ClusterId,
    last: LogId,
    digest: StateDigest,
    id: SnapshotId,
}

impl Offered {
    fn parse(offer: &FetchedSnapshot) -> Option<Self> {
        let header = &offer.header;
        let last = LogId { term: header.term, node: NodeId(header.leader), index: header.index };
        let (file_crc32c, length) = (header.file_crc32c, header.length);
        Some(Self {
            cluster: ClusterId::from_slice(&header.cluster_id)?,
            last,
            digest: StateDigest::from_slice(&header.digest)?,
            id: SnapshotId { last: Some(last), file_crc32c, length },
        })
    }
}

/// Fetches a snapshot and checks all of it, content included.
async fn fetch(patient: &Patient, client: &Client) -> anyhow::Result<Snapshot> {
    let mut offer = client.fetch_snapshot().await?;
    let offered = Offered::parse(&offer).context("the node offers something malformed")?;
    patient.check(&offered)?;
    let (staging, id) = (patient.staging.clone(), offered.id);
    let mut incoming = blocking(move || fresh(&staging, id)).await?;
    while let Some(chunk) = offer.next().await? {
        ensure!(crc32c::crc32c(&chunk.data) == chunk.crc32c, "a chunk was damaged on the way");
        incoming = blocking(move || Ok(incoming.append(&chunk.data).map(|()| incoming)?)).await?;
    }
    let whole = blocking(move || Ok(incoming.finish()?)).await?;
    let content = whole.clone();
    let digest = blocking(move || Ok(compute_digest(&content)?)).await?;
    ensure!(digest == offered.digest, "it holds {digest}, not {} as announced", offered.digest);
    Ok(whole)
}

/// Starts a transfer from nothing.
fn fresh(staging: &SnapshotDir, id: SnapshotId) -> anyhow::Result<IncomingSnapshot> {
    staging.retain(|_| false)?;
    staging.receive(id)?.discard()?;
    Ok(staging.receive(id)?)
}
