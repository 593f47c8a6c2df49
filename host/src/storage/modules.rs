//! Guests' modules, each in a file named by its SHA-256. Bytes that do not have that digest are
//! neither stored nor given out.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::blocking::may_block;
use super::{Error, durable};
use crate::types::ModuleDigest;

const EXTENSION: &str = "wasm";

/// The folder of modules. Clones share it; files are never changed, so no lock is needed.
#[derive(Clone, Debug)]
pub struct ModuleStore {
    folder: Arc<Path>,
}

impl ModuleStore {
    /// Opens the folder, creating it if need be; removes what was left half written.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        durable::create_folder(folder)?;
        durable::remove_temporaries(folder)?;
        Ok(Self { folder: folder.into() })
    }

    /// Stores a module durably. Storing it again rewrites it, which repairs a damaged file.
    ///
    /// # Errors
    /// `Refused` when `bytes` do not have this digest.
    pub fn put(&self, digest: ModuleDigest, bytes: &[u8]) -> Result<(), Error> {
        let found = digest_of(bytes);
        if found != digest {
            return Err(Error::Refused(format!("module {digest} was sent with bytes of {found}")));
        }
        let path = self.path(digest);
        let name = path.file_name().and_then(|name| name.to_str());
        assert_eq!(name.and_then(parse_name), Some(digest), "a module is found by its name");
        durable::write_whole(&path, bytes)
    }

    /// The module's bytes, verified; `None` when it is not stored.
    ///
    /// # Errors
    /// `Damaged` when the file does not have the digest that it is named by.
    pub fn get(&self, digest: ModuleDigest) -> Result<Option<Bytes>, Error> {
        may_block();
        let path = self.path(digest);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(&path, error)),
        };
        let found = digest_of(&bytes);
        if found != digest {
            return Err(Error::damaged(&path, 0, format!("its SHA-256 is {found}")));
        }
        Ok(Some(Bytes::from(bytes)))
    }

    /// Digests of all stored modules, in order. Files by other names are not listed.
    pub fn list(&self) -> Result<Vec<ModuleDigest>, Error> {
        may_block();
        let folder = &self.folder;
        let mut digests = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(|error| Error::io(folder, error))? {
            let name = entry.map_err(|error| Error::io(folder, error))?.file_name();
            digests.extend(name.to_str().and_then(parse_name));
        }
        digests.sort();
        assert!(digests.is_sorted_by(|one, next| one < next), "each module has one file");
        Ok(digests)
    }

    /// Removes a module; does nothing when it is not stored.
    pub fn remove(&self, digest: ModuleDigest) -> Result<(), Error> {
        may_block();
        let path = self.path(digest);
        match std::fs::remove_file(&path) {
            Ok(()) => durable::sync_folder(&self.folder),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io(&path, error)),
        }
    }

    fn path(&self, digest: ModuleDigest) -> PathBuf {
        self.folder.join(format!("{digest}.{EXTENSION}"))
    }
}

fn digest_of(bytes: &[u8]) -> ModuleDigest {
    ModuleDigest(Sha256::digest(bytes).into())
}

fn parse_name(name: &str) -> Option<ModuleDigest> {
    let digits = name.strip_suffix(EXTENSION)?.strip_suffix('.')?;
    let mut bytes = [0; 32];
    hex::decode_to_slice(digits, &mut bytes).ok()?;
    let digest = ModuleDigest(bytes);
    // Capital letters are another name.
    (digest.to_string() == digits).then_some(digest)
}
