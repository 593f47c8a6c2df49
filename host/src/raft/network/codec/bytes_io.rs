//! Writing and reading the primitive values of payloads. All integers are little-endian.

use bytes::Bytes;

use super::{Error, MEMBERSHIP_BYTES_MAX, POSITION_MAX};
use crate::types::{LogId, Membership, NodeId, Vote};

/// Version of all payloads; a change of any layout is a new one.
const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 4;

/// Builds one payload.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity + 1 + CHECKSUM_BYTES);
        bytes.push(VERSION);
        Self(bytes)
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn flag(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    pub(super) fn log_id(&mut self, id: LogId) {
        self.u64(id.term);
        self.u64(id.node.0);
        self.u64(id.index);
    }

    pub(super) fn optional_log_id(&mut self, id: Option<LogId>) {
        self.flag(id.is_some());
        if let Some(id) = id {
            self.log_id(id);
        }
    }

    pub(super) fn vote(&mut self, vote: Vote) {
        self.u64(vote.term);
        self.u64(vote.node.0);
        self.flag(vote.committed);
    }

    /// A membership, which takes the rest of the payload.
    pub(super) fn membership(&mut self, membership: &Membership) {
        self.0.extend_from_slice(&encode_membership(membership));
    }

    /// Ends the payload with the CRC32C of it, continued over `attached` parts that travel beside.
    pub(super) fn finish(mut self, attached: &[Bytes]) -> Bytes {
        let checksum = checksum(&self.0, attached);
        self.u32(checksum);
        self.0.into()
    }
}

fn checksum(payload: &[u8], attached: &[Bytes]) -> u32 {
    attached.iter().fold(crc32c::crc32c(payload), |sum, part| crc32c::crc32c_append(sum, part))
}

/// Takes one payload apart.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Checks version and checksum.
    pub(super) fn open(payload: &'a [u8], attached: &[Bytes]) -> Result<Self, Error> {
        let (body, sum) = payload.split_last_chunk::<CHECKSUM_BYTES>().ok_or(Error::Length)?;
        let (version, rest) = body.split_first().ok_or(Error::Length)?;
        if *version != VERSION {
            return Err(Error::Version(*version));
        }
        if checksum(body, attached) != u32::from_le_bytes(*sum) {
            return Err(Error::Checksum);
        }
        Ok(Self(rest))
    }

    /// Nothing may be left.
    pub(super) fn finish(self) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::Length) }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (value, rest) = self.0.split_first_chunk::<N>().ok_or(Error::Length)?;
        self.0 = rest;
        Ok(*value)
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let (value, rest) = self.0.split_at_checked(count).ok_or(Error::Length)?;
        self.0 = rest;
        Ok(value)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Error> {
        self.array::<1>().map(|[value]| value)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn flag(&mut self) -> Result<bool, Error> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Error::Value("flag")),
        }
    }

    pub(super) fn term(&mut self) -> Result<u64, Error> {
        position(self.u64()?, "term")
    }

    pub(super) fn log_id(&mut self) -> Result<LogId, Error> {
        let term = self.term()?;
        let node = NodeId(self.u64()?);
        Ok(LogId { term, node, index: position(self.u64()?, "index")? })
    }

    pub(super) fn optional_log_id(&mut self) -> Result<Option<LogId>, Error> {
        if self.flag()? { self.log_id().map(Some) } else { Ok(None) }
    }

    pub(super) fn vote(&mut self) -> Result<Vote, Error> {
        let term = self.term()?;
        let node = NodeId(self.u64()?);
        Ok(Vote { term, node, committed: self.flag()? })
    }

    /// A membership, which takes the rest of the payload.
    pub(super) fn membership(&mut self) -> Result<Membership, Error> {
        let rest = self.take(self.0.len())?;
        decode_membership(rest)
    }
}

fn position(value: u64, what: &'static str) -> Result<u64, Error> {
    if value < POSITION_MAX { Ok(value) } else { Err(Error::Value(what)) }
}

fn membership_config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MEMBERSHIP_BYTES_MAX>()
}

/// A membership by itself, as the bytes of an entry.
pub(super) fn encode_membership(membership: &Membership) -> Vec<u8> {
    bincode::serde::encode_to_vec(membership, bincode::config::standard())
        .expect("a membership is plain data, and a Vec takes all of it")
}

/// The membership that takes all of `bytes`.
pub(super) fn decode_membership(bytes: &[u8]) -> Result<Membership, Error> {
    let decoded = bincode::serde::decode_from_slice(bytes, membership_config());
    match decoded {
        Ok((membership, length)) if length == bytes.len() => Ok(membership),
        _ => Err(Error::Value("membership")),
    }
}
