//! Reading a log back: is its end torn, or is it damaged?
//!
//! Nobody was promised what is **torn**: a record that cannot be read because a sector of it is
//! zeros still, while no record after it attests that it was synced
//! ([`Stamp::synced_upto`](super::record::Stamp)). It and all after it are cut, with a warning, and
//! the end is in doubt until the peers were asked ([`Log::in_doubt`](super::Log::in_doubt)).
//! Anything else that cannot be read is damage: the start is refused, naming file and
//! offset, and nothing is changed.
//!
//! Only the end of the last segment that is in use can be torn: the writer syncs a segment before
//! it writes to the next one. A file inside which a record ends is torn only beyond the length
//! that it was prepared with: up to there its zeros were synced before it had a name.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::contents::Contents;
use super::head::HEAD_BYTES;
use super::ledger::Ledger;
use super::record::{self, Record, Unreadable};
use super::segment::{self, Segment};
use super::{FIRST_SEGMENT, LogPlace, LogState, as_u64};
use crate::storage::Error;
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
    /// Segments that are prepared, the next one first.
    pub(super) prepared: VecDeque<Segment>,
    /// Files that hold nothing which is not purged, the oldest first.
    pub(super) unneeded: VecDeque<PathBuf>,
}

/// Reads the log of a place, and cuts a torn end; the ledger alone where there is none.
///
/// # Errors
/// `Damaged`, and nothing is changed.
pub(super) fn recover(place: &LogPlace) -> Result<(Ledger, Option<Recovered>), Error> {
    let all = segment::list(&place.folder)?;
    let mut ledger = match Ledger::open(&place.ledger, place.owner)? {
        Some(ledger) => ledger,
        None if all.is_empty() => Ledger::create(&place.ledger, place.owner)?,
        None => return Err(Error::damaged(&place.ledger, 0, "it is missing, and the log is not")),
    };
    if all.is_empty() && ledger.newest() == 0 {
        return Ok((ledger, None));
    }
    check_newest(place, &all, &ledger)?;
    let (old, numbers) = split_at_hole(&all);
    let mut contents = Contents::default();
    let mut segments: VecDeque<(Arc<Segment>, Option<LogIndex>)> = VecDeque::new();
    let mut prepared = VecDeque::new();
    // Where in the log the records read so far end, and what comes behind them.
    let mut position = 0;
    let mut torn: Option<(Reading, Bytes)> = None;
    for number in numbers {
        let (mut segment, bytes) = Segment::open(place, *number)?;
        let is_first = segments.is_empty();
        segment.start = match is_first {
            true => first_start(&segment, &bytes)?,
            false => position,
        };
        // What follows the end must be unwritten: zeros, or begun and torn.
        if torn.is_some() || !prepared.is_empty() {
            let end = prepared.front().or(segments.back().map(|(last, _)| &**last));
            check_unwritten(&segment, &bytes, end, torn.as_ref())?;
            prepared.push_back(segment);
            continue;
        }
        let reading = read(&segment, is_first, &bytes, &mut contents)?;
        check_known(&segment, &reading, &contents, &ledger)?;
        // The payloads share the bytes of the whole file.
        contents.shrink(0, u64::MAX);
        if reading.is_the_end() {
            check_end(&segment, is_first, &bytes, &reading)?;
        }
        if reading.end == HEAD_BYTES {
            // It was begun, or not yet.
            torn = reading.bad.is_some().then_some((reading, bytes));
            prepared.push_back(segment);
            continue;
        }
        position = segment.start + as_u64(reading.end);
        segments.push_back((Arc::new(segment), reading.highest));
        torn = reading.bad.is_some().then_some((reading, bytes));
    }
    let (last, _) = segments.back().expect("the first segment is in use, or refused");
    if let Some(missing) = contents.missing() {
        let reason = format!("the file before it, which holds entry {missing}, is missing");
        return Err(segments[0].0.damaged(0, reason));
    }
    let mut recovered = Recovered {
        used: position - last.start,
        unneeded: old.iter().map(|number| segment::path(&place.folder, *number)).collect(),
        contents,
        segments,
        prepared,
    };
    recovered.settle(torn.map(|(reading, _)| reading), &mut ledger)?;
    recovered.check(&ledger);
    Ok((ledger, Some(recovered)))
}

impl Recovered {
    /// What holds of a log that was read back, however its files were damaged: damage was refused.
    fn check(&self, ledger: &Ledger) {
        let (last, _) = self.segments.back().expect("a log has a segment");
        assert!(self.used > as_u64(HEAD_BYTES), "the last segment holds its first record");
        let in_use = self.segments.iter().map(|(segment, _)| &**segment);
        let all: Vec<&Segment> = in_use.clone().chain(&self.prepared).collect();
        let follow = |pair: &[&Segment]| pair[0].number + 1 == pair[1].number;
        assert!(all.windows(2).all(follow), "the files are without a hole");
        let starts: Vec<u64> = in_use.map(|segment| segment.start).collect();
        assert!(starts.is_sorted_by(|one, next| one < next), "segments follow one another");
        assert!(ledger.newest() >= all[all.len() - 1].number, "the ledger knows every file");
        let LogState { purged, last: end, committed, .. } = self.contents.state();
        assert!(purged <= end && committed <= end, "the log of {} ends at {end:?}", last.number);
    }

    /// Cuts a torn end, and makes durable what was read.
    fn settle(&mut self, torn: Option<Reading>, ledger: &mut Ledger) -> Result<(), Error> {
        let (last, _) = self.segments.back().expect("a log has a segment");
        if let Some(Reading { bad: Some(bad), end, .. }) = torn {
            // A file that was begun, and of which not even the first record is whole, is unused.
            let begun = self.prepared.front().filter(|_| end == HEAD_BYTES);
            let cut = begun.unwrap_or(last);
            let (file, offset, reason) = (cut.path.display(), end, bad.reason);
            let what = "cut the torn end of the log, which was never acknowledged";
            tracing::warn!(%file, offset, %reason, "{what}");
            // Before the traces are gone: a crash must not leave an end that looks whole.
            ledger.set_doubt(true)?;
            cut.clear(as_u64(end))?;
        }
        // After a crash of the process alone, what was read may be in memory only.
        last.sync()?;
        let newest = self.prepared.back().map_or(last.number, |segment| segment.number);
        if newest > ledger.newest() {
            ledger.add_file(newest)?;
        }
        let purged = self.contents.state().purged.map(|id| id.index);
        while self.segments.len() > 1
            && let Some((segment, _)) =
                self.segments.pop_front_if(|(_, highest)| *highest <= purged)
        {
            self.unneeded.push_back(segment.path.clone());
        }
        Ok(())
    }
}

/// Refuses a log without its newest file, and one with files that it never had.
fn check_newest(place: &LogPlace, all: &[u64], ledger: &Ledger) -> Result<(), Error> {
    let newest = all.last().copied().unwrap_or(0);
    if newest < ledger.newest() {
        let missing = segment::path(&place.folder, ledger.newest());
        let text = "the file is missing, and the log had it: files of it were removed, or are of \
                    another time";
        return Err(Error::damaged(&missing, 0, text));
    }
    if newest > ledger.newest() + 1 {
        let text = "the log never had a file of this number, as far as its ledger knows";
        return Err(Error::damaged(&segment::path(&place.folder, newest), 0, text));
    }
    Ok(())
}

/// The files behind the last hole in the numbers, and those before it. Such a hole is no damage if
/// nothing before it is needed; whether that is so, the first file behind it says.
fn split_at_hole(all: &[u64]) -> (&[u64], &[u64]) {
    let hole = all.windows(2).rposition(|pair| pair[0] + 1 != pair[1]);
    all.split_at(hole.map_or(0, |place| place + 1))
}

/// The byte of the log with which its first file begins.
fn first_start(segment: &Segment, bytes: &Bytes) -> Result<u64, Error> {
    let Some(position) = record::first_position(&bytes[HEAD_BYTES..]) else { return Ok(0) };
    let start = position.checked_sub(as_u64(HEAD_BYTES));
    start.ok_or_else(|| segment.damaged(0, "its first record is of no place behind a head"))
}

/// Refuses records in a file that the ledger does not know: nothing is written to one before.
fn check_known(
    segment: &Segment,
    reading: &Reading,
    contents: &Contents,
    ledger: &Ledger,
) -> Result<(), Error> {
    // The very first file gets its name with a first record in it.
    let is_new = segment.number == FIRST_SEGMENT && contents.state() == Default::default();
    if segment.number <= ledger.newest() || reading.end == HEAD_BYTES || is_new {
        return Ok(());
    }
    Err(segment.damaged(0, "it holds something, and the ledger of the log does not know it"))
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
        self.end == HEAD_BYTES || self.bad.is_some()
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
    let mut reading = Reading { end: HEAD_BYTES, bad: None, highest: None };
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
            Record::State(state) if is_first && reading.end == HEAD_BYTES => {
                contents.begin(*state);
                Ok(())
            }
            Record::State(_) => contents.apply(&found.record, position),
            _ if reading.end == HEAD_BYTES => Err("a segment does not begin with a state"),
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
    if is_first && reading.end == HEAD_BYTES {
        return damaged(", and no file of the log is before it");
    }
    let Some(bad) = &reading.bad else { return Ok(()) };
    if is_attested(segment, bytes, reading) {
        return damaged(", and a record after it says that it was synced");
    }
    // Up to the length it was prepared with, no crash makes a file shorter: opening it checked so.
    assert!(as_u64(bytes.len()) >= segment.bytes, "a file that was cut is refused");
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

/// Refuses a file behind the end of the log, which lies in `end`, that holds something.
fn check_unwritten(
    later: &Segment,
    bytes: &Bytes,
    end: Option<&Segment>,
    torn: Option<&(Reading, Bytes)>,
) -> Result<(), Error> {
    if is_zero(&bytes[HEAD_BYTES..]) {
        return Ok(());
    }
    let end = end.expect("the first segment is in use, or refused");
    let offset = torn.map_or(HEAD_BYTES, |(reading, _)| reading.end);
    let reason = torn.map_or("it is empty", |(reading, _)| reading.reason());
    let reason = format!("{reason}, and the log goes on in {}", later.path.display());
    Err(end.damaged(as_u64(offset), reason))
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}
