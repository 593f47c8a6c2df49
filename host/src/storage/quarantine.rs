//! The mark of a node whose state turned out to be another than the cluster's (docs/formats.md,
//! "Quarantine"). Text, as strict as the identity; written whole, once, and kept until a repair.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use super::blocking::may_block;
use super::{Error, durable};
use crate::types::{LogIndex, StateDigest};

const FIRST_LINE: &str = "lockstep quarantine 1";

/// What was found, and where the evidence lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantine {
    /// The checkpoint.
    pub index: LogIndex,
    /// What a majority of the voters agreed on.
    pub agreed: StateDigest,
    /// What this node's snapshot holds.
    pub own: StateDigest,
    /// Name of that snapshot's file.
    pub snapshot: String,
}

impl Quarantine {
    /// Reads the file; `None` when there is none.
    pub(super) fn load(path: &Path) -> Result<Option<Self>, Error> {
        may_block();
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(path, error)),
        };
        let quarantine = parse(&bytes).filter(|parsed| parsed.to_text().as_bytes() == bytes);
        let quarantine = quarantine.filter(|parsed| parsed.own != parsed.agreed);
        let damaged = || Error::damaged(path, 0, "it is not what was written");
        quarantine.map(Some).ok_or_else(damaged)
    }

    /// Writes the file, whole or not at all.
    pub(super) fn store(&self, path: &Path) -> Result<(), Error> {
        assert_ne!(self.own, self.agreed, "a node is quarantined for a difference");
        let named = format!("{:020}-", self.index);
        assert!(self.snapshot.starts_with(&named), "{} is of {}", self.snapshot, self.index);
        let text = self.to_text();
        assert_eq!(parse(text.as_bytes()).as_ref(), Some(self), "what is written can be read");
        durable::write_whole(path, text.as_bytes())
    }

    fn to_text(&self) -> String {
        let Self { index, agreed, own, snapshot } = self;
        let mut text = format!(
            "{FIRST_LINE}\ncheckpoint {index}\nagreed {agreed}\nown {own}\nsnapshot {snapshot}\n"
        );
        let checksum = crc32c::crc32c(text.as_bytes());
        writeln!(text, "crc32c {checksum:08x}").expect("a String takes all that is written");
        text
    }
}

/// Takes the values from the lines; whether they are as written is for the caller to check.
fn parse(bytes: &[u8]) -> Option<Quarantine> {
    let mut lines = std::str::from_utf8(bytes).ok()?.lines();
    if lines.next()? != FIRST_LINE {
        return None;
    }
    let mut value = |key: &str| lines.next()?.strip_prefix(key)?.strip_prefix(' ');
    Some(Quarantine {
        index: value("checkpoint")?.parse().ok()?,
        agreed: parse_digest(value("agreed")?)?,
        own: parse_digest(value("own")?)?,
        snapshot: value("snapshot")?.to_owned(),
    })
}

fn parse_digest(text: &str) -> Option<StateDigest> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(StateDigest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mark comes back as it was written, and any change of the file is noticed.
    #[test]
    fn it_comes_back_or_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("quarantine");
        assert_eq!(Quarantine::load(&path).unwrap(), None);
        let written = Quarantine {
            index: 300,
            agreed: StateDigest([0xab; 32]),
            own: StateDigest([1; 32]),
            snapshot: "00000000000000000300-1-1.snapshot".to_owned(),
        };
        written.store(&path).unwrap();
        assert_eq!(Quarantine::load(&path).unwrap(), Some(written));
        let bytes = std::fs::read(&path).unwrap();
        for place in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[place] ^= 1;
            std::fs::write(&path, damaged).unwrap();
            assert!(matches!(Quarantine::load(&path), Err(Error::Damaged { .. })), "{place}");
        }
    }

    /// A mark without a difference, or of another checkpoint than its file, is never written.
    #[test]
    fn a_mark_that_makes_no_sense_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("quarantine");
        let name = |index| format!("{index:020}-1-1.snapshot");
        for (own, snapshot) in [(7, name(300)), (1, name(301))] {
            let (agreed, own) = (StateDigest([7; 32]), StateDigest([own; 32]));
            let mark = Quarantine { index: 300, agreed, own, snapshot };
            assert!(std::panic::catch_unwind(|| mark.store(&path)).is_err(), "{mark:?}");
            assert!(!path.exists());
        }
    }
}
