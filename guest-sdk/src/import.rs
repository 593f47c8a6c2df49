//! Reads what `export` wrote, from chunks cut at any byte.
//!
//! Records are handed on as they are complete, before the checksum at the end is known: so after
//! an error the half state is worth nothing and must be dropped. It holds at most one record and
//! one chunk beside the state.

use crate::export::{END, MAGIC, VERSION};
use crate::portable::Portable;

/// An import under way.
#[derive(Debug, Default)]
pub(crate) struct Import<M> {
    machine: M,
    /// Bytes that are no complete part yet.
    pending: Vec<u8>,
    checksum: u32,
    records: u64,
    next: Next,
}

/// What is expected next.
#[derive(Debug, Default, PartialEq, Eq)]
enum Next {
    #[default]
    Header,
    Record,
    Checksum,
    Nothing,
}

impl<M: Portable + Default> Import<M> {
    /// Takes in the next chunk.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn push(&mut self, schema: u32, chunk: &[u8]) -> Result<(), String> {
        let mut bytes = std::mem::take(&mut self.pending);
        bytes.extend_from_slice(chunk);
        let mut rest = bytes.as_slice();
        while let Some(length) = self.take_part(schema, rest)? {
            rest = &rest[length..];
        }
        let consumed = bytes.len() - rest.len();
        bytes.drain(..consumed);
        self.pending = bytes;
        Ok(())
    }

    /// Returns the imported state, after the last chunk.
    ///
    /// # Errors
    /// When the export was cut short.
    pub(crate) fn finish(self) -> Result<M, String> {
        if self.next == Next::Nothing {
            return Ok(self.machine);
        }
        Err(format!("the export ends early, after {} records", self.records))
    }

    /// Reads the part that `bytes` begin with and returns its length, or `None` while it is not
    /// all there.
    fn take_part(&mut self, schema: u32, bytes: &[u8]) -> Result<Option<usize>, String> {
        match self.next {
            Next::Header => self.take_header(bytes),
            Next::Record => self.take_record(schema, bytes),
            Next::Checksum => self.take_checksum(bytes),
            Next::Nothing if bytes.is_empty() => Ok(None),
            Next::Nothing => Err(format!("{} bytes follow the end of the export", bytes.len())),
        }
    }

    fn take_header(&mut self, bytes: &[u8]) -> Result<Option<usize>, String> {
        let Some((header, _)) = bytes.split_first_chunk::<5>() else { return Ok(None) };
        if header[..4] != MAGIC {
            return Err("this is no export: it begins with other bytes".to_owned());
        }
        if header[4] != VERSION {
            return Err(format!("the export has version {}, not {VERSION}", header[4]));
        }
        self.checksum = crc32c::crc32c(header);
        self.next = Next::Record;
        Ok(Some(header.len()))
    }

    fn take_record(&mut self, schema: u32, bytes: &[u8]) -> Result<Option<usize>, String> {
        let Some((prefix, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*prefix);
        if length == END {
            self.checksum = crc32c::crc32c_append(self.checksum, prefix);
            self.next = Next::Checksum;
            return Ok(Some(prefix.len()));
        }
        let length = usize::try_from(length).expect("usize is at least 32 bits");
        let Some(record) = rest.get(..length) else { return Ok(None) };
        self.checksum = crc32c::crc32c_append(self.checksum, &bytes[..prefix.len() + record.len()]);
        self.machine
            .import_record(schema, record)
            .map_err(|reason| format!("record {}: {reason}", self.records))?;
        self.records += 1;
        Ok(Some(prefix.len() + record.len()))
    }

    fn take_checksum(&mut self, bytes: &[u8]) -> Result<Option<usize>, String> {
        let Some((stored, _)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
        if u32::from_le_bytes(*stored) != self.checksum {
            return Err("the checksum is not that of the export: it was damaged".to_owned());
        }
        self.next = Next::Nothing;
        Ok(Some(stored.len()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::export::Export;

    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Whole(Vec<Vec<u8>>);

    /// Several records, as a large state has.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Pieces(Vec<Vec<u8>>);

    impl Portable for Pieces {
        type Position = usize;

        fn export_record(&self, position: &mut usize, record: &mut Vec<u8>) -> bool {
            let Some(piece) = self.0.get(*position) else { return false };
            record.extend_from_slice(piece);
            *position += 1;
            true
        }

        fn import_record(&mut self, _: u32, record: &[u8]) -> Result<(), String> {
            self.0.push(record.to_vec());
            Ok(())
        }
    }

    fn export<M: Portable>(machine: &M, bytes_max: usize) -> Vec<Vec<u8>> {
        let mut export = Export::default();
        std::iter::from_fn(|| Some(export.next(machine, bytes_max)))
            .take_while(|chunk| !chunk.is_empty())
            .collect()
    }

    fn import<M: Portable + Default>(bytes: &[u8], chunk: usize) -> Result<M, String> {
        let mut import = Import::default();
        bytes.chunks(chunk).try_for_each(|chunk| import.push(1, chunk))?;
        import.finish()
    }

    fn check<M: Portable + Default + PartialEq + std::fmt::Debug>(
        state: &M,
        out: usize,
        r#in: usize,
    ) {
        let chunks = export(state, out);
        assert!(chunks.iter().all(|chunk| chunk.len() <= out));
        assert_eq!(import::<M>(&chunks.concat(), r#in).as_ref(), Ok(state));
    }

    fn pieces() -> impl Strategy<Value = Vec<Vec<u8>>> {
        prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..20)
    }

    proptest! {
        /// A state comes back whatever the chunks, of one record or of many.
        #[test]
        fn a_state_comes_back(pieces in pieces(), out in 1_usize..80, r#in in 1_usize..80) {
            check(&Whole(pieces.clone()), out, r#in);
            check(&Pieces(pieces), out, r#in);
        }

        /// One flipped bit anywhere, or a cut anywhere, is noticed.
        #[test]
        fn damage_is_noticed(
            pieces in pieces(),
            at in any::<prop::sample::Index>(),
            bit in 0_u8..8,
        ) {
            let bytes = export(&Pieces(pieces), 64).concat();
            let at = at.index(bytes.len());
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            prop_assert!(import::<Pieces>(&flipped, 16).is_err());
            prop_assert!(import::<Pieces>(&bytes[..at], 16).is_err());
        }

        /// Bytes of anybody's are refused, never a panic.
        #[test]
        fn any_bytes_are_refused(
            mut bytes in prop::collection::vec(any::<u8>(), 0..80),
            headed in any::<bool>(),
        ) {
            if headed {
                bytes.splice(0..0, [b'L', b'S', b'E', b'X', VERSION]);
            }
            prop_assert!(import::<Pieces>(&bytes, 7).is_err());
        }
    }

    /// Errors say what is wrong in words.
    #[test]
    fn errors_say_what_is_wrong() {
        let bytes = export(&Pieces(vec![b"a".to_vec()]), 64).concat();
        let reason = |bytes: &[u8]| import::<Pieces>(bytes, 64).unwrap_err();
        assert_eq!(reason(b"nonsense"), "this is no export: it begins with other bytes");
        assert_eq!(reason(b"LSEX\x02"), "the export has version 2, not 1");
        assert_eq!(reason(&bytes[..11]), "the export ends early, after 1 records");
        assert_eq!(reason(&[&bytes[..], b"x"].concat()), "1 bytes follow the end of the export");
        let damaged = [&bytes[..bytes.len() - 1], &[!bytes[bytes.len() - 1]]].concat();
        assert_eq!(reason(&damaged), "the checksum is not that of the export: it was damaged");
        let other = import::<Whole>(&bytes, 64).unwrap_err();
        assert!(other.starts_with("record 0: "), "{other}");
    }
}
