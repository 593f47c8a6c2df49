//! Reads entries back, from memory and from the segments. Each is checked again: what a disk gives
//! back is not trusted for having been read before.

use super::contents::Entry;
use super::record::{self, Payload, Record};
use super::segment::Segment;
use super::writer::Files;
use crate::storage::Error;
use crate::types::LogId;

/// The entries, those on disk by one read for as many as lie in one segment.
pub(super) fn read_back(found: &[Entry], files: &Files) -> Result<Vec<(LogId, Payload)>, Error> {
    let mut entries = Vec::with_capacity(found.len());
    let mut rest = found;
    while let Some(entry) = rest.first() {
        let position = match entry {
            Entry::InMemory(id, payload) => {
                entries.push((*id, payload.clone()));
                rest = &rest[1..];
                continue;
            }
            Entry::OnDisk { position, .. } => *position,
        };
        let (_, segment) = files.range(..=position).next_back().ok_or_else(|| {
            Error::Refused(format!("byte {position} of the log lies in no segment"))
        })?;
        let end = files.range(position + 1..).next().map_or(u64::MAX, |(start, _)| *start);
        let is_in_it = |entry: &&Entry| match entry {
            Entry::OnDisk { position, .. } => *position < end,
            Entry::InMemory(..) => false,
        };
        let (run, after) = rest.split_at(rest.iter().take_while(is_in_it).count());
        read_run(segment, run, &mut entries)?;
        rest = after;
    }
    assert_eq!(entries.len(), found.len(), "each entry is read once");
    Ok(entries)
}

/// Reads entries that lie in one segment.
fn read_run(
    segment: &Segment,
    run: &[Entry],
    entries: &mut Vec<(LogId, Payload)>,
) -> Result<(), Error> {
    let places = || {
        run.iter().filter_map(|entry| match entry {
            Entry::OnDisk { id, position, payload_bytes } => Some((*id, *position, *payload_bytes)),
            Entry::InMemory(..) => None,
        })
    };
    let Some((first, last)) = places().next().zip(places().last()) else { return Ok(()) };
    let bytes = last.1 - first.1 + Record::entry_bytes(last.2);
    let bytes = segment.read(first.1 - segment.start, bytes)?;
    for (id, position, payload_bytes) in places() {
        let offset = usize::try_from(position - first.1).expect("what was read fits in memory");
        let damaged = |reason| segment.damaged(position - segment.start, reason);
        let read = record::decode(&bytes, offset, position);
        match read.map_err(|unreadable| damaged(unreadable.reason))?.record {
            Record::Entry(found, payload)
                if found == id && payload.bytes.len() == payload_bytes =>
            {
                entries.push((id, payload));
            }
            _ => return Err(damaged(format!("entry {id} is not there any more"))),
        }
    }
    Ok(())
}
