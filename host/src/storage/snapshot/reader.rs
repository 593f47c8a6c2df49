//! Reads the sections of a snapshot in order, verifying as it goes.
//!
//! Each chunk is checked before it is given out, and the whole file at its end, so what a caller
//! has from a reader that ended without an error is what the writer wrote.

use std::io::{BufReader, Read as _};

use bytes::Bytes;

use super::format::{self, BLOCK_HEADER_BYTES, BlockHeader, FOOTER_BYTES, Tag};
use super::{RawReader, Snapshot};
use crate::storage::Error;
use crate::storage::blocking::may_block;

const BUFFER_BYTES: usize = 256 << 10;

/// A part of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// A section of this kind begins.
    Section(u8),
    /// A chunk of the section, with the boundaries it was written with.
    Chunk(Bytes),
}

/// A pass over a snapshot, part by part.
pub struct SnapshotReader {
    snapshot: Snapshot,
    input: BufReader<RawReader>,
    offset: u64,
    file_crc32c: u32,
    /// Kind of the section that chunks are of.
    section: Option<u8>,
}

impl SnapshotReader {
    pub(super) fn new(snapshot: Snapshot) -> Self {
        let input = BufReader::with_capacity(BUFFER_BYTES, RawReader::new(snapshot.clone()));
        Self { snapshot, input, offset: 0, file_crc32c: 0, section: None }
    }

    /// How far it has read, in bytes of the file.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next part; `None` at the end of the file, when all of it is verified.
    ///
    /// # Errors
    /// `Damaged` names the file and the offset.
    pub fn next_part(&mut self) -> Result<Option<Part>, Error> {
        may_block();
        if self.offset == 0 {
            let mut header = vec![0; format::header_bytes(self.snapshot.meta().len())];
            self.read(&mut header)?;
            assert!(self.offset <= self.footer_offset(), "opening it checked where it ends");
        }
        if self.offset == self.footer_offset() {
            return self.check_end().map(|()| None);
        }
        let at = self.offset;
        let (header, stored) = self.next_block()?;
        if header.tag == Tag::Section {
            self.section = Some(header.kind);
            return Ok(Some(Part::Section(header.kind)));
        }
        if self.section != Some(header.kind) {
            return Err(self.damaged(at, "a chunk is not of the section that it stands in"));
        }
        self.plain(&header, stored).map(|chunk| Some(Part::Chunk(chunk)))
    }

    /// The bytes of a chunk as they were before compression.
    fn plain(&self, header: &BlockHeader, stored: Vec<u8>) -> Result<Bytes, Error> {
        let at = self.offset - u64::from(header.stored_bytes);
        let plain_bytes = usize::try_from(header.plain_bytes).expect("bounded by the maximum");
        if !header.compressed {
            return Ok(Bytes::from(stored));
        }
        let plain = zstd::bulk::decompress(&stored, plain_bytes)
            .map_err(|error| self.damaged(at, format!("a chunk does not decompress: {error}")))?;
        if plain.len() != plain_bytes {
            return Err(self.damaged(at, "a chunk decompresses to another length"));
        }
        Ok(Bytes::from(plain))
    }

    /// Reads the next block, and checks it.
    fn next_block(&mut self) -> Result<(BlockHeader, Vec<u8>), Error> {
        let at = self.offset;
        let mut encoded = [0; BLOCK_HEADER_BYTES];
        self.read(&mut encoded)?;
        let header = BlockHeader::decode(&encoded).map_err(|reason| self.damaged(at, reason))?;
        if self.offset + u64::from(header.stored_bytes) > self.footer_offset() {
            return Err(self.damaged(at, "a block reaches past the end of the file"));
        }
        let at = self.offset;
        let mut stored = vec![0; usize::try_from(header.stored_bytes).expect("bounded")];
        self.read(&mut stored)?;
        if header.encode(&stored) != encoded {
            return Err(self.damaged(at, "checksum of a block differs"));
        }
        Ok((header, stored))
    }

    fn check_end(&self) -> Result<(), Error> {
        if self.file_crc32c == self.snapshot.id().file_crc32c {
            return Ok(());
        }
        Err(self.damaged(self.offset, "checksum of the whole file differs"))
    }

    fn footer_offset(&self) -> u64 {
        self.snapshot.id().length - FOOTER_BYTES
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        self.input.read_exact(buffer).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => self.damaged(self.offset, "the file ends early"),
            _ => Error::io(self.snapshot.path(), error),
        })?;
        self.offset += u64::try_from(buffer.len()).expect("a usize fits");
        self.file_crc32c = crc32c::crc32c_append(self.file_crc32c, buffer);
        Ok(())
    }

    fn damaged(&self, offset: u64, reason: impl Into<String>) -> Error {
        Error::damaged(self.snapshot.path(), offset, reason)
    }
}
