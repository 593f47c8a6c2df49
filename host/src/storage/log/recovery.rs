//! Before raft-log opens its chunks: is the end of the log torn, or is the log damaged?
//!
//! raft-log takes some damage for a torn tail, and some torn tails for damage. So it is told to cut
//! nothing, and what may be cut is cut here. A record that cannot be read is **torn** when the
//! file ends inside it, or when sectors of it are zeros where the system had not written them yet,
//! and no record after it attests that it was synced (`record::synced_upto`). Nobody was promised
//! a torn record: it and all after it are cut, with a warning. Anything else is damage: the start
//! is refused, naming file and offset.
//!
//! Only the last chunk can be torn. raft-log writes the first record of a chunk after it has
//! synced the chunk before, so a chunk without a whole first record does not count yet.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

use raft_log::codeq::Decode as _;

use super::record::{self, LOG_ID_BYTES, PAYLOAD_HEADER_BYTES, PayloadHeader, Record, RecordLogId};
use crate::storage::{Error, durable};

/// The unit in which a disk writes: a torn write leaves whole ones of old bytes.
const SECTOR_BYTES: usize = 512;
/// Longer than any record but one with a payload.
const SHORT_RECORD_BYTES: usize = 192;
/// Type of a record and the tag that follows: in what was written, five bytes are never all zero.
const RECORD_START_BYTES: usize = 5;
/// The first record of a new log. A chunk that is no longer was never acknowledged.
const FIRST_RECORD_BYTES: u64 = 18;
const LOCK_FILE: &str = "LOCK";

/// A file of the log; `start` is the byte of the log that it begins with.
pub(super) struct Chunk {
    start: u64,
    path: PathBuf,
}

impl Chunk {
    fn read(&self) -> Result<Vec<u8>, Error> {
        std::fs::read(&self.path).map_err(|error| Error::io(&self.path, error))
    }

    fn damaged(&self, offset: usize, reason: impl Into<String>) -> Error {
        Error::damaged(&self.path, offset_u64(offset), reason)
    }
}

/// Cuts a torn end. Afterwards the chunks are whole as far as their lengths tell, and the last
/// one record by record.
///
/// # Errors
/// `Damaged`, and nothing is changed.
pub(super) fn cut_torn_tail(folder: &Path) -> Result<(), Error> {
    let mut chunks = list(folder)?;
    while let Some(tail) = chunks.last() {
        let bytes = tail.read()?;
        let Some(torn) = first_bad_record(tail, &bytes)? else { break };
        if torn.offset > 0 {
            check_lengths(&chunks)?;
            return cut(tail, &bytes, &torn);
        }
        let is_new_log = tail.start == 0 && offset_u64(bytes.len()) <= FIRST_RECORD_BYTES;
        if chunks.len() == 1 && !is_new_log {
            return Err(tail.damaged(0, torn.reason));
        }
        tracing::warn!(file = %tail.path.display(), "removed a chunk whose first record is torn");
        std::fs::remove_file(&tail.path).map_err(|error| Error::io(&tail.path, error))?;
        durable::sync_folder(folder)?;
        chunks.pop();
    }
    check_lengths(&chunks)
}

/// Finds the damage that made raft-log refuse the folder; `None` when every record can be read.
pub(super) fn find_damage(folder: &Path) -> Result<Option<Error>, Error> {
    for chunk in list(folder)? {
        let bytes = chunk.read()?;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let offset = bytes.len() - rest.len();
            if let Err(error) = Record::decode(&mut rest) {
                return Ok(Some(chunk.damaged(offset, error.to_string())));
            }
        }
    }
    Ok(None)
}

/// The chunks in order.
///
/// # Errors
/// `Damaged` for a file by any other name: a chunk that was renamed would be missed silently.
fn list(folder: &Path) -> Result<Vec<Chunk>, Error> {
    let mut chunks = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| Error::io(folder, error))? {
        let entry = entry.map_err(|error| Error::io(folder, error))?;
        let (name, path) = (entry.file_name(), entry.path());
        if name == LOCK_FILE {
            continue;
        }
        let start = raft_log::chunked_wal::Config::parse_chunk_file_name(&name.to_string_lossy())
            .map_err(|_| {
            Error::damaged(&path, 0, "a file of the log has a name that none has")
        })?;
        chunks.push(Chunk { start, path });
    }
    chunks.sort_by_key(|chunk| chunk.start);
    Ok(chunks)
}

/// Each chunk but the last ends where the next one starts.
fn check_lengths(chunks: &[Chunk]) -> Result<(), Error> {
    for pair in chunks.windows(2) {
        let (chunk, next) = (&pair[0], &pair[1]);
        let metadata = std::fs::metadata(&chunk.path);
        let length = metadata.map_err(|error| Error::io(&chunk.path, error))?.len();
        let expected = next.start - chunk.start;
        if length != expected {
            let reason = format!("{length} bytes long, and the next chunk starts after {expected}");
            return Err(Error::damaged(&chunk.path, length.min(expected), reason));
        }
    }
    Ok(())
}

struct Torn {
    offset: usize,
    reason: String,
}

/// Reads all records; where one cannot be read, decides whether it is torn.
fn first_bad_record(chunk: &Chunk, bytes: &[u8]) -> Result<Option<Torn>, Error> {
    let mut rest = bytes;
    if rest.is_empty() {
        return Ok(Some(Torn { offset: 0, reason: "the file is empty".to_owned() }));
    }
    while !rest.is_empty() {
        let offset = bytes.len() - rest.len();
        let Err(error) = Record::decode(&mut rest) else { continue };
        let reason = error.to_string();
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Ok(Some(Torn { offset, reason }));
        }
        if attested_upto(&bytes[offset..]) > chunk.start + offset_u64(offset) {
            let reason = format!("{reason}, and a record after it says that it was synced");
            return Err(chunk.damaged(offset, reason));
        }
        if !has_hole(bytes, offset) {
            return Err(chunk.damaged(offset, reason));
        }
        return Ok(Some(Torn { offset, reason }));
    }
    Ok(None)
}

/// The highest byte of the log that any record after the first byte of `bytes` attests as synced.
fn attested_upto(bytes: &[u8]) -> u64 {
    let mut attested = 0;
    let mut position = 1;
    while position < bytes.len() {
        let mut rest = &bytes[position..];
        match rest {
            // The types of the records that can attest: a vote, an entry, a checkpoint.
            [0, 0, 0, 0 | 1 | 5, ..] => match Record::decode(&mut rest) {
                Ok(record) => {
                    attested = attested.max(record::synced_upto(&record));
                    position = bytes.len() - rest.len();
                }
                Err(_) => position += 1,
            },
            _ => position += 1,
        }
    }
    attested
}

/// Whether zeros explain that the record at `offset` cannot be read: a sector of it, or as much of
/// the sector as follows `offset` or comes before the end of the file, was never written.
fn has_hole(bytes: &[u8], offset: usize) -> bool {
    let end = record_end(&bytes[offset..]).map_or(offset + SHORT_RECORD_BYTES, |end| offset + end);
    let mut from = offset;
    while from < end.min(bytes.len()) {
        let upto = (from / SECTOR_BYTES + 1) * SECTOR_BYTES;
        let sector = &bytes[from..upto.min(bytes.len())];
        let is_telling = sector.len() >= RECORD_START_BYTES || upto >= bytes.len();
        if is_telling && sector.iter().all(|byte| *byte == 0) {
            return true;
        }
        from = upto;
    }
    false
}

/// Length of the record with a payload at the start of `bytes`, as far as its header can be
/// believed.
fn record_end(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes.strip_prefix(&[0, 0, 0, 1])?;
    RecordLogId::decode(&mut rest).ok()?;
    let header = PayloadHeader::decode(&mut rest).ok()?;
    let checksum_bytes = 8;
    Some(4 + LOG_ID_BYTES + PAYLOAD_HEADER_BYTES + header.length + checksum_bytes)
}

fn cut(chunk: &Chunk, bytes: &[u8], torn: &Torn) -> Result<(), Error> {
    tracing::warn!(
        file = %chunk.path.display(),
        offset = torn.offset,
        dropped_bytes = bytes.len() - torn.offset,
        reason = torn.reason,
        "cut the torn end of the log, which was never acknowledged"
    );
    let io_error = |error| Error::io(&chunk.path, error);
    let file = OpenOptions::new().write(true).open(&chunk.path).map_err(io_error)?;
    file.set_len(offset_u64(torn.offset)).map_err(io_error)?;
    file.sync_all().map_err(io_error)
}

fn offset_u64(offset: usize) -> u64 {
    u64::try_from(offset).expect("a usize fits")
}
