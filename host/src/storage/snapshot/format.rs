//! Byte layout of a snapshot file (docs/formats.md, "Snapshot"): header, blocks, footer.
//!
//! Pure encoding and decoding plus positioned reads of both ends; no state. All integers are
//! little endian.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bytes::{Buf as _, BufMut as _, Bytes};

use crate::codec::{self, LOG_ID_BYTES, Reader, put_flag, put_log_id};
use crate::storage::Error;
use crate::types::{LogId, NodeId};

/// Longest chunk that a section may hold, in bytes before compression: the most memory that one
/// block needs on either side.
pub const CHUNK_BYTES_MAX: usize = 64 << 20;

const HEADER_MAGIC: &[u8; 8] = b"LSSNAPSH";
const FOOTER_MAGIC: &[u8; 8] = b"LSSNAPEN";
const VERSION: u16 = 1;
const META_BYTES_MAX: usize = 16 << 20;

/// Fixed part of the header: magic, version, whether there is a log id, reserved, the log id or
/// zeros, length of the description, checksum.
const HEADER_BYTES: usize = 8 + 2 + 1 + 1 + LOG_ID_BYTES + 4 + 4;
/// Magic, file length, checksum of all before the footer, checksum of the footer.
const FOOTER: usize = 8 + 8 + 4 + 4;
/// Length of the footer.
pub(super) const FOOTER_BYTES: u64 = 24;
/// Tag, section kind, encoding, reserved, stored length, plain length, checksum.
pub(super) const BLOCK_HEADER_BYTES: usize = 4 + 4 + 4 + 4;

pub(super) struct Header {
    pub(super) last: Option<LogId>,
    pub(super) meta: Bytes,
}

/// Length of the header that carries a description of `meta_bytes` bytes.
pub(super) fn header_bytes(meta_bytes: usize) -> usize {
    HEADER_BYTES + meta_bytes + 4
}

pub(super) fn encode_header(last: Option<LogId>, meta: &[u8]) -> Result<Vec<u8>, Error> {
    let meta_length = u32::try_from(meta.len()).ok().filter(|_| meta.len() <= META_BYTES_MAX);
    let meta_length = meta_length.ok_or_else(|| {
        Error::Refused(format!("a snapshot description of {} bytes is too long", meta.len()))
    })?;
    let mut bytes = Vec::with_capacity(header_bytes(meta.len()));
    bytes.put_slice(HEADER_MAGIC);
    bytes.put_u16_le(VERSION);
    put_flag(&mut bytes, last.is_some());
    bytes.put_u8(0);
    match last {
        Some(id) => put_log_id(&mut bytes, id),
        None => bytes.put_bytes(0, LOG_ID_BYTES),
    }
    bytes.put_u32_le(meta_length);
    bytes.put_u32_le(crc32c::crc32c(&bytes));
    let fields = Reader::new(&bytes[HEADER_MAGIC.len() + 2..HEADER_BYTES - 4]);
    assert_eq!(read_fields(fields), Ok((last, meta.len())), "what is encoded can be decoded");
    bytes.put_slice(meta);
    bytes.put_u32_le(crc32c::crc32c(meta));
    assert_eq!(bytes.len(), header_bytes(meta.len()), "a header is as long as it says");
    Ok(bytes)
}

pub(super) fn read_header(file: &File, path: &Path, length: u64) -> Result<Header, Error> {
    // A file that is shorter than a header tells by its beginning whether it is part of one.
    let mut fixed = [0; HEADER_BYTES];
    let present = usize::try_from(length).map_or(HEADER_BYTES, |length| length.min(HEADER_BYTES));
    read_at(file, path, &mut fixed[..present], 0)?;
    if !fixed.starts_with(HEADER_MAGIC) {
        return Err(Error::damaged(path, 0, "not a snapshot: wrong magic"));
    }
    read_at(file, path, &mut fixed, 0)?;
    let (mut fields, mut checksum) = fixed.split_at(HEADER_BYTES - 4);
    if checksum.get_u32_le() != crc32c::crc32c(fields) {
        return Err(Error::damaged(path, 0, "checksum of the header differs"));
    }
    fields.advance(HEADER_MAGIC.len());
    let version = fields.get_u16_le();
    if version != VERSION {
        return Err(Error::Refused(format!(
            "{}: snapshot format {version} is not known to this version, which knows {VERSION}",
            path.display()
        )));
    }
    let (last, meta_bytes) = read_fields(Reader::new(fields)).map_err(|error| {
        Error::damaged(path, 0, format!("the header is none that this version writes: {error}"))
    })?;
    let ends = u64::try_from(header_bytes(meta_bytes)).expect("a usize fits") + FOOTER_BYTES;
    if ends > length {
        return Err(Error::damaged(path, length, "the file ends inside its header"));
    }
    Ok(Header { last, meta: read_meta(file, path, meta_bytes)? })
}

/// The last log id and the length of the description, from the fields behind the version.
fn read_fields(mut fields: Reader<'_>) -> Result<(Option<LogId>, usize), codec::Error> {
    let has_last = fields.flag()?;
    let reserved = fields.u8()?;
    let last = fields.log_id()?;
    let meta_bytes = usize::try_from(fields.u32()?).expect("a usize has 32 bits or more");
    let none = LogId { term: 0, node: NodeId(0), index: 0 };
    if reserved != 0 || (!has_last && last != none) {
        return Err(codec::Error::Value("byte: it is reserved"));
    }
    fields.finish().map(|()| (has_last.then_some(last), meta_bytes))
}

fn read_meta(file: &File, path: &Path, meta_bytes: usize) -> Result<Bytes, Error> {
    let mut meta = vec![0; meta_bytes + 4];
    let offset = u64::try_from(HEADER_BYTES).expect("a usize fits");
    read_at(file, path, &mut meta, offset)?;
    let mut checksum = &meta[meta_bytes..];
    if checksum.get_u32_le() != crc32c::crc32c(&meta[..meta_bytes]) {
        return Err(Error::damaged(path, offset, "checksum of the description differs"));
    }
    Ok(Bytes::from(meta).slice(..meta_bytes))
}

pub(super) fn encode_footer(body_bytes: u64, file_crc32c: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_slice(FOOTER_MAGIC);
    bytes.put_u64_le(body_bytes + FOOTER_BYTES);
    bytes.put_u32_le(file_crc32c);
    bytes.put_u32_le(crc32c::crc32c(&bytes));
    assert_eq!(bytes.len(), FOOTER, "a footer has one length");
    bytes
}

/// Checks the footer, and returns the checksum that it holds of all before it.
pub(super) fn read_footer(file: &File, path: &Path, length: u64) -> Result<u32, Error> {
    let offset = length.saturating_sub(FOOTER_BYTES);
    let mut footer = [0; FOOTER];
    read_at(file, path, &mut footer, offset)?;
    let (mut fields, mut checksum) = footer.split_at(footer.len() - 4);
    if !fields.starts_with(FOOTER_MAGIC) || checksum.get_u32_le() != crc32c::crc32c(fields) {
        return Err(Error::damaged(path, offset, "no whole footer: cut short or overwritten"));
    }
    fields.advance(FOOTER_MAGIC.len());
    if fields.get_u64_le() != length {
        return Err(Error::damaged(path, offset, "the footer says another length"));
    }
    Ok(fields.get_u32_le())
}

pub(super) fn read_at(
    file: &File,
    path: &Path,
    buffer: &mut [u8],
    offset: u64,
) -> Result<(), Error> {
    file.read_exact_at(buffer, offset).map_err(|error| {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            return Error::damaged(path, offset, "the file ends early");
        }
        Error::io(path, error)
    })
}

/// Most bytes before the footer that are kept in memory.
const TAIL_BYTES_MAX: u64 = 256;

/// The end of the file before its footer.
pub(super) fn read_tail(file: &File, path: &Path, length: u64) -> Result<Vec<u8>, Error> {
    assert!(length > FOOTER_BYTES, "the footer was read");
    let end = length - FOOTER_BYTES;
    let bytes = end.min(TAIL_BYTES_MAX);
    let mut tail = vec![0; usize::try_from(bytes).expect("it is short")];
    read_at(file, path, &mut tail, end - bytes)?;
    Ok(tail)
}

/// The chunk of the section with which `tail` ends, if that is one of `kind` whose only chunk is
/// stored plain and has so many bytes.
pub(super) fn last_chunk(tail: &[u8], kind: u8, bytes: usize) -> Option<Vec<u8>> {
    let start = tail.len().checked_sub(2 * BLOCK_HEADER_BYTES + bytes)?;
    let (headers, chunk) = tail[start..].split_at(2 * BLOCK_HEADER_BYTES);
    let header = |tag, stored: &[u8]| {
        let stored_bytes = u32::try_from(stored.len()).expect("a short chunk");
        let plain_bytes = stored_bytes;
        BlockHeader { tag, kind, compressed: false, stored_bytes, plain_bytes }.encode(stored)
    };
    let expected = [header(Tag::Section, &[]), header(Tag::Chunk, chunk)].concat();
    (headers == expected).then(|| chunk.to_vec())
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tag {
    Section = 1,
    Chunk = 2,
}

/// What stands before the bytes of a chunk, or alone where a section begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockHeader {
    pub(super) tag: Tag,
    /// Kind of the section.
    pub(super) kind: u8,
    pub(super) compressed: bool,
    pub(super) stored_bytes: u32,
    pub(super) plain_bytes: u32,
}

impl BlockHeader {
    /// The header's bytes; the checksum covers them and `stored`.
    pub(super) fn encode(&self, stored: &[u8]) -> [u8; BLOCK_HEADER_BYTES] {
        assert_eq!(u32::try_from(stored.len()), Ok(self.stored_bytes), "it is the header of these");
        let mut bytes = [0; BLOCK_HEADER_BYTES];
        let mut fields = &mut bytes[..];
        fields.put_u8(self.tag as u8);
        fields.put_u8(self.kind);
        fields.put_u8(u8::from(self.compressed));
        fields.put_u8(0);
        fields.put_u32_le(self.stored_bytes);
        fields.put_u32_le(self.plain_bytes);
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), stored);
        bytes[12..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The header, its checksum still to be compared with [`BlockHeader::encode`]; the reason
    /// when it cannot be one, so that its lengths can be trusted with memory.
    pub(super) fn decode(bytes: &[u8; BLOCK_HEADER_BYTES]) -> Result<Self, &'static str> {
        let mut fields = &bytes[..];
        let tag = match fields.get_u8() {
            1 => Tag::Section,
            2 => Tag::Chunk,
            _ => return Err("no block starts here"),
        };
        let kind = fields.get_u8();
        let compressed = match fields.get_u8() {
            0 => false,
            1 => true,
            _ => return Err("unknown encoding of a block"),
        };
        if fields.get_u8() != 0 {
            return Err("a reserved byte of a block is not zero");
        }
        let (stored_bytes, plain_bytes) = (fields.get_u32_le(), fields.get_u32_le());
        let too_long =
            |bytes: u32| usize::try_from(bytes).map_or(true, |bytes| bytes > CHUNK_BYTES_MAX);
        if too_long(stored_bytes) || too_long(plain_bytes) {
            return Err("a block is longer than any that is written");
        }
        if tag == Tag::Section && (compressed || stored_bytes != 0 || plain_bytes != 0) {
            return Err("the beginning of a section has bytes");
        }
        Ok(Self { tag, kind, compressed, stored_bytes, plain_bytes })
    }
}
