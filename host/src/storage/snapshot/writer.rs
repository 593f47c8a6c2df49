//! Writes one snapshot file, chunk by chunk, with memory for one chunk at a time.

use std::fs::File;
use std::io::{BufWriter, Write as _};

use tempfile::NamedTempFile;

use super::format::{self, BlockHeader, CHUNK_BYTES_MAX, Tag};
use super::{SYNC_BYTES, Snapshot, SnapshotDir, SnapshotId};
use crate::storage::{Error, durable};
use crate::types::LogId;

/// Level 1: snapshots are written beside live traffic, and processor time is dearer than disk.
const ZSTD_LEVEL: i32 = 1;
const BUFFER_BYTES: usize = 1 << 20;

/// A snapshot being written. Dropped before [`SnapshotWriter::finish`], it leaves nothing behind.
/// Once begun, it needs no other descriptor.
pub struct SnapshotWriter {
    dir: SnapshotDir,
    folder: File,
    last: Option<LogId>,
    out: BufWriter<NamedTempFile>,
    compressor: zstd::bulk::Compressor<'static>,
    scratch: Vec<u8>,
    /// Kind of the section that chunks go to.
    kind: Option<u8>,
    written_bytes: u64,
    synced_bytes: u64,
    file_crc32c: u32,
}

impl SnapshotWriter {
    pub(super) fn begin(dir: SnapshotDir, last: Option<LogId>, meta: &[u8]) -> Result<Self, Error> {
        dir.check_room()?;
        let header = format::encode_header(last, meta)?;
        let folder = durable::open_folder(&dir.folder)?;
        let temporary = durable::temporary_in(&dir.folder)?;
        let compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL)
            .map_err(|error| Error::io(temporary.path(), error))?;
        let mut writer = Self {
            dir,
            folder,
            last,
            out: BufWriter::with_capacity(BUFFER_BYTES, temporary),
            compressor,
            scratch: Vec::new(),
            kind: None,
            written_bytes: 0,
            synced_bytes: 0,
            file_crc32c: 0,
        };
        writer.write(&header)?;
        Ok(writer)
    }

    /// Starts a section; the chunks that follow are its.
    pub fn section(&mut self, kind: u8) -> Result<(), Error> {
        self.kind = Some(kind);
        let header = BlockHeader {
            tag: Tag::Section,
            kind,
            compressed: false,
            stored_bytes: 0,
            plain_bytes: 0,
        };
        self.block(&header, &[])
    }

    /// Adds a chunk of at most [`CHUNK_BYTES_MAX`] bytes to the current section. The reader gets
    /// it back with the same boundaries.
    ///
    /// # Errors
    /// `Refused` before the first section and for a chunk that is too long.
    pub fn chunk(&mut self, plain: &[u8]) -> Result<(), Error> {
        let kind = self.kind.ok_or_else(|| {
            Error::Refused("a chunk of a snapshot stands before its first section".to_owned())
        })?;
        if plain.len() > CHUNK_BYTES_MAX {
            return Err(Error::Refused(format!(
                "a chunk of {} bytes is longer than {CHUNK_BYTES_MAX}",
                plain.len()
            )));
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(zstd::zstd_safe::compress_bound(plain.len()), 0);
        let compressed = self.compressor.compress_to_buffer(plain, scratch.as_mut_slice());
        let compressed = compressed.map_err(|error| Error::io(self.out.get_ref().path(), error))?;
        let is_shorter = compressed < plain.len();
        let stored = if is_shorter { &scratch[..compressed] } else { plain };
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("bounded by the maximum");
        let header = BlockHeader {
            tag: Tag::Chunk,
            kind,
            compressed: is_shorter,
            stored_bytes: length(stored),
            plain_bytes: length(plain),
        };
        assert!(header.stored_bytes <= header.plain_bytes, "the shorter form is stored");
        self.block(&header, stored)?;
        self.scratch = scratch;
        if self.written_bytes - self.synced_bytes >= SYNC_BYTES {
            self.sync()?;
        }
        Ok(())
    }

    /// Bytes of the file so far, after compression.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Completes the file and makes it visible and durable. Where a snapshot of the same log id
    /// is there already, that one stays and is returned.
    pub fn finish(mut self) -> Result<Snapshot, Error> {
        let footer = format::encode_footer(self.written_bytes, self.file_crc32c);
        let file_crc32c = self.file_crc32c;
        self.write(&footer)?;
        let id = SnapshotId { last: self.last, file_crc32c, length: self.written_bytes };
        let path = self.out.get_ref().path().to_owned();
        let temporary =
            self.out.into_inner().map_err(|error| Error::io(&path, error.into_error()))?;
        self.dir.admit(&self.folder, temporary, &id, false)
    }

    fn block(&mut self, header: &BlockHeader, stored: &[u8]) -> Result<(), Error> {
        let encoded = header.encode(stored);
        assert_eq!(BlockHeader::decode(&encoded), Ok(*header), "what is encoded can be decoded");
        self.write(&encoded)?;
        self.write(stored)
    }

    fn sync(&mut self) -> Result<(), Error> {
        self.dir.check_room()?;
        let synced = self.out.flush().and_then(|()| self.out.get_ref().as_file().sync_data());
        synced.map_err(|error| Error::io(self.out.get_ref().path(), error))?;
        self.synced_bytes = self.written_bytes;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file_crc32c = crc32c::crc32c_append(self.file_crc32c, bytes);
        self.written_bytes += u64::try_from(bytes.len()).expect("a usize fits");
        self.out.write_all(bytes).map_err(|error| Error::io(self.out.get_ref().path(), error))
    }
}
