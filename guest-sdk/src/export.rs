//! A state as a stream of chunks: magic, version, records with their lengths, end mark, checksum.
//!
//! ```text
//! "LSEX" | version u8 | (length u32 | record)* | END u32 | crc32c u32
//! ```
//!
//! Numbers are little-endian; the checksum covers everything before it. Chunks are cut at any
//! byte. It holds one chunk and one record, never the state.

use crate::portable::Portable;

/// First bytes of every export.
pub(crate) const MAGIC: [u8; 4] = *b"LSEX";
/// Version of this layout, which is not the schema of the guest's records.
pub(crate) const VERSION: u8 = 1;
/// Stands where a length would, after the last record.
pub(crate) const END: u32 = u32::MAX;

/// An export under way.
pub(crate) struct Export<M: Portable> {
    position: M::Position,
    /// Bytes made, of which those before `sent` are with the host.
    pending: Vec<u8>,
    sent: usize,
    checksum: u32,
    complete: bool,
}

impl<M: Portable> Default for Export<M> {
    fn default() -> Self {
        let mut pending = MAGIC.to_vec();
        pending.push(VERSION);
        let checksum = crc32c::crc32c(&pending);
        Self { position: M::Position::default(), pending, sent: 0, checksum, complete: false }
    }
}

impl<M: Portable> Export<M> {
    /// Returns the next chunk, of at most `bytes_max`; empty when there are no more.
    pub(crate) fn next(&mut self, machine: &M, bytes_max: usize) -> Vec<u8> {
        while !self.complete && self.pending.len() - self.sent < bytes_max {
            self.append_record(machine);
        }
        let end = self.pending.len().min(self.sent.saturating_add(bytes_max));
        let chunk = self.pending[self.sent..end].to_vec();
        self.sent = end;
        // Sent bytes are dropped only once they are most of the buffer, so that cutting up one
        // huge record stays linear.
        if self.sent > self.pending.len() / 2 {
            self.pending.drain(..self.sent);
            self.sent = 0;
        }
        chunk
    }

    fn append_record(&mut self, machine: &M) {
        let start = self.pending.len();
        self.pending.extend_from_slice(&END.to_le_bytes());
        self.complete = !machine.export_record(&mut self.position, &mut self.pending);
        if self.complete {
            self.pending.truncate(start + 4);
        } else {
            let length = u32::try_from(self.pending.len() - start - 4)
                .expect("a record in a 32-bit memory has a 32-bit length");
            self.pending[start..start + 4].copy_from_slice(&length.to_le_bytes());
        }
        self.checksum = crc32c::crc32c_append(self.checksum, &self.pending[start..]);
        if self.complete {
            self.pending.extend_from_slice(&self.checksum.to_le_bytes());
        }
    }
}
