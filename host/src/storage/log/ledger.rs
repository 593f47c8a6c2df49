//! The ledger of a log: the number of its newest file, and whether its end is in doubt. It lies
//! beside the folder of the log, so that files that are missing there, and files of another time,
//! are noticed (docs/formats.md, "Ledger of the log").
//!
//! Two slots take turns. One is overwritten in place and synced, which needs no room on the disk;
//! where a crash interrupts that, the other one holds.
//!
//! **Invariant:** nothing is written to a segment before the ledger knows its number.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::{Buf as _, BufMut as _};

use super::as_u64;
use crate::storage::{Error, durable};
use crate::types::Incarnation;

const MAGIC: &[u8; 8] = b"LSLOGLED";
const VERSION: u16 = 1;
/// The slots lie so far apart that no disk writes both at once.
const SLOT_BYTES: usize = 4096;
const SLOTS: u64 = 2;
/// All before the checksum: magic, version, doubt, five zeros, turn, newest, owner.
const FIELDS_BYTES: usize = 8 + 2 + 1 + 5 + 8 + 8 + 16;

/// What a slot says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    /// Counts the writes; the higher one holds.
    turn: u64,
    newest: u64,
    in_doubt: bool,
    owner: Incarnation,
}

/// The ledger, open.
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    file: File,
    slot: Slot,
}

impl Ledger {
    /// Makes the ledger of a log that has no file yet.
    pub(super) fn create(path: &Path, owner: Incarnation) -> Result<Self, Error> {
        let slot = Slot { turn: 0, newest: 0, in_doubt: false, owner };
        let mut bytes = slot.encode();
        bytes.resize(SLOT_BYTES * 2, 0);
        durable::write_whole(path, &bytes)?;
        Self::open(path, owner)?.ok_or_else(|| Error::io(path, io::ErrorKind::NotFound.into()))
    }

    /// Opens the ledger; `None` where there is none.
    ///
    /// # Errors
    /// `Damaged` when no slot can be read, or it is of another data folder.
    pub(super) fn open(path: &Path, owner: Incarnation) -> Result<Option<Self>, Error> {
        let io_error = |error| Error::io(path, error);
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error(error)),
        };
        let mut slots = Vec::new();
        for turn in 0..SLOTS {
            let mut bytes = [0; FIELDS_BYTES + 4];
            match file.read_exact_at(&mut bytes, offset(turn)) {
                Ok(()) => slots.extend(Slot::decode(&bytes)),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(Error::damaged(path, offset(turn), "the file ends early"));
                }
                Err(error) => return Err(io_error(error)),
            }
        }
        let newest = slots.into_iter().max_by_key(|slot| slot.turn);
        let slot = newest.ok_or_else(|| {
            Error::damaged(path, 0, "neither of its two slots is what was written")
        })?;
        if slot.owner != owner {
            return Err(Error::damaged(path, 0, "it was written in another data folder"));
        }
        Ok(Some(Self { path: path.to_owned(), file, slot }))
    }

    /// The highest number that a file of the log may have with something in it.
    pub(super) fn newest(&self) -> u64 {
        self.slot.newest
    }

    /// Whether an end of the log was cut that the peers have not been asked about.
    pub(super) fn in_doubt(&self) -> bool {
        self.slot.in_doubt
    }

    /// Notes durably that a file has got its name.
    pub(super) fn add_file(&mut self, number: u64) -> Result<(), Error> {
        assert!(
            number == self.slot.newest || number == self.slot.newest + 1,
            "file {number} follows file {}",
            self.slot.newest
        );
        self.write(Slot { newest: number, ..self.slot })
    }

    /// Notes durably whether the end of the log is in doubt.
    pub(super) fn set_doubt(&mut self, in_doubt: bool) -> Result<(), Error> {
        self.write(Slot { in_doubt, ..self.slot })
    }

    fn write(&mut self, next: Slot) -> Result<(), Error> {
        let next = Slot { turn: self.slot.turn + 1, ..next };
        assert!(next.newest >= self.slot.newest, "the ledger forgets no file");
        assert_eq!(next.owner, self.slot.owner, "a log stays in its data folder");
        let written = self.file.write_all_at(&next.encode(), offset(next.turn));
        let synced = written.and_then(|()| self.file.sync_data());
        synced.map_err(|error| Error::io(&self.path, error))?;
        self.slot = next;
        Ok(())
    }
}

fn offset(turn: u64) -> u64 {
    turn % SLOTS * as_u64(SLOT_BYTES)
}

impl Slot {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIELDS_BYTES + 4);
        bytes.put_slice(MAGIC);
        bytes.put_u16_le(VERSION);
        bytes.put_u8(u8::from(self.in_doubt));
        bytes.put_bytes(0, 5);
        bytes.put_u64_le(self.turn);
        bytes.put_u64_le(self.newest);
        bytes.put_slice(&self.owner.0);
        bytes.put_u32_le(crc32c::crc32c(&bytes));
        assert_eq!(Self::decode(&bytes), Some(*self), "what is encoded can be decoded");
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (mut fields, mut checksum) = bytes.split_at(FIELDS_BYTES);
        if !fields.starts_with(MAGIC) || checksum.get_u32_le() != crc32c::crc32c(fields) {
            return None;
        }
        fields.advance(MAGIC.len());
        if fields.get_u16_le() != VERSION {
            return None;
        }
        let in_doubt = fields.get_u8() == 1;
        fields.advance(5);
        let (turn, newest) = (fields.get_u64_le(), fields.get_u64_le());
        let owner = Incarnation(fields.try_into().ok()?);
        Some(Self { turn, newest, in_doubt, owner })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Incarnation = Incarnation([7; 16]);

    /// What was noted is there after a restart, also when the last write was torn: then what was
    /// noted before holds. With neither slot, or those of another folder, it is refused.
    #[test]
    fn a_torn_slot_leaves_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        assert!(Ledger::open(&path, OWNER).unwrap().is_none());
        let mut ledger = Ledger::create(&path, OWNER).unwrap();
        for number in 1..=3 {
            ledger.add_file(number).unwrap();
        }
        ledger.set_doubt(true).unwrap();
        drop(ledger);
        let found = |path: &Path| {
            let ledger = Ledger::open(path, OWNER)?.expect("it is there");
            Ok::<_, Error>((ledger.newest(), ledger.in_doubt()))
        };
        assert_eq!(found(&path).unwrap(), (3, true));
        let whole = std::fs::read(&path).unwrap();
        for place in 0..FIELDS_BYTES + 4 {
            let mut torn = whole.clone();
            torn[place] ^= 1;
            std::fs::write(&path, &torn).unwrap();
            assert_eq!(found(&path).unwrap(), (3, false), "byte {place}");
            torn[SLOT_BYTES + place] ^= 1;
            std::fs::write(&path, &torn).unwrap();
            let error = found(&path).unwrap_err();
            assert!(error.to_string().contains("neither of its two slots"), "{error}");
        }
        std::fs::write(&path, &whole[..SLOT_BYTES]).unwrap();
        assert!(found(&path).unwrap_err().to_string().contains("ends early"));
        std::fs::write(&path, &whole).unwrap();
        let error = Ledger::open(&path, Incarnation([8; 16])).unwrap_err();
        assert!(error.to_string().contains("another data folder"), "{error}");
    }
}
