//! The state machine of openraft over `machine::Machines`.
//!
//! The state lives in memory; what makes it durable is the log from the newest snapshot on. At
//! start the newest snapshot is restored here, and openraft applies the log again from there up
//! to the committed index that was saved.
//!
//! **Invariant:** an entry's effects, `last_applied` and the membership change together, between
//! two awaits that nobody else can see between. **Invariant:** only a `Checkpoint` entry makes a
//! snapshot, captured while no other entry can be applied.

#[cfg(test)]
mod tests;

mod standing;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use openraft::storage::{EntryResponder, RaftStateMachine, Snapshot as RaftSnapshot};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::machine::entry::proposal;
use crate::machine::snapshot::unsent::Unsent;
use crate::machine::{Applied, Environment, HostFailure, Machines, Proposal, Response, Then};
use crate::raft::store::convert::{log_id_from_raft, membership_from_raft};
use crate::raft::store::snapshots::SharedSnapshots;
use crate::raft::store::snapshots::capture::{Capture, unwritten};
use crate::raft::store::snapshots::content::restore;
use crate::raft::store::snapshots::description::{Description, meta_to_raft};
use crate::raft::type_config::{
    Entry, EntryBytes, RaftLogId, RaftSnapshotMeta, RaftStoredMembership, TypeConfig,
};
use crate::storage::snapshot::Snapshot;
use crate::storage::{self, DataDir, Quarantine};
use crate::types::{LogIndex, Membership};
use standing::{
    Standing, cannot_import, newest_state, other_profile, parked, parked_state, quarantined,
    standing,
};

type SnapshotOf = RaftSnapshot<
    openraft::type_config::alias::CommittedLeaderIdOf<TypeConfig>,
    crate::types::NodeId,
    crate::types::Member,
    Snapshot,
>;

/// How much may be applied between two checkpoints.
#[derive(Clone, Copy, Debug)]
pub struct CheckpointSize {
    /// Bytes of entries.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
}

/// How far the apply path has come. Who watches is told when a checkpoint may have become due, and
/// not with each entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Last applied index.
    pub applied: Option<LogIndex>,
    /// Bytes of entries applied since the last checkpoint.
    pub bytes_since_checkpoint: u64,
    /// Entries applied since the last checkpoint.
    pub entries_since_checkpoint: u64,
    /// Something was applied since the last checkpoint that is news to it.
    pub is_changed: bool,
    /// Checkpoints applied since this node started.
    pub checkpoints: u64,
    /// The engine has changed since the last checkpoint: restarts need one of the new engine.
    pub checkpoint_due: bool,
}

impl Progress {
    /// Whether so much has been applied that a checkpoint is due.
    pub fn fills(&self, size: &CheckpointSize) -> bool {
        self.bytes_since_checkpoint >= size.bytes || self.entries_since_checkpoint >= size.entries
    }
}

/// A snapshot that is being written.
struct Writing {
    task: JoinHandle<Result<(), HostFailure>>,
    give_up: CancellationToken,
}

/// The state machine of this node.
pub struct StateMachine {
    environment: Environment,
    machines: Machines,
    last_applied: Option<RaftLogId>,
    stored_membership: RaftStoredMembership,
    membership: Membership,
    snapshots: SharedSnapshots,
    data_dir: Arc<DataDir>,
    progress: watch::Sender<Progress>,
    checkpoint_size: CheckpointSize,
    writing: Option<Writing>,
    /// A mark of this node that is not on its disk yet.
    unmarked: Option<Quarantine>,
    skipped: BTreeSet<LogIndex>,
}

impl StateMachine {
    /// Restores the newest snapshot, or begins empty. Entries up to `committed_at_start` are
    /// applied once more.
    pub async fn open(
        environment: Environment,
        snapshots: SharedSnapshots,
        data_dir: Arc<DataDir>,
        committed_at_start: Option<LogIndex>,
        (progress, checkpoint_size): (watch::Sender<Progress>, CheckpointSize),
    ) -> Result<Self, HostFailure> {
        let newest = snapshots.dir().newest();
        let (meta, mut machines) = match standing(&environment, &data_dir, newest.as_ref())? {
            Standing::Parked(reason) => parked_state(&environment, newest.as_ref(), reason)?,
            Standing::Applies(source) => newest_state(&environment, &snapshots, source).await?,
        };
        machines.replays_up_to(committed_at_start.unwrap_or(0));
        let mut state_machine = Self {
            environment,
            machines,
            last_applied: None,
            stored_membership: RaftStoredMembership::default(),
            membership: Membership::default(),
            snapshots,
            data_dir,
            progress,
            checkpoint_size,
            writing: None,
            unmarked: None,
            skipped: BTreeSet::new(),
        };
        state_machine.stand_at(&meta);
        state_machine.compare_states().await?;
        Ok(state_machine)
    }

    /// Skips the entries at these indexes, if they cannot be decoded.
    pub fn skipping(self, skipped: impl IntoIterator<Item = LogIndex>) -> Self {
        Self { skipped: skipped.into_iter().collect(), ..self }
    }

    /// Takes the position of a snapshot whose state is in place.
    fn stand_at(&mut self, meta: &RaftSnapshotMeta) {
        self.last_applied = meta.last_log_id;
        self.stored_membership = meta.last_membership.clone();
        self.membership = membership_from_raft(meta.last_membership.membership());
        let applied = meta.last_log_id.map(|id| id.index());
        if self.machines.node_parked().is_none() {
            self.machines.judge(&self.membership);
        }
        self.machines.go_live(applied.unwrap_or(0));
        self.progress.send_replace(Progress { applied, ..Progress::default() });
    }

    async fn apply_entry(&mut self, entry: &Entry) -> Result<Response, HostFailure> {
        let log_id = entry.log_id;
        let in_order = self.last_applied.is_none_or(|last| log_id.index() == last.index() + 1);
        assert!(in_order, "entry {log_id} follows {:?}", self.last_applied);
        let (response, bytes) = match &entry.payload {
            EntryPayload::Blank => (Response::Nothing, 0),
            EntryPayload::Normal(EntryBytes(bytes)) => {
                (self.apply_bytes(&log_id, bytes).await?, bytes.len())
            }
            EntryPayload::Membership(membership) => {
                self.change_membership(membership_from_raft(membership)).await?;
                self.stored_membership =
                    RaftStoredMembership::new(Some(log_id), membership.clone());
                (Response::Nothing, 0)
            }
        };
        self.last_applied = Some(log_id);
        self.machines.advance(log_id.index());
        self.count(log_id.index(), bytes);
        Ok(response)
    }

    async fn apply_bytes(
        &mut self,
        log_id: &RaftLogId,
        bytes: &bytes::Bytes,
    ) -> Result<Response, HostFailure> {
        if let Some(reason) = self.machines.node_parked() {
            return Ok(Response::NodeParked(reason.to_owned()));
        }
        let index = log_id.index();
        let proposal = match Proposal::decode(bytes) {
            Ok(proposal) => proposal,
            Err(error) => return Ok(self.pass_over(index, &error)),
        };
        let is_news = !matches!(
            proposal,
            Proposal::Checkpoint | Proposal::CheckpointReport(_) | Proposal::Tick { .. }
        );
        let Applied { response, then } =
            self.machines.apply(index, proposal, &self.membership).await?;
        if is_news {
            self.progress
                .send_if_modified(|progress| !std::mem::replace(&mut progress.is_changed, true));
        }
        match then {
            Then::GoOn => {}
            Then::Capture => self.checkpoint(log_id).await?,
            Then::CompareStates => self.compare_states().await?,
            Then::CompareProfiles { decided } => {
                self.compare_profiles();
                self.progress.send_modify(|progress| progress.checkpoint_due |= decided);
            }
        }
        Ok(response)
    }

    async fn change_membership(&mut self, now: Membership) -> Result<(), HostFailure> {
        let before = std::mem::replace(&mut self.membership, now);
        if self.machines.node_parked().is_none() {
            self.machines.change_membership(&before, &self.membership);
            // Other voters may agree on what was open before.
            self.compare_states().await?;
        }
        Ok(())
    }

    /// Compares the snapshots here with what the cluster agreed on. Where one differs, this
    /// node's state is wrong: it is marked, durably, and applies nothing more until it is
    /// repaired.
    async fn compare_states(&mut self) -> Result<(), HostFailure> {
        let snapshots = &self.snapshots;
        let mut differing = self.machines.agreed().filter_map(|(at, is)| snapshots.compare(at, is));
        let Some(found) = differing.next() else { return Ok(()) };
        drop(differing);
        self.park(quarantined(&found));
        self.unmarked = Some(found);
        self.mark().await
    }

    /// Marks this node on its disk. Without room or descriptors that is tried again with the next
    /// entry: the node is parked already, and a restart finds the difference again, in the log.
    async fn mark(&mut self) -> Result<(), HostFailure> {
        let Some(found) = self.unmarked.clone() else { return Ok(()) };
        let data_dir = Arc::clone(&self.data_dir);
        let marked = tokio::task::spawn_blocking(move || data_dir.set_quarantine(&found)).await;
        match marked.map_err(HostFailure::panicked)? {
            Ok(()) => self.unmarked = None,
            Err(error) if error.may_pass() => {
                tracing::error!(%error, "the quarantine of this node is not on its disk yet");
            }
            Err(error) => return Err(HostFailure::Stop(error.to_string())),
        }
        Ok(())
    }

    /// What this engine makes of an entry may be another state than what the others come to. While
    /// the cluster is sealed for it there is no such entry.
    fn compare_profiles(&mut self) {
        let ours = &self.environment.profile;
        let is_next = self.machines.sealed().is_some_and(|sealed| sealed.to == *ours);
        let replicated = self.machines.engine_profile();
        let theirs = replicated.filter(|theirs| theirs != ours && !is_next);
        if let Some(reason) = theirs.map(|theirs| other_profile(ours, theirs)) {
            self.park(reason);
        }
    }

    /// What becomes of an entry that cannot be decoded. All nodes of a version meet it, so it parks
    /// them rather than ending them, at each start again; the operator may have it skipped.
    fn pass_over(&mut self, index: LogIndex, error: &proposal::Error) -> Response {
        if self.skipped.contains(&index) {
            tracing::warn!(index, %error, "an entry is skipped, as `skip_entries` says");
            return Response::Nothing;
        }
        self.park(format!(
            "the entry at log index {index} cannot be applied: {error}. Repair: run the build that \
             wrote it; if no build can read it, put {index} into `skip_entries` of every node's \
             configuration and start all of them again"
        ))
    }

    /// From here on this node keeps the log and applies nothing. `FitnessTask` does the rest.
    fn park(&mut self, reason: String) -> Response {
        tracing::error!(%reason, "this node is parked: it keeps the log and applies nothing");
        self.machines.park_node(reason.clone());
        Response::NodeParked(reason)
    }

    /// Captures the state as of this entry; the file is written in the background.
    async fn checkpoint(&mut self, log_id: &RaftLogId) -> Result<(), HostFailure> {
        self.finish_writing().await?;
        self.progress.send_modify(|progress| {
            progress.bytes_since_checkpoint = 0;
            progress.entries_since_checkpoint = 0;
            progress.is_changed = false;
            progress.checkpoints += 1;
            progress.checkpoint_due = false;
        });
        if self.snapshots.newest_index().is_some_and(|newest| newest >= log_id.index()) {
            return Ok(());
        }
        self.machines.sweep_modules().await;
        let frozen = self.machines.freeze().await?;
        let profile = self.machines.engine_profile();
        let (membership, sealed) = (&self.stored_membership, self.machines.sealed());
        let description = Description::new(membership, profile, sealed);
        let (snapshots, last) = (Arc::clone(&self.snapshots), log_id_from_raft(log_id));
        let capture = Capture::begin(snapshots, last, &description, frozen);
        let give_up = capture.give_up.clone();
        let task = tokio::spawn(finish(Arc::clone(&self.snapshots), capture));
        self.writing = Some(Writing { task, give_up });
        Ok(())
    }

    /// A snapshot that a fault kept from being written stops the node at the next entry: not only
    /// at the next checkpoint, which may be hours away.
    async fn check_writing(&mut self) -> Result<(), HostFailure> {
        match &self.writing {
            Some(writing) if writing.task.is_finished() => self.finish_writing().await,
            _ => Ok(()),
        }
    }

    /// Waits for a snapshot that is still being written, but not for what cannot be had for it.
    async fn finish_writing(&mut self) -> Result<(), HostFailure> {
        let Some(Writing { task, give_up }) = self.writing.take() else { return Ok(()) };
        give_up.cancel();
        task.await
            .map_err(|error| HostFailure::Stop(format!("writing a snapshot panicked: {error}")))?
    }

    /// While sealed there is no checkpoint, and so nothing that makes one due.
    fn count(&self, index: LogIndex, bytes: usize) {
        self.progress.send_if_modified(|progress| {
            progress.applied = Some(index);
            if self.machines.sealed().is_some() {
                return false;
            }
            progress.bytes_since_checkpoint += u64::try_from(bytes).expect("a length fits");
            progress.entries_since_checkpoint += 1;
            progress.fills(&self.checkpoint_size)
        });
    }
}

/// Waits for the writer and makes its file the newest. Where there is no room for it, or where
/// something cannot be had for it, that is an alarm: the log has it all. So is a guest that cannot
/// export its state. A fault of the disk or of the host stops the node.
async fn finish(snapshots: SharedSnapshots, capture: Capture) -> Result<(), HostFailure> {
    let captured = capture
        .task
        .await
        .map_err(|error| HostFailure::Stop(format!("writing a snapshot panicked: {error}")))?;
    let unwritten = match (captured.written, captured.sent) {
        (Ok(snapshot), Some(Ok(failures))) => {
            snapshots.alarms().set_export_failures(failures);
            snapshots.adopt(&snapshot);
            return Ok(());
        }
        // Content that was broken off leaves no file, and has the reason.
        (Err(storage::Error::Refused(_)) | Ok(_), Some(Err(unsent))) => match unsent {
            Unsent::Lacks(reason) => format!("a snapshot was given up: {reason}"),
            Unsent::Host(failure) => return Err(failure),
        },
        (Err(storage::Error::Refused(_)) | Ok(_), _) => {
            return Err(HostFailure::Stop("sending the state to a snapshot panicked".to_owned()));
        }
        (Err(error), _) if error.may_pass() => unwritten(&error),
        (Err(error), _) => {
            let reason = unwritten(&error);
            tracing::error!(reason, "the node stops at the next entry");
            return Err(HostFailure::Stop(reason));
        }
    };
    snapshots.alarms().set_unwritten(unwritten);
    Ok(())
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = Snapshot;
    type SnapshotBuilder = CurrentSnapshot;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<RaftLogId>, RaftStoredMembership), io::Error> {
        Ok((self.last_applied, self.stored_membership.clone()))
    }

    async fn apply<Entries>(&mut self, mut entries: Entries) -> Result<(), io::Error>
    where
        Entries:
            Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            self.check_writing().await.map_err(io::Error::other)?;
            self.mark().await.map_err(io::Error::other)?;
            let response = self.apply_entry(&entry).await.map_err(io::Error::other)?;
            if let Some(responder) = responder {
                responder.send(response);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> CurrentSnapshot {
        CurrentSnapshot(Arc::clone(&self.snapshots))
    }

    async fn install_snapshot(
        &mut self,
        meta: &RaftSnapshotMeta,
        snapshot: Snapshot,
    ) -> Result<(), io::Error> {
        self.finish_writing().await.map_err(io::Error::other)?;
        let standing = standing(&self.environment, &self.data_dir, Some(&snapshot));
        let standing = standing.map_err(io::Error::other)?;
        // Not before the snapshot is known to fit; where its content does not, the node stops.
        let none = Machines::empty(self.environment.clone());
        std::mem::replace(&mut self.machines, none).give_way();
        self.machines = match standing {
            Standing::Parked(reason) => parked(&self.environment, reason),
            Standing::Applies(source) => {
                match restore(self.environment.clone(), &snapshot, source).await {
                    Err(HostFailure::Import(why)) => parked(&self.environment, cannot_import(&why)),
                    restored => restored.map_err(io::Error::other)?,
                }
            }
        };
        self.stand_at(meta);
        self.snapshots.adopt_agreed(&snapshot);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf>, io::Error> {
        current(&self.snapshots)
    }
}

/// "Builds" a snapshot for openraft by handing out the newest one that the cluster agreed on:
/// checkpoints make them.
pub struct CurrentSnapshot(SharedSnapshots);

impl RaftSnapshotBuilder<TypeConfig> for CurrentSnapshot {
    type SnapshotData = Snapshot;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf, io::Error> {
        current(&self.0)?.ok_or_else(|| io::Error::other("no checkpoint has been taken yet"))
    }
}

fn current(snapshots: &SharedSnapshots) -> Result<Option<SnapshotOf>, io::Error> {
    let Some(snapshot) = snapshots.agreed_or_damaged() else { return Ok(None) };
    let meta = meta_to_raft(&snapshot).map_err(io::Error::other)?;
    Ok(Some(RaftSnapshot { meta, snapshot }))
}
