//! The records of the log and their bytes (docs/formats.md, "Log").
//!
//! **Invariant:** a header stands under a checksum of its own, so that a length is never believed
//! unchecked, and names its own place, so that a record is never believed anywhere else.
//! **Invariant:** a record begins and ends with a byte that is not zero: where nothing was written
//! yet there are zeros, and so a record that is whole never looks unwritten at its ends.

use std::io;

use bytes::{Buf as _, BufMut as _, Bytes};

use super::{LogState, as_u64};
use crate::codec::{self, LOG_ID_BYTES, Reader, VOTE_BYTES, put_log_id, put_option, put_vote};
use crate::types::{LogId, Vote};

/// Longest payload of an entry, in bytes; bounds what a reader allocates.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// Kind, version, kind of the payload, reserved, length, position, `synced_upto`, two checksums.
pub(super) const HEADER_BYTES: usize = 1 + 1 + 1 + 1 + 4 + 8 + 8 + 4 + 4;
const VERSION: u8 = 1;
/// The longest body of a record that is no entry.
const STATE_BYTES_MAX: usize = 1 + VOTE_BYTES + 4 * (1 + LOG_ID_BYTES);
/// The last byte of a record.
const END: u8 = 0xa5;

const STATE: u8 = 1;
const VOTE: u8 = 2;
const ENTRY: u8 = 3;
const COMMITTED: u8 = 4;
const TRUNCATED: u8 = 5;
const PURGED: u8 = 6;
const ANNOUNCED: u8 = 7;

/// The payload of a log entry: bytes, and what sort of bytes the caller says they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// The caller's own tag.
    pub kind: u8,
    /// The entry, as it goes to disk.
    pub bytes: Bytes,
}

/// What is written to the log, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// Where the log stands: the first record of each segment, so that the segments before it can
    /// go, and the mark of a clean stop.
    State(LogState),
    Vote(Vote),
    Entry(LogId, Payload),
    Committed(LogId),
    /// The entries after this one are gone.
    Truncated(Option<LogId>),
    /// The entries up to this one are gone.
    Purged(LogId),
    /// A snapshot of a peer, which holds the entries up to this one, is about to get its name.
    Announced(LogId),
}

/// What a header says beside kind and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// The byte of the log at which the record begins.
    pub(super) position: u64,
    /// Up to which byte of the log everything was known to be on disk when this was written. After
    /// a crash it tells a torn end, which nobody was promised, from durable bytes that went bad.
    pub(super) synced_upto: u64,
}

/// A record that was read.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) record: Record,
    /// Where the next one begins.
    pub(super) end: usize,
}

/// Why there is no record at a place.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) reason: String,
    /// How far it would reach, as far as that is known.
    pub(super) end: usize,
}

/// A header that is whole and in its place.
pub(super) struct Header {
    kind: u8,
    payload_kind: u8,
    length: usize,
    checksum: u32,
    pub(super) synced_upto: u64,
}

impl Record {
    /// Bytes that an entry with a payload of this length takes.
    pub(super) fn entry_bytes(payload: usize) -> u64 {
        as_u64(HEADER_BYTES + LOG_ID_BYTES + payload + 1)
    }

    /// Bytes that the record takes, at most.
    pub(super) fn bytes_max(&self) -> u64 {
        match self {
            Self::Entry(_, payload) => Self::entry_bytes(payload.bytes.len()),
            _ => as_u64(HEADER_BYTES + STATE_BYTES_MAX + 1),
        }
    }

    /// Writes the record to the end of `buffer`, which is left as it was on an error.
    pub(super) fn encode(&self, stamp: Stamp, buffer: &mut Vec<u8>) -> io::Result<()> {
        let (kind, payload_kind) = match self {
            Self::State(_) => (STATE, 0),
            Self::Vote(_) => (VOTE, 0),
            Self::Entry(_, payload) if payload.bytes.len() > PAYLOAD_BYTES_MAX => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "a payload is too long"));
            }
            Self::Entry(_, payload) => (ENTRY, payload.kind),
            Self::Committed(_) => (COMMITTED, 0),
            Self::Truncated(_) => (TRUNCATED, 0),
            Self::Purged(_) => (PURGED, 0),
            Self::Announced(_) => (ANNOUNCED, 0),
        };
        assert!(stamp.synced_upto <= stamp.position, "a record is not synced before it is written");
        let start = buffer.len();
        buffer.put_bytes(0, HEADER_BYTES);
        self.put_body(buffer);
        let (header, body) = buffer[start..].split_at_mut(HEADER_BYTES);
        let mut fields = &mut header[..];
        fields.put_slice(&[kind, VERSION, payload_kind, 0]);
        fields.put_u32_le(u32::try_from(body.len()).expect("payloads are bounded"));
        fields.put_u64_le(stamp.position);
        fields.put_u64_le(stamp.synced_upto);
        fields.put_u32_le(crc32c::crc32c(body));
        let checksum = crc32c::crc32c(&header[..HEADER_BYTES - 4]);
        header[HEADER_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
        buffer.put_u8(END);
        assert!(as_u64(buffer.len() - start) <= self.bytes_max(), "its length was told before");
        Ok(())
    }

    fn put_body(&self, buffer: &mut Vec<u8>) {
        match self {
            Self::State(state) => {
                put_option(buffer, state.vote, put_vote);
                put_option(buffer, state.purged, put_log_id);
                put_option(buffer, state.last, put_log_id);
                put_option(buffer, state.committed, put_log_id);
                put_option(buffer, state.announced, put_log_id);
            }
            Self::Vote(vote) => put_vote(buffer, *vote),
            Self::Entry(id, payload) => {
                put_log_id(buffer, *id);
                buffer.put_slice(&payload.bytes);
            }
            Self::Committed(id) | Self::Purged(id) | Self::Announced(id) => {
                put_log_id(buffer, *id);
            }
            Self::Truncated(last) => put_option(buffer, *last, put_log_id),
        }
    }

    /// Reads the body of a record.
    fn from_body(header: &Header, body: Bytes) -> Result<Self, codec::Error> {
        let mut fields = Reader::new(&body);
        let record = match header.kind {
            STATE => Self::State(LogState {
                vote: fields.option(Reader::vote)?,
                purged: fields.option(Reader::log_id)?,
                last: fields.option(Reader::log_id)?,
                committed: fields.option(Reader::log_id)?,
                announced: fields.option(Reader::log_id)?,
            }),
            VOTE => Self::Vote(fields.vote()?),
            ENTRY => {
                let id = fields.log_id()?;
                let bytes = body.slice(LOG_ID_BYTES..);
                return Ok(Self::Entry(id, Payload { kind: header.payload_kind, bytes }));
            }
            COMMITTED => Self::Committed(fields.log_id()?),
            TRUNCATED => Self::Truncated(fields.option(Reader::log_id)?),
            PURGED => Self::Purged(fields.log_id()?),
            ANNOUNCED => Self::Announced(fields.log_id()?),
            found => return Err(codec::Error::Kind { what: "a record", found }),
        };
        fields.finish().map(|()| record)
    }
}

/// Reads the record at `offset` of `bytes`, which is byte `position` of the log. A payload shares
/// its bytes with `bytes`.
pub(super) fn decode(bytes: &Bytes, offset: usize, position: u64) -> Result<Found, Unreadable> {
    let header = read_header(&bytes[offset..], position)
        .map_err(|reason| Unreadable { reason: reason.to_owned(), end: offset + HEADER_BYTES })?;
    let body = offset + HEADER_BYTES;
    let end = body + header.length + 1;
    let unreadable = |reason: &str| Unreadable { reason: reason.to_owned(), end };
    if end > bytes.len() {
        return Err(unreadable("the file ends inside a record"));
    }
    let body = bytes.slice(body..body + header.length);
    if crc32c::crc32c(&body) != header.checksum || bytes[end - 1] != END {
        return Err(unreadable("the checksum of a record differs"));
    }
    match Record::from_body(&header, body) {
        Ok(record) => Ok(Found { record, end }),
        Err(error) => {
            Err(unreadable(&format!("a record is none that this version writes: {error}")))
        }
    }
}

/// Reads the header with which `bytes` begin, which are the log from byte `position` on.
pub(super) fn read_header(bytes: &[u8], position: u64) -> Result<Header, &'static str> {
    let Some((header, _)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Err("the file ends inside the header of a record");
    };
    let mut fields = header;
    let (kind, version, payload_kind, _) =
        (fields.get_u8(), fields.get_u8(), fields.get_u8(), fields.get_u8());
    let length = usize::try_from(fields.get_u32_le()).map_err(|_| "a record is too long")?;
    let (found_position, synced_upto) = (fields.get_u64_le(), fields.get_u64_le());
    let checksum = fields.get_u32_le();
    if fields.get_u32_le() != crc32c::crc32c(&header[..HEADER_BYTES - 4]) {
        return Err("the checksum of a record's header differs");
    }
    if version != VERSION {
        return Err("a record is of a later version of Lockstep");
    }
    if found_position != position {
        return Err("a record belongs to another place of the log");
    }
    Ok(Header { kind, payload_kind, length, checksum, synced_upto })
}

/// The byte of the log with which a segment begins, from its first record; `None` when that has no
/// whole header.
pub(super) fn first_position(bytes: &[u8]) -> Option<u64> {
    let mut field = bytes.get(8..16)?;
    let position = field.get_u64_le();
    read_header(bytes, position).is_ok().then_some(position)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;

    fn log_id(index: u64) -> LogId {
        LogId { term: 3, node: NodeId(2), index }
    }

    fn records() -> Vec<Record> {
        let vote = Vote { term: 7, node: NodeId(1), committed: true };
        let state = LogState {
            vote: Some(vote),
            purged: None,
            last: Some(log_id(9)),
            committed: Some(log_id(8)),
            announced: Some(log_id(4)),
        };
        vec![
            Record::State(LogState::default()),
            Record::State(state),
            Record::Vote(vote),
            Record::Entry(log_id(10), Payload { kind: 2, bytes: Bytes::from_static(b"payload") }),
            Record::Entry(log_id(11), Payload { kind: 0, bytes: Bytes::new() }),
            Record::Committed(log_id(10)),
            Record::Truncated(None),
            Record::Truncated(Some(log_id(10))),
            Record::Purged(log_id(9)),
            Record::Announced(log_id(20)),
        ]
    }

    /// Records come back as they were written, one after the other.
    #[test]
    fn records_come_back() {
        let mut buffer = Vec::new();
        for record in records() {
            let position = 1000 + u64::try_from(buffer.len()).unwrap();
            record.encode(Stamp { position, synced_upto: 77 }, &mut buffer).unwrap();
        }
        let bytes = Bytes::from(buffer);
        let mut offset = 0;
        for record in records() {
            let position = 1000 + u64::try_from(offset).unwrap();
            assert_eq!(read_header(&bytes[offset..], position).unwrap().synced_upto, 77);
            let found = decode(&bytes, offset, position).unwrap();
            assert_eq!(found.record, record);
            offset = found.end;
        }
        assert_eq!(offset, bytes.len());
        assert_eq!(first_position(&bytes), Some(1000));
    }

    /// Any bit that is flipped is noticed, in every kind of record; so is another place.
    #[test]
    fn a_flipped_bit_is_noticed() {
        let stamp = Stamp { position: 512, synced_upto: 100 };
        for record in records() {
            let mut buffer = Vec::new();
            record.encode(stamp, &mut buffer).unwrap();
            for bit in 0..buffer.len() * 8 {
                let mut flipped = buffer.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(decode(&Bytes::from(flipped), 0, 512).is_err(), "{record:?}, bit {bit}");
            }
            assert!(decode(&Bytes::from(buffer), 0, 513).is_err(), "{record:?} elsewhere");
        }
    }

    /// What is shorter than a record is none, wherever it ends.
    #[test]
    fn a_short_record_is_unreadable() {
        for record in records() {
            let mut buffer = Vec::new();
            record.encode(Stamp { position: 0, synced_upto: 0 }, &mut buffer).unwrap();
            for length in 0..buffer.len() {
                let short = Bytes::copy_from_slice(&buffer[..length]);
                let unreadable = decode(&short, 0, 0).unwrap_err();
                assert!(unreadable.end > length, "{record:?} of {length} bytes");
            }
        }
    }
}
