//! A snapshot file on its way to somebody, in pieces of one size: to a peer, or to whoever repairs
//! a node. Each piece is read off the async workers.

use std::io;

use bytes::Bytes;

use crate::storage::snapshot::Snapshot;

/// Bytes of the file in one message.
pub const CHUNK_BYTES: usize = 256 << 10;

/// The bytes of a file from `offset` on, [`CHUNK_BYTES`] of them at most; none at the end.
pub async fn raw_chunk(snapshot: Snapshot, offset: u64) -> io::Result<Bytes> {
    let read = tokio::task::spawn_blocking(move || snapshot.raw_chunk(offset, CHUNK_BYTES)).await;
    read.map_err(io::Error::other)?.map_err(crate::storage::Error::into_io)
}
