//! Sends a snapshot file to a peer: asks where an earlier attempt ended, then streams the bytes
//! from there on. A transfer may take long, but must keep moving.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use lockstep_proto::peer;
use lockstep_proto::peer::install_snapshot_request::{Chunk, Header, Part};
use openraft::StorageError;
use openraft::errors::{ErrorSource as _, RPCError, StreamingError};
use openraft::network::RPCTypes;
use openraft::raft::SnapshotResponse;
use openraft::type_config::alias::{ErrorSourceOf, SnapshotOf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use super::client::{Peer, ready};
use super::codec;
use super::connections::Link;
use crate::raft::type_config::{RaftVote, TypeConfig};
use crate::storage::snapshot::{Snapshot, SnapshotId};

/// Bytes of the file in one message.
pub(super) const CHUNK_BYTES: usize = 256 << 10;

/// Chunks that are read ahead of the network.
const CHUNKS_AHEAD: usize = 4;

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
    let offset = ask_offset(peer, link, file.id()).await?;
    let (mut link, hello) = ready(peer, link)?;
    tracing::info!(peer = %peer.target, offset, length = file.id().length, "sending a snapshot");
    let head = codec::SnapshotHead { vote, id: *file.id(), meta: snapshot.meta };
    let head = codec::encode_snapshot_head(&head);
    let header = Part::Header(Header { hello: Some(hello), head, offset });

    let progress = Arc::new(Progress { left: AtomicU64::new(file.id().length - offset) });
    let (chunks, body) = mpsc::channel(CHUNKS_AHEAD);
    let read = tokio::task::spawn_blocking(move || read_chunks(&file, offset, &chunks));
    let call = link.install_snapshot(messages(header, body, progress.clone()));
    let reply = await_moving(peer, call, &progress).await;
    // By now the call has dropped its end of the channel, so reading ends in any case.
    let read = read.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    read.map_err(|error| {
        StorageError::read_snapshot(None, ErrorSourceOf::<TypeConfig>::from_error(&error))
    })?;
    let vote = codec::decode_vote(&reply?.vote).map_err(|error| peer.nonsense(error))?;
    Ok(SnapshotResponse::new(vote))
}

async fn ask_offset(peer: &Peer, link: &Link, id: &SnapshotId) -> Sent<u64> {
    let (mut link, hello) = ready(peer, link)?;
    let snapshot = codec::encode_snapshot_id(id);
    let request = peer::SnapshotOffsetRequest { hello: Some(hello), snapshot };
    let call = link.snapshot_offset(request);
    let reply = peer.answer(RPCTypes::InstallSnapshot, OFFSET_TIMEOUT, call).await?;
    if reply.offset > id.length {
        return Err(peer.nonsense("an offset behind the end of the snapshot").into());
    }
    Ok(reply.offset)
}

/// Bytes that the network has not yet asked for.
struct Progress {
    left: AtomicU64,
}

fn messages(
    header: Part,
    chunks: mpsc::Receiver<Bytes>,
    progress: Arc<Progress>,
) -> impl Stream<Item = peer::InstallSnapshotRequest> {
    let chunks = ReceiverStream::new(chunks).map(move |data| {
        let count = u64::try_from(data.len()).expect("a usize fits");
        progress.left.fetch_sub(count, Ordering::Relaxed);
        Part::Chunk(Chunk { crc32c: crc32c::crc32c(&data), data })
    });
    let parts = futures::stream::once(async { header }).chain(chunks);
    parts.map(|part| peer::InstallSnapshotRequest { part: Some(part) })
}

/// Reads the file into the channel until its end, or until nobody takes any more.
fn read_chunks(file: &Snapshot, offset: u64, chunks: &mpsc::Sender<Bytes>) -> std::io::Result<()> {
    let mut reader = file.raw_reader(offset);
    while reader.offset() < file.id().length {
        let left = file.id().length - reader.offset();
        let count = usize::try_from(left).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
        let mut chunk = vec![0; count];
        reader.read_exact(&mut chunk)?;
        if chunks.blocking_send(chunk.into()).is_err() {
            break;
        }
    }
    Ok(())
}

/// Waits for the reply as long as bytes move, then as long as installing may take.
async fn await_moving(
    peer: &Peer,
    call: impl Future<Output = Result<Response<peer::InstallSnapshotReply>, Status>>,
    progress: &Progress,
) -> Result<peer::InstallSnapshotReply, RPCError<TypeConfig>> {
    let mut call = std::pin::pin!(call);
    let mut left_before = None;
    loop {
        let left = progress.left.load(Ordering::Relaxed);
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
