//! Sends a snapshot file to a peer: asks where an earlier attempt ended, then streams the bytes
//! from there on. A transfer may take long, but must keep moving.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use lockstep_proto::peer;
use lockstep_proto::peer::install_snapshot_request::{Chunk, Header, Part};
use openraft::errors::{RPCError, StreamingError, Unreachable};
use openraft::network::RPCTypes;
use openraft::raft::SnapshotResponse;
use openraft::type_config::alias::SnapshotOf;
use tonic::{Response, Status};

use super::client::{Peer, ready};
use super::connections::Link;
use super::payload;
use crate::raft::store::snapshots::chunks::raw_chunk;
use crate::raft::type_config::{RaftVote, TypeConfig};
use crate::storage::snapshot::{Snapshot, SnapshotId};

/// Answering where to go on needs a look at the disk only.
const OFFSET_TIMEOUT: Duration = Duration::from_secs(5);

/// Some bytes must move within this.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Once all bytes have gone, the peer verifies and installs them, which takes as long as its
/// state is large. A peer that dies meanwhile is noticed by the probes of the connection.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(600);

type Sent<T> = Result<T, StreamingError<TypeConfig>>;

/// Returns once the peer has installed the snapshot, or answered with a higher vote.
pub(super) async fn send(
    peer: &Peer,
    link: &Link,
    vote: RaftVote,
    snapshot: SnapshotOf<TypeConfig, Snapshot>,
) -> Sent<SnapshotResponse<TypeConfig>> {
    let file = snapshot.snapshot;
    check(peer, &file).await?;
    let offset = ask_offset(peer, link, file.id()).await?;
    let (mut link, hello) = ready(peer, link)?;
    tracing::info!(peer = %peer.target, offset, length = file.id().length, "sending a snapshot");
    let ours = vote;
    let head = payload::SnapshotHead { vote, id: *file.id(), meta: snapshot.meta };
    let head = payload::encode_snapshot_head(&head);
    let header = Part::Header(Header { hello: Some(hello), head, offset });

    let source = Arc::new(Source::new(file, offset));
    let call = link.install_snapshot(messages(header, source.clone()));
    let reply = await_moving(peer, call, &source).await;
    if let Some(error) = source.take_failure() {
        // Nothing of this node hangs on the file: the next try checks it again, and says more.
        return Err(unsent(peer, &error.to_string()));
    }
    let vote = payload::decode_vote(&reply?.vote).map_err(|error| peer.nonsense(error))?;
    peer.check_term(&ours, &vote)?;
    Ok(SnapshotResponse::new(vote))
}

/// Reads all of the file before anything of it goes: a peer must not be sent what it has to refuse,
/// again and again. What was found damaged is not read again.
async fn check(peer: &Peer, file: &Snapshot) -> Sent<()> {
    let text = match file.damage() {
        Some(damage) => damage.to_owned(),
        None => {
            let reader = file.clone();
            match tokio::task::spawn_blocking(move || reader.check()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            }
        }
    };
    Err(unsent(peer, &text))
}

fn unsent(peer: &Peer, reason: &str) -> StreamingError<TypeConfig> {
    let text = format!("no snapshot goes to node {}: {reason}", peer.target);
    RPCError::Unreachable(Unreachable::from_string(text)).into()
}

async fn ask_offset(peer: &Peer, link: &Link, id: &SnapshotId) -> Sent<u64> {
    let (mut link, hello) = ready(peer, link)?;
    let snapshot = payload::encode_snapshot_id(id);
    let request = peer::SnapshotOffsetRequest { hello: Some(hello), snapshot };
    let call = link.snapshot_offset(request);
    let reply = peer.answer(RPCTypes::InstallSnapshot, OFFSET_TIMEOUT, call).await?;
    if reply.offset > id.length {
        return Err(peer.nonsense("an offset behind the end of the snapshot").into());
    }
    Ok(reply.offset)
}

/// The file on its way out.
struct Source {
    file: Snapshot,
    /// Where the next chunk begins; stays where it is after the first failure.
    offset: AtomicU64,
    failure: Mutex<Option<io::Error>>,
}

impl Source {
    fn new(file: Snapshot, offset: u64) -> Self {
        Self { file, offset: AtomicU64::new(offset), failure: Mutex::default() }
    }

    /// Bytes that the network has not yet asked for.
    fn left(&self) -> u64 {
        self.file.id().length - self.offset.load(Ordering::Relaxed)
    }

    /// The next chunk; `None` at the end and after a failure.
    async fn next_chunk(self: Arc<Self>) -> Option<Bytes> {
        let offset = self.offset.load(Ordering::Relaxed);
        match raw_chunk(self.file.clone(), offset).await {
            Ok(chunk) if chunk.is_empty() => None,
            Ok(chunk) => {
                let read = u64::try_from(chunk.len()).expect("a length in memory fits");
                self.offset.store(offset + read, Ordering::Relaxed);
                Some(chunk)
            }
            Err(error) => {
                *self.failure.lock().expect("nothing panics while it holds it") = Some(error);
                None
            }
        }
    }

    fn take_failure(&self) -> Option<io::Error> {
        self.failure.lock().expect("nothing panics while it holds it").take()
    }
}

fn messages(
    header: Part,
    source: Arc<Source>,
) -> impl Stream<Item = peer::InstallSnapshotRequest> + Send + 'static {
    let chunks = futures::stream::unfold(source, |source| async {
        let data = source.clone().next_chunk().await?;
        Some((Part::Chunk(Chunk { crc32c: crc32c::crc32c(&data), data }), source))
    });
    let parts = futures::stream::once(async { header }).chain(chunks);
    parts.map(|part| peer::InstallSnapshotRequest { part: Some(part) })
}

/// Waits for the reply as long as bytes move, then as long as installing may take.
async fn await_moving(
    peer: &Peer,
    call: impl Future<Output = Result<Response<peer::InstallSnapshotReply>, Status>>,
    source: &Source,
) -> Result<peer::InstallSnapshotReply, RPCError<TypeConfig>> {
    let mut call = std::pin::pin!(call);
    let mut left_before = None;
    loop {
        let left = source.left();
        if left_before == Some(left) {
            return Err(peer.timeout(RPCTypes::InstallSnapshot, STALL_TIMEOUT));
        }
        left_before = Some(left);
        let limit = if left == 0 { INSTALL_TIMEOUT } else { STALL_TIMEOUT };
        let ended = tokio::time::timeout(limit, &mut call).await;
        match ended {
            Ok(Ok(reply)) => return Ok(reply.into_inner()),
            Ok(Err(status)) => return Err(peer.failure(&status)),
            Err(_) => {}
        }
    }
}
