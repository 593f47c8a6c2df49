//! The head of a segment's file: whose log it is of, which number it has, and with how many bytes
//! it was prepared (docs/formats.md, "Log").
//!
//! A file gets its name with its head in it and all of its zeros synced. So one that is shorter
//! than its head says was cut by somebody, and no crash did it.

use bytes::{Buf as _, BufMut as _};

use super::as_u64;
use crate::types::Incarnation;

/// Length of a head: the first record follows it.
pub(super) const HEAD_BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"LSLOGSEG";
const VERSION: u16 = 1;
/// All before the checksum: magic, version, six zeros, number, length, owner.
const FIELDS_BYTES: usize = 8 + 2 + 6 + 8 + 8 + 16;

/// What a file says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// The data folder that it was written in.
    pub(super) owner: Incarnation,
    pub(super) number: u64,
    /// Length with which it was prepared, the head included; it may have grown since.
    pub(super) bytes: u64,
}

impl Head {
    pub(super) fn encode(&self) -> [u8; HEAD_BYTES] {
        assert!(self.number > 0, "segments are numbered from 1 on");
        assert!(self.bytes >= as_u64(HEAD_BYTES), "a segment has room for its head");
        let mut head = Vec::with_capacity(HEAD_BYTES);
        head.put_slice(MAGIC);
        head.put_u16_le(VERSION);
        head.put_bytes(0, 6);
        head.put_u64_le(self.number);
        head.put_u64_le(self.bytes);
        head.put_slice(&self.owner.0);
        head.put_u32_le(crc32c::crc32c(&head));
        head.resize(HEAD_BYTES, 0);
        let encoded: [u8; HEAD_BYTES] = head.try_into().expect("it was just given this length");
        assert_eq!(Self::decode(&encoded), Ok(*self), "what is encoded can be decoded");
        encoded
    }

    /// Reads the head with which a file begins.
    pub(super) fn decode(file: &[u8]) -> Result<Self, &'static str> {
        let Some((head, _)) = file.split_at_checked(HEAD_BYTES) else {
            return Err("the file ends inside its head");
        };
        let (mut fields, mut rest) = head.split_at(FIELDS_BYTES);
        if !fields.starts_with(MAGIC) {
            return Err("it does not begin as a file of the log does");
        }
        if rest.get_u32_le() != crc32c::crc32c(fields) || rest.iter().any(|byte| *byte != 0) {
            return Err("the checksum of its head differs");
        }
        fields.advance(MAGIC.len());
        if fields.get_u16_le() != VERSION {
            return Err("it is of a later version of Lockstep");
        }
        fields.advance(6);
        let (number, bytes) = (fields.get_u64_le(), fields.get_u64_le());
        let owner = Incarnation(fields.try_into().expect("the owner is the last field"));
        Ok(Self { owner, number, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A head comes back as it was written, and no part of it can change unnoticed.
    #[test]
    fn a_head_comes_back_or_is_refused() {
        let head = Head { owner: Incarnation([7; 16]), number: 3, bytes: 4 << 20 };
        let encoded = head.encode();
        assert_eq!(Head::decode(&encoded), Ok(head));
        for place in 0..HEAD_BYTES {
            let mut damaged = encoded;
            damaged[place] ^= 1;
            assert!(Head::decode(&damaged).is_err(), "byte {place}");
        }
        for length in 0..HEAD_BYTES {
            assert!(Head::decode(&encoded[..length]).is_err(), "{length} bytes");
        }
    }
}
