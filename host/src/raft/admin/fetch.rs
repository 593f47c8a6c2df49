//! Gives the newest snapshot that the cluster agreed on to whoever repairs a node with it.

use std::io;

use bytes::Bytes;
use futures::Stream;

use crate::raft::ask::error::Error;
use crate::raft::ask::replica::Replica;
use crate::raft::store::snapshots::chunks::raw_chunk;
use crate::raft::store::snapshots::content::digest_of;
use crate::storage::snapshot::Snapshot;
use crate::types::{ClusterId, LogId, StateDigest};

/// A snapshot on its way out.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The cluster whose state it holds.
    pub cluster: ClusterId,
    /// The last entry in it.
    pub last: LogId,
    /// What the cluster agreed that it holds.
    pub digest: StateDigest,
    /// Checksum of the file up to its footer.
    pub file_crc32c: u32,
    /// Length of the file, in bytes.
    pub length: u64,
    file: Snapshot,
}

impl Replica {
    /// The newest snapshot here that the cluster agreed on. A parked node gives none.
    pub fn agreed_snapshot(&self) -> Result<Fetched, Error> {
        let shared = &self.shared;
        if let Some(reason) = &shared.directory.view().parked {
            return Err(Error::Parked(reason.clone()));
        }
        let none = || Error::Refused("no checkpoint that was agreed on is here yet".to_owned());
        let cluster = shared.local.cluster().ok_or(Error::Uninitialized)?;
        let file = shared.snapshots.agreed().ok_or_else(none)?;
        let digest = digest_of(&file);
        let (last, digest) = (file.id().last.ok_or_else(none)?, digest.ok_or_else(none)?);
        let (file_crc32c, length) = (file.id().file_crc32c, file.id().length);
        Ok(Fetched { cluster, last, digest, file_crc32c, length, file })
    }
}

impl Fetched {
    /// The bytes of the file; an error ends them.
    pub fn chunks(self) -> impl Stream<Item = io::Result<Bytes>> {
        futures::stream::try_unfold((self.file, 0), |(file, offset)| async move {
            let chunk = raw_chunk(file.clone(), offset).await?;
            let length = u64::try_from(chunk.len()).expect("a length in memory fits");
            Ok((length > 0).then_some((chunk, (file, offset + length))))
        })
    }
}
