//! The locks of a data folder and of its log: one holder at a time.
//!
//! That of a data folder is a `flock` on the file `lock`, so the system releases it however the
//! process ends. The file's content, the process id of the holder, is for the error message only.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::Error;

/// Holds the lock until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of `folder`.
    ///
    /// # Errors
    /// `Locked`, with what is known of the holder, when another process has it.
    pub(super) fn take(folder: &Path) -> Result<Self, Error> {
        let path = folder.join("lock");
        let io_error = |error| Error::io(&path, error);
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).map_err(io_error)?;
        if !try_lock(&file).map_err(io_error)? {
            return Err(Error::Locked { path: folder.to_owned(), holder: holder(&mut file) });
        }
        file.set_len(0).map_err(io_error)?;
        writeln!(file, "{}", std::process::id()).map_err(io_error)?;
        Ok(Self { _file: file })
    }

    /// Takes a lock on `folder` itself, for a part of a data folder that may be opened by itself.
    ///
    /// # Errors
    /// `Locked` when somebody has it.
    pub(super) fn take_folder(folder: &Path) -> Result<Self, Error> {
        let io_error = |error| Error::io(folder, error);
        let file = File::open(folder).map_err(io_error)?;
        if !try_lock(&file).map_err(io_error)? {
            let holder = "somebody who has it open".to_owned();
            return Err(Error::Locked { path: folder.to_owned(), holder });
        }
        Ok(Self { _file: file })
    }
}

/// False when another holds the lock.
fn try_lock(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What the holder wrote of itself. Unchecked: it may be between taking the lock and writing.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.read_to_string(&mut text) {
        Ok(_) if text.trim().parse::<u32>().is_ok() => format!("process {}", text.trim()),
        _ => "another process".to_owned(),
    }
}
