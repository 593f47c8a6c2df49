//! The state as records of some dozens of kilobytes: entries in bincode, in the order of the keys.
//!
//! The SDK puts magic, version and checksum around them. What this module writes is schema 1: for
//! each key in order its length and bytes, the value's length and bytes, and when it ends, if it
//! does; lengths and numbers are bincode's variable ones.

use std::ops::Bound;

use lockstep_guest_sdk::Portable;
use serde::{Deserialize, Serialize, Serializer};

use crate::key::Key;
use crate::state::Kv;

/// Version of what a record means. Whoever changes the bytes of a record raises it, and reads the
/// earlier ones on.
pub(crate) const SCHEMA_VERSION: u32 = 1;
/// A record is closed once it has this many bytes.
const RECORD_BYTES: usize = 48 << 10;

/// One entry of the map.
#[derive(Serialize, Deserialize)]
struct Entry<'a> {
    #[serde(serialize_with = "as_bytes")]
    key: &'a [u8],
    #[serde(serialize_with = "as_bytes")]
    value: &'a [u8],
    /// When it ends, in milliseconds since the epoch.
    ends_at: Option<u64>,
}

/// Bytes at once; serde takes a slice one element after the other. Both come out the same.
fn as_bytes<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

/// The last key that was exported.
#[derive(Debug, Default)]
pub struct Position(Option<Key>);

impl Portable for Kv {
    type Position = Position;

    fn export_record(&self, position: &mut Position, record: &mut Vec<u8>) -> bool {
        let start = record.len();
        let from = position.0.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut last = None;
        let mut bytes = Vec::new();
        for (key, value) in self.entries.range((from, Bound::Unbounded)) {
            key.write(&mut bytes);
            let entry = Entry { key: &bytes, value, ends_at: self.end_of(key) };
            bincode::serde::encode_into_std_write(&entry, record, bincode::config::standard())
                .expect("bytes and numbers can be encoded");
            last = Some(key);
            if record.len() - start >= RECORD_BYTES {
                break;
            }
        }
        let Some(last) = last.cloned() else { return false };
        position.0 = Some(last);
        true
    }

    fn import_record(&mut self, _: u32, record: &[u8]) -> Result<(), String> {
        let mut rest = record;
        while !rest.is_empty() {
            let read = bincode::serde::borrow_decode_from_slice(rest, bincode::config::standard());
            let (entry, length): (Entry<'_>, usize) = read.map_err(|error| error.to_string())?;
            if !self.restore(entry.key, entry.value, entry.ends_at) {
                return Err("a key is there twice".to_owned());
            }
            rest = &rest[length..];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is kept, in the order of the keys, and when it ends.
    type Kept<'a> = [(&'a [u8], &'a [u8], Option<u64>)];

    fn record(kept: &Kept<'_>) -> Vec<u8> {
        let mut kv = Kv::default();
        kept.iter().for_each(|(key, value, ends_at)| assert!(kv.restore(key, value, *ends_at)));
        let (mut position, mut record) = (Position::default(), Vec::new());
        assert!(kv.export_record(&mut position, &mut record));
        assert!(!kv.export_record(&mut position, &mut Vec::new()), "one record");
        let mut copy = Kv::default();
        copy.import_record(SCHEMA_VERSION, &record).unwrap();
        assert_eq!(copy, kv);
        record
    }

    /// The bytes of schema 1, written down: exports outlive the build that made them. Where this
    /// fails, raise `SCHEMA_VERSION`, read the earlier schema on, and add a table of its own.
    #[test]
    fn the_bytes_of_schema_1_stay() {
        assert_eq!(SCHEMA_VERSION, 1);
        let long = [b'v'; 251];
        let rows: [(&Kept<'_>, &[&[u8]]); 6] = [
            (&[(b"", b"", None)], &[&[0], &[0], &[0]]),
            (&[(b"key", b"value", None)], &[b"\x03key", b"\x05value", &[0]]),
            (&[(b"k", b"\0\r\n\xff", Some(250))], &[b"\x01k", b"\x04\0\r\n\xff", &[1, 250]]),
            // From 251 on, a number is a mark and 2, 4 or 8 bytes, the lowest first.
            (
                &[(b"k", &long, Some(1_700_000_000_000))],
                &[
                    b"\x01k",
                    &[0xfb, 0xfb, 0],
                    &long,
                    &[1, 0xfd, 0, 0x68, 0xe5, 0xcf, 0x8b, 1, 0, 0],
                ],
            ),
            (
                &[(b"k", b"", Some(u64::from(u32::MAX)))],
                &[b"\x01k", &[0], &[1, 0xfc, 0xff, 0xff, 0xff, 0xff]],
            ),
            (
                &[(b"a", b"1", Some(9)), (b"a key of 17 bytes", b"2", None), (b"b", b"3", Some(8))],
                &[b"\x01a\x011\x01\x09", b"\x11a key of 17 bytes\x012\0", b"\x01b\x013\x01\x08"],
            ),
        ];
        for (kept, bytes) in rows {
            assert_eq!(
                record(kept).escape_ascii().to_string(),
                bytes.concat().escape_ascii().to_string()
            );
        }
    }
}
