//! The steps by which a file becomes visible: written beside its place, synced, renamed, and the
//! folder synced (the rename alone is not durable on ext4 or XFS).

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use tempfile::NamedTempFile;

use super::Error;
use super::blocking::may_block;

/// Prefix of every file that is still being written; such files are removed at the next start.
pub(crate) const TEMPORARY_PREFIX: &str = "temporary-";

/// Makes the names in `folder` durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), Error> {
    may_block();
    File::open(folder).and_then(|file| file.sync_all()).map_err(|error| Error::io(folder, error))
}

/// Creates `folder` if it is not there, and makes its name durable.
pub(crate) fn create_folder(folder: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
    match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent),
        _ => sync_folder(Path::new(".")),
    }
}

/// A file in `folder` that disappears on drop unless `publish` takes it.
pub(crate) fn temporary_in(folder: &Path) -> Result<NamedTempFile, Error> {
    may_block();
    // tempfile hides the number of an error, by which one that passes is told from others.
    let mut number = None;
    let made = tempfile::Builder::new().prefix(TEMPORARY_PREFIX).make_in(folder, |path| {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(path);
        file.inspect_err(|error| number = error.raw_os_error())
    });
    let told = |error| number.map_or(error, io::Error::from_raw_os_error);
    made.map_err(|error| Error::io(folder, told(error)))
}

/// Syncs a whole temporary file and gives it its name, in place of what had that name before.
pub(crate) fn publish(temporary: NamedTempFile, path: &Path) -> Result<File, Error> {
    // Before the name changes: a process without descriptors changes nothing.
    let folder = open_folder(path.parent().expect("a published file lies in a folder"))?;
    publish_in(&folder, temporary, path)
}

/// A handle of a folder, for [`publish_in`].
pub(crate) fn open_folder(folder: &Path) -> Result<File, Error> {
    may_block();
    File::open(folder).map_err(|error| Error::io(folder, error))
}

/// As [`publish`], where the folder is open already: it needs no descriptor.
pub(crate) fn publish_in(
    folder: &File,
    temporary: NamedTempFile,
    path: &Path,
) -> Result<File, Error> {
    may_block();
    assert!(is_temporary(temporary.path()), "a start removes what a crash leaves of it");
    assert!(!is_temporary(path), "no start removes it");
    temporary.as_file().sync_all().map_err(|error| Error::io(temporary.path(), error))?;
    let (file, temporary) = temporary.into_parts();
    std::fs::rename(&temporary, path).map_err(|error| Error::io(path, error))?;
    // The name that it had is free now, and nothing else may lose its file with it.
    temporary.keep().map_err(|failed| Error::io(path, failed.error))?;
    folder.sync_all().map_err(|error| Error::io(path, error))?;
    Ok(file)
}

fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(TEMPORARY_PREFIX))
}

/// Writes `bytes` as the file `path`, whole or not at all.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let folder = path.parent().expect("a published file lies in a folder");
    let mut temporary = temporary_in(folder)?;
    temporary.write_all(bytes).map_err(|error| Error::io(temporary.path(), error))?;
    publish(temporary, path).map(drop)
}

/// Moves a file into another folder of the same disk, durably there.
pub(crate) fn move_into(file: &Path, folder: &Path) -> Result<(), Error> {
    let name = file.file_name().expect("a file has a name");
    assert_ne!(file.parent(), Some(folder), "it is moved elsewhere");
    std::fs::rename(file, folder.join(name)).map_err(|error| Error::io(file, error))?;
    sync_folder(folder)
}

/// Removes what an earlier process left half written in `folder`.
pub(crate) fn remove_temporaries(folder: &Path) -> Result<(), Error> {
    for entry in std::fs::read_dir(folder).map_err(|error| Error::io(folder, error))? {
        let entry = entry.map_err(|error| Error::io(folder, error))?;
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX) {
            let path = entry.path();
            std::fs::remove_file(&path).map_err(|error| Error::io(&path, error))?;
        }
    }
    Ok(())
}
