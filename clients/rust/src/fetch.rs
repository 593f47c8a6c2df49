//! A snapshot on its way from a node, for a repair.

use lockstep_proto::v1;
use lockstep_proto::v1::fetch_snapshot_reply::{Chunk, Header, Part};
use tonic::Streaming;

use crate::error::Error;

/// What a node gives: the header has come, the chunks follow.
#[derive(Debug)]
pub struct FetchedSnapshot {
    /// What it is.
    pub header: Header,
    parts: Streaming<v1::FetchSnapshotReply>,
}

impl FetchedSnapshot {
    pub(crate) async fn begin(mut parts: Streaming<v1::FetchSnapshotReply>) -> Result<Self, Error> {
        match message(&mut parts).await? {
            Some(Part::Header(header)) => Ok(Self { header, parts }),
            _ => Err(malformed("a header was expected")),
        }
    }

    /// The next chunk of the file; `None` at its end.
    ///
    /// # Errors
    /// When the node or the connection fails; the transfer is begun anew then.
    pub async fn next(&mut self) -> Result<Option<Chunk>, Error> {
        match message(&mut self.parts).await? {
            Some(Part::Chunk(chunk)) => Ok(Some(chunk)),
            Some(Part::Header(_)) => Err(malformed("a chunk was expected")),
            None => Ok(None),
        }
    }
}

async fn message(parts: &mut Streaming<v1::FetchSnapshotReply>) -> Result<Option<Part>, Error> {
    let message = parts.message().await.map_err(|status| Error::from_status(&status))?;
    Ok(message.and_then(|message| message.part))
}

fn malformed(reason: &str) -> Error {
    Error::from_status(&tonic::Status::internal(format!("a malformed snapshot: {reason}")))
}
