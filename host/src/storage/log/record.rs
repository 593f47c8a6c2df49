//! What we put into raft-log's records: each item in an envelope of our own (docs/formats.md,
//! "Log"), because raft-log's checksum is only reached through lengths that it does not check.
//!
//! **Invariant:** the first byte of an item is its tag and is checked before anything else is
//! read, and a length is believed only under a checksum of its own. So a flipped bit is always
//! `InvalidData`, and `UnexpectedEof` always means that the file ends inside a record.
//!
//! Votes and payloads carry `synced_upto`: up to which byte of the log everything was known to be
//! on disk when they were written. After a crash this tells a torn tail, which nobody was promised,
//! from durable bytes that went bad.

use std::io::{self, Read, Write};

use bytes::{Buf as _, BufMut as _, Bytes};
use raft_log::codeq::{Decode, Encode};

use super::flush::Flushed;
use crate::types::{LogId, NodeId, Vote};

/// Longest payload of an entry, in bytes; bounds what a reader allocates.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 20;

const LOG_ID_TAG: u8 = b'L';
const VOTE_TAG: u8 = b'V';
const PAYLOAD_TAG: u8 = b'P';
const SYNCED_TAG: u8 = b'S';

/// Tag, term, node, index, checksum.
pub(super) const LOG_ID_BYTES: usize = 1 + 24 + 4;
/// Tag, kind, length, synced_upto, checksum of the bytes, checksum of the header.
pub(super) const PAYLOAD_HEADER_BYTES: usize = 1 + 1 + 4 + 8 + 4 + 4;

/// The payload of a log entry: bytes, and what sort of bytes the caller says they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// The caller's own tag.
    pub kind: u8,
    /// The entry, as it goes to disk.
    pub bytes: Bytes,
}

/// raft-log's view of our types.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LogTypes;

impl raft_log::Types for LogTypes {
    type LogId = RecordLogId;
    type LogPayload = RecordPayload;
    type Vote = RecordVote;
    type Callback = Flushed;
    type UserData = SyncedMark;

    fn log_index(log_id: &RecordLogId) -> u64 {
        log_id.0.index
    }

    fn payload_size(payload: &RecordPayload) -> u64 {
        u64::try_from(payload.payload.bytes.len()).expect("a usize fits")
    }
}

/// A record of the log.
pub(super) type Record = raft_log::WALRecord<raft_log::RaftWalTypes<LogTypes>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RecordLogId(pub(super) LogId);

impl Encode for RecordLogId {
    fn encode<W: Write>(&self, writer: W) -> io::Result<usize> {
        let mut bytes = Vec::with_capacity(LOG_ID_BYTES);
        bytes.put_u8(LOG_ID_TAG);
        bytes.put_u64_le(self.0.term);
        bytes.put_u64_le(self.0.node.0);
        bytes.put_u64_le(self.0.index);
        write_checked(writer, bytes)
    }
}

impl Decode for RecordLogId {
    fn decode<R: Read>(reader: R) -> io::Result<Self> {
        let fields: [u8; 24] = read_checked(reader, LOG_ID_TAG, "a log id")?;
        let mut fields = &fields[..];
        let (term, node) = (fields.get_u64_le(), NodeId(fields.get_u64_le()));
        Ok(Self(LogId { term, node, index: fields.get_u64_le() }))
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct RecordVote {
    pub(super) vote: Vote,
    pub(super) synced_upto: u64,
}

impl RecordVote {
    /// Votes of one term and node are ordered: a granted one is more than one asked for.
    fn order(&self) -> (u64, NodeId, bool) {
        (self.vote.term, self.vote.node, self.vote.committed)
    }
}

impl PartialEq for RecordVote {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for RecordVote {}

impl PartialOrd for RecordVote {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        self.order().partial_cmp(&other.order())
    }
}

impl Encode for RecordVote {
    fn encode<W: Write>(&self, writer: W) -> io::Result<usize> {
        let mut bytes = Vec::with_capacity(30);
        bytes.put_u8(VOTE_TAG);
        bytes.put_u64_le(self.vote.term);
        bytes.put_u64_le(self.vote.node.0);
        bytes.put_u8(u8::from(self.vote.committed));
        bytes.put_u64_le(self.synced_upto);
        write_checked(writer, bytes)
    }
}

impl Decode for RecordVote {
    fn decode<R: Read>(reader: R) -> io::Result<Self> {
        let fields: [u8; 25] = read_checked(reader, VOTE_TAG, "a vote")?;
        let mut fields = &fields[..];
        let (term, node) = (fields.get_u64_le(), NodeId(fields.get_u64_le()));
        let committed = fields.get_u8() == 1;
        Ok(Self { vote: Vote { term, node, committed }, synced_upto: fields.get_u64_le() })
    }
}

/// A payload as a record holds it. The bytes are shared with the caller, and copied once: into
/// raft-log's write buffer.
#[derive(Clone, Debug)]
pub(super) struct RecordPayload {
    pub(super) payload: Payload,
    pub(super) synced_upto: u64,
}

impl Encode for RecordPayload {
    fn encode<W: Write>(&self, mut writer: W) -> io::Result<usize> {
        let bytes = &self.payload.bytes;
        if bytes.len() > PAYLOAD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a payload is too long"));
        }
        let mut header = Vec::with_capacity(PAYLOAD_HEADER_BYTES);
        header.put_u8(PAYLOAD_TAG);
        header.put_u8(self.payload.kind);
        header.put_u32_le(u32::try_from(bytes.len()).map_err(io::Error::other)?);
        header.put_u64_le(self.synced_upto);
        header.put_u32_le(crc32c::crc32c(bytes));
        let header_bytes = write_checked(&mut writer, header)?;
        writer.write_all(bytes)?;
        Ok(header_bytes + bytes.len())
    }
}

impl Decode for RecordPayload {
    fn decode<R: Read>(mut reader: R) -> io::Result<Self> {
        let header = PayloadHeader::decode(&mut reader)?;
        let mut bytes = vec![0; header.length];
        reader.read_exact(&mut bytes)?;
        if crc32c::crc32c(&bytes) != header.checksum {
            return Err(invalid("the checksum of a payload differs"));
        }
        let payload = Payload { kind: header.kind, bytes: Bytes::from(bytes) };
        Ok(Self { payload, synced_upto: header.synced_upto })
    }
}

/// What stands before the bytes of a payload. Once decoded, its length can be believed.
pub(super) struct PayloadHeader {
    kind: u8,
    pub(super) length: usize,
    synced_upto: u64,
    checksum: u32,
}

impl Decode for PayloadHeader {
    fn decode<R: Read>(reader: R) -> io::Result<Self> {
        let fields: [u8; 17] = read_checked(reader, PAYLOAD_TAG, "a payload")?;
        let mut fields = &fields[..];
        let kind = fields.get_u8();
        let length = usize::try_from(fields.get_u32_le()).map_err(io::Error::other)?;
        if length > PAYLOAD_BYTES_MAX {
            return Err(invalid("a payload is longer than any that is written"));
        }
        let synced_upto = fields.get_u64_le();
        Ok(Self { kind, length, synced_upto, checksum: fields.get_u32_le() })
    }
}

/// The mark of a clean stop: everything up to this byte of the log is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SyncedMark(pub(super) u64);

impl Encode for SyncedMark {
    fn encode<W: Write>(&self, writer: W) -> io::Result<usize> {
        let mut bytes = Vec::with_capacity(13);
        bytes.put_u8(SYNCED_TAG);
        bytes.put_u64_le(self.0);
        write_checked(writer, bytes)
    }
}

impl Decode for SyncedMark {
    fn decode<R: Read>(reader: R) -> io::Result<Self> {
        let fields: [u8; 8] = read_checked(reader, SYNCED_TAG, "a mark")?;
        Ok(Self(u64::from_le_bytes(fields)))
    }
}

/// Up to which byte of the log a record attests that everything was synced; 0 when it does not.
pub(super) fn synced_upto(record: &Record) -> u64 {
    use raft_log::{RaftLogAction, WALRecord};
    match record {
        WALRecord::Action(RaftLogAction::SaveVote(vote)) => vote.synced_upto,
        WALRecord::Action(RaftLogAction::Append(_, payload)) => payload.synced_upto,
        WALRecord::Checkpoint(state) => state.user_data.map_or(0, |mark| mark.0),
        WALRecord::Action(_) => 0,
    }
}

/// Writes an item that begins with its tag, and a checksum over all of it.
fn write_checked<W: Write>(mut writer: W, mut bytes: Vec<u8>) -> io::Result<usize> {
    let checksum = crc32c::crc32c(&bytes);
    bytes.put_u32_le(checksum);
    writer.write_all(&bytes)?;
    Ok(bytes.len())
}

/// Reads the fields of an item; the tag is checked before anything else is read.
fn read_checked<const FIELDS: usize, R: Read>(
    mut reader: R,
    tag: u8,
    what: &str,
) -> io::Result<[u8; FIELDS]> {
    let mut found = [0];
    reader.read_exact(&mut found)?;
    if found[0] != tag {
        return Err(invalid(&format!("{what} does not start here")));
    }
    let (mut fields, mut checksum) = ([0; FIELDS], [0; 4]);
    reader.read_exact(&mut fields)?;
    reader.read_exact(&mut checksum)?;
    let expected = crc32c::crc32c_append(crc32c::crc32c(&found), &fields);
    if u32::from_le_bytes(checksum) != expected {
        return Err(invalid(&format!("the checksum of {what} differs")));
    }
    Ok(fields)
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
