//! Repairs a node while it is stopped, with the newest snapshot that the cluster agreed on. The log
//! and the vote stay as they are, so the node forgets nothing that it promised.
//!
//! Of a quarantined node the snapshots go aside as evidence, and the mark goes. A node that missed
//! a change of the engine gets the snapshot beside its own.
//!
//! **Invariant:** the mark goes last. Broken off before, the repair is run again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use lockstep_client::{Client, FetchedSnapshot};

use crate::config::FileConfig;
use crate::raft::store::snapshots::content::compute_digest;
use crate::raft::store::snapshots::description::{Fit, fit};
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
    /// Where the evidence lies, if the node was quarantined.
    pub evidence: Option<PathBuf>,
}

/// Repairs the node of a data folder with what the first of `healthy` nodes gives that can.
///
/// # Errors
/// Why nothing was changed: nothing to repair, in use, or no node gave a fitting snapshot.
pub async fn repair(folder: PathBuf, healthy: Vec<Client>) -> anyhow::Result<Repaired> {
    let patient = Arc::new(blocking(move || Patient::open(&folder)).await?);
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

/// Why a node can't go on from its own state.
enum Ailment {
    /// Its state is another than the cluster's.
    Quarantined(Quarantine),
    /// Its newest snapshot, at this index if there is one, is of another engine profile.
    OtherEngine(Option<LogIndex>),
}

/// A stopped node that can't go on from its own state.
struct Patient {
    data_dir: DataDir,
    cluster: ClusterId,
    ailment: Ailment,
    /// That of this build, which the node is to go on with.
    profile: String,
    purged: Option<LogIndex>,
    /// The entries that the log holds: their ids are compared with the snapshot's.
    log: Log,
    /// Where the snapshot arrives.
    staging: SnapshotDir,
}

impl Patient {
    fn open(folder: &Path) -> anyhow::Result<Self> {
        let data_dir = DataDir::open_existing(folder)?;
        let profile = super::engine_profile()?;
        let Some(ailment) = examine(&data_dir, &profile)? else {
            bail!(
                "{} is not quarantined, and its state is of this build's engine: there is nothing \
                 to repair",
                folder.display()
            );
        };
        let cluster = data_dir.identity().cluster.context("the node is in no cluster")?;
        let log = Log::open(&data_dir.log(), &LogConfig::from(&FileConfig::default()))?;
        let purged = log.state()?.purged.map(|purged| purged.index);
        let staging = SnapshotDir::open(&data_dir.path().join("repair"))?;
        Ok(Self { data_dir, cluster, ailment, profile, purged, log, staging })
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
        match &self.ailment {
            Ailment::Quarantined(found) => ensure!(
                index != found.index || *digest == found.agreed,
                "its state at checkpoint {index} is {digest}, and {} was agreed on",
                found.agreed
            ),
            Ailment::OtherEngine(newest) => ensure!(
                newest.is_none_or(|newest| newest < index),
                "its newest agreed checkpoint, {index}, is not newer than what is here: take one \
                 and try again"
            ),
        }
        let here = self.log.read_limited(index..index + 1, 1)?;
        let id = here.first().map_or(*last, |(id, _)| *id);
        ensure!(id == *last, "the log here has entry {id}, the snapshot ends with {last}");
        Ok(())
    }

    fn cure(&self, fetched: &Snapshot) -> anyhow::Result<Repaired> {
        let last = fetched.id().last.context("it holds no entry")?;
        let index = last.index;
        // The log may end before it.
        self.log.announce_snapshot(last)?;
        let evidence = match &self.ailment {
            Ailment::Quarantined(mark) => Some(self.data_dir.put_in_place(fetched.path(), mark)?),
            Ailment::OtherEngine(_) => {
                self.data_dir.add_snapshot(fetched.path())?;
                None
            }
        };
        Ok(Repaired { node: self.data_dir.identity().node_id, index, evidence })
    }
}

/// What is to be repaired, if anything is.
fn examine(data_dir: &DataDir, profile: &str) -> anyhow::Result<Option<Ailment>> {
    if let Some(quarantine) = data_dir.quarantine() {
        return Ok(Some(Ailment::Quarantined(quarantine)));
    }
    let newest = SnapshotDir::open(&data_dir.snapshots())?.newest();
    // Without a snapshot, what engine the log is for is not known before it is applied.
    let Some(newest) = newest else { return Ok(Some(Ailment::OtherEngine(None))) };
    let index = newest.id().last.map(|last| last.index);
    Ok(match fit(&newest, profile)? {
        Fit::From(_) => None,
        Fit::OfAnother(_) => Some(Ailment::OtherEngine(index)),
    })
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
async fn fetch(patient: &Arc<Patient>, client: &Client) -> anyhow::Result<Snapshot> {
    let mut offer = client.fetch_snapshot().await?;
    let offered = Offered::parse(&offer).context("the node offers something malformed")?;
    let reader = Arc::clone(patient);
    let offered = blocking(move || reader.check(&offered).map(|()| offered)).await?;
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
    if let Fit::OfAnother(theirs) = fit(&whole, &patient.profile)? {
        bail!("it is of engine profile {theirs}: run the repair by a build of that profile");
    }
    Ok(whole)
}

/// Starts a transfer from nothing.
fn fresh(staging: &SnapshotDir, id: SnapshotId) -> anyhow::Result<IncomingSnapshot> {
    staging.retain(|_| false)?;
    staging.receive(id)?.discard()?;
    Ok(staging.receive(id)?)
}
