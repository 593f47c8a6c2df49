//! The folder of one test, below what cargo builds, which is a real disk also where the system's
//! temporary folder is memory.
//!
//! It goes with its test, unless that fails or `LOCKSTEP_KEEP` is set: then it stays until the next
//! run. Whoever uses a folder holds a lock on it until the end of the process, so a run that begins
//! can tell what earlier ones have left behind, killed ones too, from what others are using.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

use tempfile::TempDir;

use crate::program;

/// In the folder of all folders: held while one is made or leftovers are removed.
const LOCK: &str = "lock";

/// What earlier runs left is removed once, when this one makes its first folder.
static CLEARED: Once = Once::new();

/// A folder that is removed when dropped.
pub struct Folder {
    temporary: TempDir,
    /// While it is held, no other run removes the folder.
    in_use: File,
}

impl Folder {
    /// Makes an empty folder.
    ///
    /// # Panics
    /// When the disk refuses it.
    pub fn new() -> Self {
        let all = program::built().join("test-data");
        std::fs::create_dir_all(&all).expect("the build folder can be written");
        let _making = locked(&all);
        CLEARED.call_once(|| clear(&all));
        Self::new_in(&all)
    }

    fn new_in(all: &Path) -> Self {
        let temporary = tempfile::Builder::new().prefix("lockstep-test-").tempdir_in(all);
        let temporary = temporary.expect("a folder for the test can be made");
        let in_use = File::open(temporary.path()).expect("a new folder can be opened");
        in_use.try_lock().expect("nobody knows the new folder");
        Self { temporary, in_use }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Leaves it for people to look at, until a later run begins.
    pub fn keep(self) -> PathBuf {
        // The lock ends with the process.
        std::mem::forget(self.in_use);
        self.temporary.keep()
    }
}

impl Default for Folder {
    fn default() -> Self {
        Self::new()
    }
}

/// Keeps other runs from making or removing folders while it lives.
fn locked(all: &Path) -> File {
    let lock = File::create(all.join(LOCK)).expect("the build folder can be written");
    lock.lock().expect("other runs hold it for a moment only");
    lock
}

/// Removes every folder that no living process uses.
fn clear(all: &Path) {
    for entry in std::fs::read_dir(all).expect("the folder can be listed") {
        let folder = entry.expect("an entry").path();
        if !folder.is_dir() {
            continue;
        }
        match File::open(&folder).expect("a folder can be opened").try_lock() {
            Ok(()) => {
                unmount_below(&folder);
                std::fs::remove_dir_all(&folder).expect("a leftover can be removed");
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => panic!("{}: {error}", folder.display()),
        }
    }
}

/// Unmounts the disks that a killed test has left mounted below a folder.
fn unmount_below(folder: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("Linux lists what is mounted");
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
    for place in places.filter(|place| place.starts_with(folder)) {
        let status = Command::new("umount").arg(place).status();
        assert!(status.is_ok_and(|status| status.success()), "{} is in use", place.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A test that passes leaves nothing; what a killed one left goes when the next run begins;
    /// what is in use stays, a kept folder too, as long as the process that kept it lives.
    #[test]
    fn leftovers_are_removed() {
        let all = tempfile::tempdir().expect("a folder can be made");
        let leftover = all.path().join("lockstep-test-killed");
        std::fs::create_dir_all(leftover.join("node-1/log")).expect("folders can be made");
        std::fs::write(leftover.join("node-1/log/r-0.wal"), "x").expect("a file can be written");
        let passed = Folder::new_in(all.path());
        let gone = passed.path().to_owned();
        drop(passed);
        assert!(!gone.exists(), "it goes with its test");

        let used = Folder::new_in(all.path());
        let kept = Folder::new_in(all.path()).keep();
        let _making = locked(all.path());
        clear(all.path());
        assert!(!leftover.exists(), "nobody uses it");
        assert!(used.path().exists() && kept.exists(), "they are in use");
    }
}
