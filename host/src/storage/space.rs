//! How much room the disk has. What is refused when that is little is decided above.

use std::path::Path;

use super::Error;

/// Bytes that an ordinary user can still write on the disk that holds `path`.
pub fn free_bytes(path: &Path) -> Result<u64, Error> {
    let stat = rustix::fs::statvfs(path).map_err(|error| Error::io(path, error.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
