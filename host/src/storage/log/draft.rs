//! One change of the log: it takes in records, and hands their bytes to the writer.

use std::io;

use super::head::HEAD_BYTES;
use super::record::{Record, Stamp};
use super::writer::{Pending, Shared};
use super::{Front, InUse, as_u64};

/// A change that is being made.
pub(super) struct Draft<'a> {
    pub(super) front: &'a mut Front,
    pub(super) pending: &'a mut Pending,
    pub(super) shared: &'a Shared,
    pub(super) segment_bytes: u64,
}

impl Draft<'_> {
    /// Takes in a record, and hands it to the writer. What does not fit in the segment any more
    /// goes to the next one, if that is prepared; else this one grows.
    pub(super) fn push(&mut self, record: &Record) -> io::Result<()> {
        let is_full = self.front.used + record.bytes_max() > self.front.bytes;
        let is_begun = self.front.used > self.front.fresh;
        if is_full && is_begun && self.shared.take_ready() {
            let last = self.front.segments.back().expect("a log has a segment");
            let start = last.start + self.front.used;
            assert!(last.start < start, "segments follow one another");
            self.front.segments.push_back(InUse { start, highest: None });
            self.front.used = as_u64(HEAD_BYTES);
            self.front.bytes = self.segment_bytes;
            self.encode(&Record::State(self.front.contents.state()))?;
            self.front.fresh = self.front.used;
        }
        self.encode(record)?;
        self.shared.set_left(self.front.bytes, self.front.used);
        Ok(())
    }

    fn encode(&mut self, record: &Record) -> io::Result<()> {
        let Front { contents, segments, used, .. } = &mut *self.front;
        let segment = segments.back_mut().expect("a log has a segment");
        let run = self.pending.run(segment.start, *used);
        let length = run.bytes.len();
        let position = segment.start + *used;
        assert_eq!(run.start + run.offset + as_u64(length), position, "bytes follow one another");
        let stamp = Stamp { position, synced_upto: self.shared.progress.synced_upto() };
        record.encode(stamp, &mut run.bytes)?;
        if let Err(reason) = contents.apply(record, position) {
            run.bytes.truncate(length);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        *used += as_u64(run.bytes.len() - length);
        if let Record::Entry(id, _) = record {
            segment.highest = segment.highest.max(Some(id.index));
        }
        Ok(())
    }
}
