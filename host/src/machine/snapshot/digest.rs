//! The digest by which nodes compare their states at a checkpoint: SHA-256 over all pieces of a
//! snapshot (layout: docs/formats.md, "Digest of a checkpoint"). Equal states are sent as equal
//! pieces (`content`), and nothing in them is a node's own.

use sha2::{Digest as _, Sha256};

use crate::machine::snapshot::content::Piece;
use crate::types::StateDigest;

/// Begins a section in what is hashed.
const SECTION: u8 = 1;
/// Begins a chunk.
const CHUNK: u8 = 2;

/// Takes pieces in the order of the snapshot.
#[derive(Default)]
pub struct ContentDigest {
    hasher: Sha256,
}

impl ContentDigest {
    /// Adds the next piece.
    pub fn add(&mut self, piece: &Piece) {
        match piece {
            Piece::Begin(kind) => self.hasher.update([SECTION, *kind]),
            Piece::Chunk(bytes) => {
                let length = u64::try_from(bytes.len()).expect("a length in memory fits");
                self.hasher.update([CHUNK]);
                self.hasher.update(length.to_le_bytes());
                self.hasher.update(bytes);
            }
            Piece::End => {}
        }
    }

    /// The digest of all that was added.
    pub fn finish(self) -> StateDigest {
        StateDigest(self.hasher.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::snapshot::content::{SECTION_EXPORT, SECTION_EXPORT_END, SECTION_TABLES};

    fn digest(pieces: &[Piece]) -> StateDigest {
        let mut digest = ContentDigest::default();
        pieces.iter().for_each(|piece| digest.add(piece));
        digest.finish()
    }

    fn chunk(bytes: &[u8]) -> Piece {
        Piece::Chunk(bytes.to_vec())
    }

    /// Every byte, boundary and kind counts.
    #[test]
    fn everything_counts() {
        let export = [Piece::Begin(SECTION_EXPORT), chunk(b"head"), chunk(b"state")];
        let end = [Piece::Begin(SECTION_EXPORT_END), chunk(&[1])];
        let tables = [Piece::Begin(SECTION_TABLES), chunk(b"tables"), Piece::End];
        let whole = [&export[..], &end, &tables].concat();
        assert_eq!(digest(&whole), digest(&whole.clone()));
        let others = [
            [&export[..], &tables].concat(),
            [&export[..2], &[chunk(b"statf")], &end, &tables].concat(),
            [&export[..2], &[chunk(b"sta"), chunk(b"te")], &end, &tables].concat(),
            [&[Piece::Begin(SECTION_TABLES)], &export[1..], &end, &tables].concat(),
            [&export[..], &end, &tables[..1]].concat(),
        ];
        for other in others {
            assert_ne!(digest(&whole), digest(&other), "{other:?}");
        }
    }
}
