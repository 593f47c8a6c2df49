//! Receives a snapshot file from a peer. Bytes that have arrived stay, so that the next attempt
//! goes on where this one was cut; nothing of them is used before the whole is verified.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use lockstep_proto::peer::InstallSnapshotRequest;
use lockstep_proto::peer::install_snapshot_request::{Chunk, Part};

use super::Rejected;
use crate::raft::store::snapshots::content;
use crate::storage;
use crate::storage::snapshot::{
    ArrivedSnapshot, IncomingSnapshot, Snapshot, SnapshotDir, SnapshotId,
};
use crate::types::StateDigest;

/// A sender that sends nothing for so long is gone.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The receiving end of all transfers to this node. The newest goes on, older ones give up: a
/// peer starts another only after it gave up the one before, or when it is a new leader.
#[derive(Clone)]
pub(super) struct Inbox {
    snapshots: SnapshotDir,
    transfers: Arc<AtomicU64>,
}

impl Inbox {
    pub(super) fn new(snapshots: SnapshotDir) -> Self {
        Self { snapshots, transfers: Arc::default() }
    }

    /// Bytes of the snapshot that are here. Nothing is changed by asking.
    pub(super) async fn offset(&self, id: SnapshotId) -> Result<u64, Rejected> {
        let snapshots = self.snapshots.clone();
        blocking(move || snapshots.arrived_bytes(&id)).await
    }

    /// Takes the chunks of snapshot `id` from `offset` on, and verifies the whole. It is kept once
    /// `check` has let it pass; else nothing of it stays.
    pub(super) async fn receive<S, E>(
        &self,
        id: SnapshotId,
        offset: u64,
        requests: S,
        check: impl AsyncFnOnce(Snapshot) -> Result<(), Rejected>,
    ) -> Result<Snapshot, Rejected>
    where
        S: Stream<Item = Result<InstallSnapshotRequest, E>> + Unpin,
        E: std::fmt::Display,
    {
        let transfer = self.transfers.fetch_add(1, Ordering::Relaxed) + 1;
        let snapshots = self.snapshots.clone();
        if let Some(complete) = blocking(move || Ok(snapshots.find(&id))).await? {
            check(complete.clone()).await?;
            return Ok(complete);
        }
        let snapshots = self.snapshots.clone();
        let incoming = blocking(move || snapshots.receive(id)).await?;
        if incoming.offset() != offset {
            return Err(Rejected::Failed(format!(
                "the snapshot goes on at byte {}, not at {offset}",
                incoming.offset()
            )));
        }
        let incoming = self.fill(incoming, transfer, requests).await?;
        let arrived = Arrived(Some(blocking(move || incoming.verify()).await?));
        check(arrived.snapshot()).await?;
        let arrived = arrived.take();
        blocking(move || arrived.keep()).await
    }

    async fn fill<S, E>(
        &self,
        mut incoming: IncomingSnapshot,
        transfer: u64,
        mut requests: S,
    ) -> Result<IncomingSnapshot, Rejected>
    where
        S: Stream<Item = Result<InstallSnapshotRequest, E>> + Unpin,
        E: std::fmt::Display,
    {
        while incoming.offset() < incoming.id().length {
            let chunk = next_chunk(&mut requests).await?;
            if self.transfers.load(Ordering::Relaxed) != transfer {
                return Err(Rejected::Superseded);
            }
            incoming = blocking(move || {
                incoming.append(&chunk.data)?;
                Ok(incoming)
            })
            .await?;
        }
        Ok(incoming)
    }
}

/// A file that has arrived. Dropped, by a refusal or a caller that is gone, it is removed off the
/// async workers.
struct Arrived(Option<ArrivedSnapshot>);

impl Arrived {
    fn snapshot(&self) -> Snapshot {
        self.0.as_ref().expect("only `take` takes it").snapshot().clone()
    }

    fn take(mut self) -> ArrivedSnapshot {
        self.0.take().expect("it is taken once")
    }
}

impl Drop for Arrived {
    fn drop(&mut self) {
        if let Some(arrived) = self.0.take() {
            tokio::task::spawn_blocking(move || drop(arrived));
        }
    }
}

/// The next chunk, if it arrived unharmed.
async fn next_chunk<S, E>(requests: &mut S) -> Result<Chunk, Rejected>
where
    S: Stream<Item = Result<InstallSnapshotRequest, E>> + Unpin,
    E: std::fmt::Display,
{
    let request = tokio::time::timeout(IDLE_TIMEOUT, requests.next()).await;
    let request = request.map_err(|_| Rejected::Failed("no chunk came in time".into()))?;
    let request = request.ok_or_else(|| Rejected::Failed("the snapshot ends early".into()))?;
    let request = request.map_err(|error| Rejected::Failed(error.to_string()))?;
    match request.part {
        Some(Part::Chunk(chunk)) if chunk.data.is_empty() => {
            Err(Rejected::Malformed("an empty chunk".into()))
        }
        Some(Part::Chunk(chunk)) if crc32c::crc32c(&chunk.data) != chunk.crc32c => {
            Err(Rejected::Failed("the checksum of a chunk does not match".into()))
        }
        Some(Part::Chunk(chunk)) => Ok(chunk),
        _ => Err(Rejected::Malformed("a chunk was expected".into())),
    }
}

/// What a snapshot says its content is, once all of the content was read and found to be so.
pub(super) async fn digest(snapshot: Snapshot) -> Result<Option<StateDigest>, Rejected> {
    blocking(move || {
        content::verify_pieces(&snapshot, |_| true)?;
        Ok(content::digest_of(&snapshot))
    })
    .await
}

/// Runs disk work off the async workers.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, storage::Error> + Send + 'static,
) -> Result<T, Rejected> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|error| Rejected::Failed(error.to_string()))?;
    done.map_err(|error| match error.is_no_room() {
        true => Rejected::DiskFull,
        false => Rejected::Failed(error.to_string()),
    })
}
