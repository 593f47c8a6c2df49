//! How a state leaves and enters a guest, as a sequence of records.
//!
//! The records are the guest's; magic, lengths and checksum around them are `export` and
//! `import`, so that no guest writes its own.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A state that can be taken elsewhere.
///
/// Any `Default` serde type has this by itself, as one record: fine up to some megabytes, since
/// that record is a second copy of the state. A larger state implements it by hand, a few dozen
/// kilobytes a record.
pub trait Portable: Sized {
    /// Where an export stands, such as the last key that was written.
    type Position: Default;

    /// Appends the record at `position` to `record` and moves on, or returns false when there is
    /// none left. The state doesn't change between the records of an export.
    fn export_record(&self, position: &mut Self::Position, record: &mut Vec<u8>) -> bool;

    /// Takes in a record, starting from `Default`, in the order of the export. `schema` is the
    /// version that wrote it.
    ///
    /// # Errors
    /// What is wrong with the record.
    fn import_record(&mut self, schema: u32, record: &[u8]) -> Result<(), String>;
}

impl<T: Default + Serialize + DeserializeOwned> Portable for T {
    type Position = bool;

    fn export_record(&self, exported: &mut bool, record: &mut Vec<u8>) -> bool {
        if *exported {
            return false;
        }
        bincode::serde::encode_into_std_write(self, record, bincode::config::standard())
            .expect("a state of plain values can be encoded");
        *exported = true;
        true
    }

    fn import_record(&mut self, _: u32, record: &[u8]) -> Result<(), String> {
        let read = bincode::serde::decode_from_slice(record, bincode::config::standard());
        let (state, length) = read.map_err(|error| error.to_string())?;
        if length != record.len() {
            return Err("bytes are left over after the state".to_owned());
        }
        *self = state;
        Ok(())
    }
}
