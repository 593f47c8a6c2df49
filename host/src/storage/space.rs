//! How much room the disk has. What is refused when that is little is decided above.

use std::path::Path;

use super::Error;
use super::blocking::may_block;

/// What an ordinary user can still have of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    /// Bytes.
    pub bytes: u64,
    /// Files: a disk may have no room for another one while it has bytes. Some file systems have no
    /// such limit; there it is the highest number.
    pub files: u64,
}

/// What is free on the disk that holds `path`.
pub fn free(path: &Path) -> Result<Free, Error> {
    may_block();
    let stat = rustix::fs::statvfs(path).map_err(|error| Error::io(path, error.into()))?;
    let bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
    let files = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
    Ok(Free { bytes, files })
}
