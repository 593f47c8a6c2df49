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
