//! Reads the sections of a snapshot in order, verifying as it goes.
//!
//! Each chunk is checked before it is given out, and the whole file at its end, so what a caller
//! has from a reader that ended without an error is what the writer wrote.

use std::io::{BufReader, Read as _};

use bytes::Bytes;

use super::format::{self, BLOCK_HEADER_BYTES, BlockHeader, FOOTER_BYTES, Tag};
use super::{RawReader, Snapshot};
use crate::storage::Error;

const BUFFER_BYTES: usize = 256 << 10;

/// A pass over a snapshot: `next_section`, then `next_chunk` until `None`, and so on.
pub struct SnapshotReader {
    snapshot: Snapshot,
    input: BufReader<RawReader>,
    offset: u64,
    file_crc32c: u32,
    /// A block whose header is read and whose body is not.
    pending: Option<(BlockHeader, [u8; BLOCK_HEADER_BYTES])>,
    header_is_read: bool,
}

impl SnapshotReader {
    pub(super) fn new(snapshot: Snapshot) -> Self {
        let input = BufReader::with_capacity(BUFFER_BYTES, snapshot.raw_reader(0));
        Self { snapshot, input, offset: 0, file_crc32c: 0, pending: None, header_is_read: false }
    }

    /// How far it has read, in bytes of the file.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Kind of the next section, past what is left of this one; `None` at the end of the file,
    /// when all of it is verified.
    ///
    /// # Errors
    /// `Damaged` names the file and the offset.
    pub fn next_section(&mut self) -> Result<Option<u8>, Error> {
        while let Some((header, encoded)) = self.next_block()? {
            let body = self.take_body(&header, &encoded)?;
            if header.tag == Tag::Section {
                return Ok(Some(header.kind));
            }
            drop(body);
        }
        Ok(None)
    }

    /// Next chunk of this section, with the boundaries it was written with; `None` where the
    /// section ends.
    ///
    /// # Errors
    /// `Damaged` names the file and the offset.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, Error> {
        let Some((header, encoded)) = self.next_block()? else { return Ok(None) };
        if header.tag == Tag::Section {
            return Ok(None);
        }
        let at = self.offset;
        let stored = self.take_body(&header, &encoded)?;
        let plain_bytes = usize::try_from(header.plain_bytes).expect("bounded by the maximum");
        if !header.compressed {
            return Ok(Some(Bytes::from(stored)));
        }
        let plain = zstd::bulk::decompress(&stored, plain_bytes)
            .map_err(|error| self.damaged(at, format!("a chunk does not decompress: {error}")))?;
        if plain.len() != plain_bytes {
            return Err(self.damaged(at, "a chunk decompresses to another length"));
        }
        Ok(Some(Bytes::from(plain)))
    }

    /// Header of the block ahead, which stays ahead until `take_body`; `None` at the footer.
    fn next_block(&mut self) -> Result<Option<(BlockHeader, [u8; BLOCK_HEADER_BYTES])>, Error> {
        if self.pending.is_some() {
            return Ok(self.pending);
        }
        if !self.header_is_read {
            let mut header = vec![0; format::header_bytes(self.snapshot.meta().len())];
            self.read(&mut header)?;
            self.header_is_read = true;
        }
        if self.offset == self.footer_offset() {
            return self.check_end().map(|()| None);
        }
        let at = self.offset;
        let mut encoded = [0; BLOCK_HEADER_BYTES];
        self.read(&mut encoded)?;
        let header = BlockHeader::decode(&encoded).map_err(|reason| self.damaged(at, reason))?;
        if self.offset + u64::from(header.stored_bytes) > self.footer_offset() {
            return Err(self.damaged(at, "a block reaches past the end of the file"));
        }
        self.pending = Some((header, encoded));
        Ok(self.pending)
    }

    /// Reads the body of the block ahead, and checks the block.
    fn take_body(
        &mut self,
        header: &BlockHeader,
        encoded: &[u8; BLOCK_HEADER_BYTES],
    ) -> Result<Vec<u8>, Error> {
        let at = self.offset;
        self.pending = None;
        let mut stored = vec![0; usize::try_from(header.stored_bytes).expect("bounded")];
        self.read(&mut stored)?;
        if header.encode(&stored) != *encoded {
            return Err(self.damaged(at, "checksum of a block differs"));
        }
        Ok(stored)
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
