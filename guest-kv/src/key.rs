//! A key of the map: short ones lie in the map's own nodes and compare as numbers.
//!
//! That saves an allocation and a cache miss per key, and wasm has no fast `memcmp`.
//!
//! Invariant: the order is that of the bytes.

use std::cmp::Ordering;

/// Bytes of a key that lie in the map.
const HEAD_BYTES: usize = 16;

/// Bytes, ordered as bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// The first bytes, big-endian, with zeros where the key is shorter.
    head: (u64, u64),
    tail: Tail,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Tail {
    /// All of the key is in the head, and this is its length.
    None(u8),
    /// What follows the head; not empty.
    Some(Box<[u8]>),
}

impl Key {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let Some((head, tail)) = bytes.split_first_chunk::<HEAD_BYTES>() else {
            let length = u8::try_from(bytes.len()).expect("shorter than a head");
            let high = padded(&bytes[..bytes.len().min(8)]);
            return Self {
                head: (high, padded(&bytes[bytes.len().min(8)..])),
                tail: Tail::None(length),
            };
        };
        let head = u128::from_be_bytes(*head);
        let low = u64::try_from(head & u128::from(u64::MAX)).expect("it was cut to 64 bits");
        let high = u64::try_from(head >> 64).expect("64 bits are left");
        let tail = if tail.is_empty() { Tail::None(16) } else { Tail::Some(tail.into()) };
        Self { head: (high, low), tail }
    }

    /// Writes the key as it was given, over what is in `bytes`.
    pub(crate) fn write(&self, bytes: &mut Vec<u8>) {
        bytes.clear();
        bytes.extend_from_slice(&self.head.0.to_be_bytes());
        bytes.extend_from_slice(&self.head.1.to_be_bytes());
        match &self.tail {
            Tail::None(length) => bytes.truncate(usize::from(*length)),
            Tail::Some(tail) => bytes.extend_from_slice(tail),
        }
    }
}

/// At most 8 bytes as a number, with zeros behind them. A copy of a few bytes would be a call out
/// of the sandbox.
fn padded(bytes: &[u8]) -> u64 {
    let number = bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte));
    number.checked_shl(8 * (8 - u32::try_from(bytes.len()).expect("at most 8"))).unwrap_or(0)
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        // With equal heads, a key that ends within its head is a prefix of the other.
        self.head.cmp(&other.head).then_with(|| match (&self.tail, &other.tail) {
            (Tail::None(mine), Tail::None(others)) => mine.cmp(others),
            (Tail::None(_), Tail::Some(_)) => Ordering::Less,
            (Tail::Some(_), Tail::None(_)) => Ordering::Greater,
            (Tail::Some(mine), Tail::Some(others)) => mine.cmp(others),
        })
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes of few kinds and of lengths around the head, so that many are nearly equal.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(vec![0, 1, 255]), 0..20)
    }

    proptest! {
        /// Keys order, equal and read back as their bytes.
        #[test]
        fn keys_are_their_bytes(left in bytes(), right in bytes(), shared in bytes()) {
            let with = |end: &[u8]| [&shared[..], end].concat();
            let longer = (with(&left), with(&right));
            for (left, right) in [(left, right), longer] {
                let keys = (Key::new(&left), Key::new(&right));
                prop_assert_eq!(keys.0.cmp(&keys.1), left.cmp(&right));
                prop_assert_eq!(keys.0 == keys.1, left == right);
                let mut written = b"other".to_vec();
                keys.0.write(&mut written);
                prop_assert_eq!(written, left);
            }
        }
    }
}
