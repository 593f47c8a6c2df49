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
    head: [u64; 2],
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
        let mut head = [0; HEAD_BYTES];
        let length = bytes.len().min(HEAD_BYTES);
        head[..length].copy_from_slice(&bytes[..length]);
        let (high, low) = head.split_at(8);
        let number = |half: &[u8]| u64::from_be_bytes(half.try_into().expect("a half is 8 bytes"));
        let tail = match bytes.get(HEAD_BYTES..) {
            Some(tail) if !tail.is_empty() => Tail::Some(tail.into()),
            _ => Tail::None(u8::try_from(length).expect("at most 16")),
        };
        Self { head: [number(high), number(low)], tail }
    }

    /// Writes the key as it was given, over what is in `bytes`.
    pub(crate) fn write(&self, bytes: &mut Vec<u8>) {
        bytes.clear();
        self.head.iter().for_each(|half| bytes.extend_from_slice(&half.to_be_bytes()));
        match &self.tail {
            Tail::None(length) => bytes.truncate(usize::from(*length)),
            Tail::Some(tail) => bytes.extend_from_slice(tail),
        }
    }
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
            for (left, right) in [(left.clone(), right.clone()), ([shared.clone(), left].concat(), [shared, right].concat())] {
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
