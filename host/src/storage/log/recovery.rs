//! Reading a log back: is its end torn, or is it damaged?
//!
//! Nobody was promised what is **torn**: a record that cannot be read because the file ends inside
//! it, or because a sector of it is zeros still, while no record after it attests that it was
//! synced ([`Stamp::synced_upto`](super::record::Stamp)). It and all after it are cut, with a
//! warning. Anything else that cannot be read is damage: the start is refused, naming file and
//! offset, and nothing is changed.
//!
//! Only the end of the last segment that is in use can be torn: the writer syncs a segment before
//! it writes to the next one.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::as_u64;
use super::contents::Contents;
use super::record::{self, Record, Unreadable};
use super::segment::{self, Segment};
use crate::storage::{Error, durable};
use crate::types::LogIndex;

/// The unit in which a disk writes: what did not arrive are whole ones of old bytes.
const SECTOR_BYTES: usize = 512;

/// A log that was read back.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) contents: Contents,
    /// At least one, each with the highest index of an entry that was ever written to it; the last
    /// is written to.
    pub(super) segments: VecDeque<(Arc<Segment>, Option<LogIndex>)>,
    /// Where in the last segment the next record goes.
    pub(super) used: u64,
}

/// Reads the log of a folder, and cuts a torn end; `None` where there is none.
///
/// # Errors
/// `Damaged`, and nothing is changed.
pub(super) fn recover(folder: &Path) -> Result<Option<Recovered>, Error> {
    let numbers = segment::list(folder)?;
    let mut contents = Contents::default();
    let mut segments = VecDeque::new();
    let mut unused = &numbers[..];
    // Where in the log the records read so far end, and what comes behind them.
    let mut position = 0;
    let mut torn = None;
    while let Some((number, later)) = unused.split_first() {
        let mut segment = Segment::open(folder, *number)?;
        let bytes = segment.read_whole()?;
        let is_first = segments.is_empty();
        segment.start = match is_first {
            true => record::first_position(&bytes).unwrap_or(0),
            false => position,
        };
        let reading = read(&segment, is_first, &bytes, &mut contents)?;
        // The payloads share the bytes of the whole file.
        contents.shrink(0, u64::MAX);
        if reading.is_the_end() {
            check_end(&segment, is_first, &bytes, &reading)?;
            check_unwritten(folder, later, &segment, &reading)?;
        }
        if reading.end == 0 {
            break;
        }
        position = segment.start + as_u64(reading.end);
        segments.push_back((Arc::new(segment), reading.highest));
        unused = later;
        torn = reading.bad;
        if torn.is_some() {
            break;
        }
    }
    let Some((last, _)) = segments.back() else { return Ok(None) };
    if let Some(missing) = contents.missing() {
        let reason = format!("the file before it, which holds entry {missing}, is missing");
        return Err(segments[0].0.damaged(0, reason));
    }
    let used = position - last.start;
    if let Some(Unreadable { reason, .. }) = torn {
        let (file, offset) = (last.path.display(), used);
        let what = "cut the torn end of the log, which was never acknowledged";
        tracing::warn!(%file, offset, %reason, "{what}");
        last.cut(used)?;
    }
    // After a crash of the process alone, what was read may be in memory only.
    last.sync()?;
    remove(folder, unused)?;
    Ok(Some(Recovered { contents, segments, used }))
}

/// What was read of a segment.
struct Reading {
    /// Where its records end.
    end: usize,
    /// What follows them, if not zeros.
    bad: Option<Unreadable>,
    highest: Option<LogIndex>,
}

impl Reading {
    /// Nothing that follows, if anything does, can be in use.
    fn is_the_end(&self) -> bool {
        self.end == 0 || self.bad.is_some()
    }

    fn reason(&self) -> &str {
        self.bad.as_ref().map_or("it is empty", |bad| &bad.reason)
    }
}

/// Takes in the records of a segment.
fn read(
    segment: &Segment,
    is_first: bool,
    bytes: &Bytes,
    contents: &mut Contents,
) -> Result<Reading, Error> {
    let mut reading = Reading { end: 0, bad: None, highest: None };
    while reading.end < bytes.len() {
        let position = segment.start + as_u64(reading.end);
        let found = match record::decode(bytes, reading.end, position) {
            Ok(found) => found,
            Err(_) if is_zero(&bytes[reading.end..]) => break,
            Err(bad) => {
                reading.bad = Some(bad);
                break;
            }
        };
        let applied = match &found.record {
            Record::State(state) if is_first && reading.end == 0 => {
                contents.begin(*state);
                Ok(())
            }
            Record::State(_) => contents.apply(&found.record, position),
            _ if reading.end == 0 => Err("a segment does not begin with a state"),
            record => contents.apply(record, position),
        };
        applied.map_err(|reason| segment.damaged(as_u64(reading.end), reason))?;
        if let Record::Entry(id, _) = found.record {
            reading.highest = reading.highest.max(Some(id.index));
        }
        reading.end = found.end;
    }
    Ok(reading)
}

/// Refuses an end of the log that no crash leaves.
fn check_end(
    segment: &Segment,
    is_first: bool,
    bytes: &Bytes,
    reading: &Reading,
) -> Result<(), Error> {
    let damaged = |why: &str| {
        let reason = format!("{}{why}", reading.reason());
        Err(segment.damaged(as_u64(reading.end), reason))
    };
    // The first segment of a log becomes visible with its first record.
    if is_first && reading.end == 0 {
        return damaged(", and it is the first file of the log");
    }
    let Some(bad) = &reading.bad else { return Ok(()) };
    if is_attested(segment, bytes, reading) {
        return damaged(", and a record after it says that it was synced");
    }
    let is_short = bad.end > bytes.len();
    if is_short || has_unwritten_sector(bytes, reading.end, bad.end) {
        return Ok(());
    }
    damaged("")
}

/// True when a later record of the segment says that everything up to a byte after the unreadable
/// one's first was synced. Where it is not known how long that one is, every place is tried.
fn is_attested(segment: &Segment, bytes: &Bytes, reading: &Reading) -> bool {
    let bad = segment.start + as_u64(reading.end);
    (reading.end + 1..bytes.len()).any(|offset| {
        // Zeros and most payloads are told apart from headers at once.
        let claimed = bytes.get(offset + 8..offset + 16);
        let position = segment.start + as_u64(offset);
        claimed == Some(&position.to_le_bytes())
            && record::read_header(&bytes[offset..], position)
                .is_ok_and(|header| header.synced_upto > bad)
    })
}

/// True when a sector that the record from `start` to `end` reaches into is zeros from there on.
/// Nothing in it was written then: what came after the record in it would not be zeros either.
fn has_unwritten_sector(bytes: &[u8], start: usize, end: usize) -> bool {
    let sectors = start / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES);
    sectors.into_iter().any(|sector| {
        let from = (sector * SECTOR_BYTES).max(start);
        let to = ((sector + 1) * SECTOR_BYTES).min(bytes.len());
        from < to && is_zero(&bytes[from..to])
    })
}

/// Refuses an end of the log when later segments hold something.
fn check_unwritten(
    folder: &Path,
    later: &[u64],
    segment: &Segment,
    reading: &Reading,
) -> Result<(), Error> {
    for number in later {
        let later = Segment::open(folder, *number)?;
        if !is_zero(&later.read_whole()?) {
            let file = later.path.display();
            let reason = format!("{}, and the log goes on in {file}", reading.reason());
            return Err(segment.damaged(as_u64(reading.end), reason));
        }
    }
    Ok(())
}

/// Removes segments that were prepared, or begun and not written whole.
fn remove(folder: &Path, unused: &[u64]) -> Result<(), Error> {
    // The last one first: what is left never has a gap.
    for number in unused.iter().rev() {
        let path = segment::path(folder, *number);
        std::fs::remove_file(&path).map_err(|error| Error::io(&path, error))?;
    }
    if unused.is_empty() { Ok(()) } else { durable::sync_folder(folder) }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}
