//! Whether this build may go on from a state, and what a node is that may not: parked.

use crate::machine::{Environment, HostFailure, Machines, Source};
use crate::raft::store::snapshots::SharedSnapshots;
use crate::raft::store::snapshots::description::{Fit, fit, meta_to_raft};
use crate::raft::type_config::RaftSnapshotMeta;
use crate::storage::snapshot::Snapshot;
use crate::storage::{DataDir, Quarantine};

/// Why a quarantined node applies nothing.
pub(super) fn quarantined(found: &Quarantine) -> String {
    let Quarantine { index, agreed, own, .. } = found;
    format!(
        "quarantined: at checkpoint {index} its state was {own}, and a majority of the voters \
         agreed on {agreed}. Repair: stop it and run `lockstep repair`"
    )
}

/// What a node may do with the state of a snapshot.
pub(super) enum Standing {
    /// Go on from it.
    Applies(Source),
    /// Nothing, and why.
    Parked(String),
}

/// Whether the state of a snapshot may be restored here, and from what. What quarantined this node
/// is cured by a repair alone.
pub(super) fn standing(
    environment: &Environment,
    data_dir: &DataDir,
    snapshot: Option<&Snapshot>,
) -> Result<Standing, HostFailure> {
    if let Some(found) = data_dir.quarantine() {
        return Ok(Standing::Parked(quarantined(&found)));
    }
    let ours = &environment.profile;
    let fits = snapshot.map(|snapshot| fit(snapshot, ours)).transpose()?;
    Ok(match fits {
        None => Standing::Applies(Source::Images),
        Some(Fit::From(source)) => {
            if source == Source::Exports {
                tracing::info!("starting from the exports of the engine before");
            }
            Standing::Applies(source)
        }
        Some(Fit::OfAnother(theirs)) => Standing::Parked(other_profile(ours, &theirs)),
    })
}

/// Why entries that were made for another engine profile are not applied here.
pub(super) fn other_profile(ours: &str, theirs: &str) -> String {
    format!(
        "the log is applied with engine profile {theirs}, and this build has {ours}. Repair: run \
         the build of that profile, which takes this node through an engine change if there was \
         one; or, if the others have {ours}, stop this node and run `lockstep repair`"
    )
}

/// A snapshot's place, without its state: a parked node keeps the log from there on.
pub(super) fn parked_state(
    environment: &Environment,
    snapshot: Option<&Snapshot>,
    reason: String,
) -> Result<(RaftSnapshotMeta, Machines), HostFailure> {
    let newest = snapshot.map(meta_to_raft).transpose()?;
    Ok((newest.unwrap_or_default(), parked(environment, reason)))
}

/// The machines of a node that applies nothing.
pub(super) fn parked(environment: &Environment, reason: String) -> Machines {
    tracing::error!(%reason, "this node is parked: it keeps the log and applies nothing");
    let mut machines = Machines::empty(environment.clone());
    machines.park_node(reason);
    machines
}

/// The newest snapshot's state and place, or the beginning.
pub(super) async fn newest_state(
    environment: &Environment,
    snapshots: &SharedSnapshots,
    source: Source,
) -> Result<(RaftSnapshotMeta, Machines), HostFailure> {
    match snapshots.restore_newest(environment, source).await {
        Ok(Some((snapshot, machines))) => Ok((meta_to_raft(&snapshot)?, machines)),
        Ok(None) => Ok((RaftSnapshotMeta::default(), Machines::empty(environment.clone()))),
        Err(HostFailure::Import(why)) => {
            parked_state(environment, snapshots.dir().newest().as_ref(), cannot_import(&why))
        }
        Err(failure) => Err(failure),
    }
}

/// Why this engine cannot go on from what the one before left.
pub(super) fn cannot_import(why: &str) -> String {
    format!(
        "{why}. Repair: start the build before on every node again, and run `lockstep cluster seal \
         --cancel`"
    )
}
