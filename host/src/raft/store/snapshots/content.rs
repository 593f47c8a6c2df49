//! How the replicated state becomes the content of a file, and comes back. The sections are
//! `machine`'s; the last one is the digest of all the others, and the machines never see it.

use tokio::sync::mpsc;

use crate::machine::snapshot::content::Piece;
use crate::machine::{ContentDigest, Environment, HostFailure, Machines, Source};
use crate::storage::Error;
use crate::storage::snapshot::{Part, Snapshot};
use crate::types::StateDigest;

/// Pieces that may wait between the capture and the writer: with blocks of 256 KiB this bounds
/// what a slow disk can make a capture hold in memory.
pub(super) const PIECES_AHEAD: usize = 64;
/// The last section of a file: one chunk, the digest of all that is replicated in those before.
pub(super) const SECTION_DIGEST: u8 = 128;
const DIGEST_BYTES: usize = 32;

/// Builds the state that a snapshot holds.
pub async fn restore(
    environment: Environment,
    snapshot: &Snapshot,
    source: Source,
) -> Result<Machines, HostFailure> {
    let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
    let reader = snapshot.clone();
    let reading = tokio::task::spawn_blocking(move || read(&reader, &sender));
    let machines = Machines::restore(environment, source, pieces).await;
    reading
        .await
        .map_err(|error| HostFailure::Stop(format!("reading a snapshot panicked: {error}")))?;
    machines
}

/// Reads a file as pieces; the first damage ends it as an error.
fn read(snapshot: &Snapshot, pieces: &mpsc::Sender<Result<Piece, String>>) {
    let read = verify_pieces(snapshot, |piece| pieces.blocking_send(Ok(piece)).is_ok());
    if let Err(error) = read {
        // A receiver that is gone has its own error already.
        let _ = pieces.blocking_send(Err(error.to_string()));
    }
}

/// What a snapshot says its content's digest is; `None` for one that was written without it.
pub fn digest_of(snapshot: &Snapshot) -> Option<StateDigest> {
    let chunk = snapshot.last_chunk(SECTION_DIGEST, DIGEST_BYTES)?;
    StateDigest::from_slice(&chunk)
}

/// Reads all of a snapshot, and computes the digest of its content.
pub fn compute_digest(snapshot: &Snapshot) -> Result<StateDigest, Error> {
    let mut digest = ContentDigest::default();
    for_each_piece(snapshot, |piece| {
        digest.add(&piece);
        true
    })?;
    Ok(digest.finish())
}

/// As [`for_each_piece`]; what was read to the end is compared with the digest in the file.
pub fn verify_pieces(
    snapshot: &Snapshot,
    mut take: impl FnMut(Piece) -> bool,
) -> Result<bool, Error> {
    let mut digest = ContentDigest::default();
    let is_whole = for_each_piece(snapshot, |piece| {
        digest.add(&piece);
        take(piece)
    })?;
    match digest_of(snapshot) {
        Some(written) if is_whole && written != digest.finish() => Err(Error::Refused(format!(
            "{}: its content is not what its digest says",
            snapshot.path().display()
        ))),
        _ => Ok(is_whole),
    }
}

/// Gives every piece to `take`, without the digest, until that wants no more; true at the end.
pub fn for_each_piece(
    snapshot: &Snapshot,
    mut take: impl FnMut(Piece) -> bool,
) -> Result<bool, Error> {
    let mut reader = snapshot.open();
    let mut section = None;
    while let Some(part) = reader.next_part()? {
        let piece = match part {
            Part::Section(kind) => {
                section = Some(kind);
                Piece::Begin(kind)
            }
            Part::Chunk(chunk) => Piece::Chunk(chunk.into()),
        };
        if section != Some(SECTION_DIGEST) && !take(piece) {
            return Ok(false);
        }
    }
    Ok(true)
}
