//! How much room the disk has, and whether that leaves the reserve untouched. What is refused when
//! it does not is decided above.

use std::path::Path;

use super::Error;

/// Bytes that an ordinary user can still write on the disk that holds `path`.
pub fn free_bytes(path: &Path) -> Result<u64, Error> {
    let stat = rustix::fs::statvfs(path).map_err(|error| Error::io(path, error.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Fails when the disk that holds `path` has less than `reserve_bytes` free.
///
/// # Errors
/// `Full`; once there is room again, the same call succeeds.
pub fn check_reserve(path: &Path, reserve_bytes: u64) -> Result<(), Error> {
    let free_bytes = free_bytes(path)?;
    if free_bytes < reserve_bytes {
        return Err(Error::Full { path: path.to_owned(), free_bytes, reserve_bytes });
    }
    Ok(())
}
