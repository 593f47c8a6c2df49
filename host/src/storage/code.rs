//! Compiled code of modules, kept from one start to the next: a cache, whose loss costs nothing
//! but time.
//!
//! Whoever can write here decides what the node runs, so a file is given out only when it, and the
//! folder it lies in, belong to this user and are closed to all others. What the bytes are is
//! checked by who reads them.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::blocking::may_block;
use super::{Error, durable};
use crate::types::ModuleDigest;

const EXTENSION: &str = ".code";
/// Access to the folder: this user's alone.
const FOLDER_MODE: u32 = 0o700;
/// Access to a file: this user's alone.
const FILE_MODE: u32 = 0o600;
/// The bits of a mode that say who has access.
const ACCESS_BITS: u32 = 0o7777;
/// Longest file that is read, in bytes: code takes up to about ten times its module.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// The folder of compiled code of one engine profile.
#[derive(Clone, Debug)]
pub struct CodeStore {
    folder: PathBuf,
    profile: String,
}

impl CodeStore {
    /// Opens the folder for an engine profile, creating it if need be; removes what is of other
    /// profiles, and what was left half written.
    ///
    /// # Errors
    /// When the folder is open to others, or cannot be used: do without it.
    pub fn open(folder: &Path, profile: &str) -> Result<Self, Error> {
        match DirBuilder::new().mode(FOLDER_MODE).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io(folder, error));
            }
            _ => {}
        }
        let is_part_of_names =
            !profile.is_empty() && profile.bytes().all(|b| b.is_ascii_hexdigit());
        assert!(is_part_of_names, "files are told apart by their engine profile: {profile:?}");
        let store = Self { folder: folder.to_owned(), profile: profile.to_owned() };
        store.check_folder()?;
        durable::remove_temporaries(folder)?;
        store.remove_others()?;
        Ok(store)
    }

    /// Keeps the code of a module.
    pub fn put(&self, digest: ModuleDigest, code: &[u8]) -> Result<(), Error> {
        self.check_folder()?;
        let path = self.path(digest);
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        assert!(name.is_some_and(|name| self.is_of_profile(&name)), "no start removes it");
        durable::write_whole(&path, code)
    }

    /// The code of a module; `None` when there is none.
    ///
    /// # Errors
    /// `Refused` when the file or its folder is open to others.
    pub fn get(&self, digest: ModuleDigest) -> Result<Option<Vec<u8>>, Error> {
        self.check_folder()?;
        let path = self.path(digest);
        let no_link = i32::try_from(OFlags::NOFOLLOW.bits()).expect("the flags of open are an int");
        let mut file = match OpenOptions::new().read(true).custom_flags(no_link).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(&path, error)),
        };
        let bytes = check_file(&path, &file)?;
        let mut code = Vec::with_capacity(bytes);
        file.read_to_end(&mut code).map_err(|error| Error::io(&path, error))?;
        Ok(Some(code))
    }

    /// Removes the code of a module; does nothing when there is none.
    pub fn remove(&self, digest: ModuleDigest) -> Result<(), Error> {
        may_block();
        let path = self.path(digest);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(&path, error)),
            _ => Ok(()),
        }
    }

    fn path(&self, digest: ModuleDigest) -> PathBuf {
        self.folder.join(format!("{}-{digest}{EXTENSION}", self.profile))
    }

    /// Whether the file of this name is of this engine profile.
    fn is_of_profile(&self, name: &str) -> bool {
        name.strip_prefix(&self.profile).is_some_and(|rest| rest.starts_with('-'))
    }

    fn check_folder(&self) -> Result<(), Error> {
        may_block();
        let found = std::fs::symlink_metadata(&self.folder)
            .map_err(|error| Error::io(&self.folder, error))?;
        let right = found.is_dir() && is_ours(&found, FOLDER_MODE);
        if right { Ok(()) } else { Err(refused(&self.folder, &found, FOLDER_MODE)) }
    }

    /// Removes the code that engines of other profiles left.
    fn remove_others(&self) -> Result<(), Error> {
        let failed = |error| Error::io(&self.folder, error);
        for entry in std::fs::read_dir(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(EXTENSION) && !self.is_of_profile(&name) {
                std::fs::remove_file(entry.path()).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// Checks that nobody else can have written an open file; its length, in bytes.
fn check_file(path: &Path, file: &File) -> Result<usize, Error> {
    let found = file.metadata().map_err(|error| Error::io(path, error))?;
    if !found.is_file() || !is_ours(&found, FILE_MODE) {
        return Err(refused(path, &found, FILE_MODE));
    }
    if found.len() > FILE_BYTES_MAX {
        let (bytes, limit) = (found.len(), FILE_BYTES_MAX);
        let text = format!("{} has {bytes} bytes, and the limit is {limit}", path.display());
        return Err(Error::Refused(text));
    }
    Ok(usize::try_from(found.len()).expect("the limit fits"))
}

fn is_ours(found: &std::fs::Metadata, mode: u32) -> bool {
    found.uid() == rustix::process::geteuid().as_raw() && found.mode() & ACCESS_BITS == mode
}

fn refused(path: &Path, found: &std::fs::Metadata, mode: u32) -> Error {
    let (uid, found) = (found.uid(), found.mode() & ACCESS_BITS);
    Error::Refused(format!(
        "{} has owner {uid} and mode {found:o}, and must be this user's with mode {mode:o}: \
         remove it",
        path.display()
    ))
}
