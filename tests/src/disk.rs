//! A disk of a node's own, whose power can be cut: an ext4 file system in an image, mounted through
//! a loop device, which needs root. Where that cannot be had, a test says "not run", and
//! fails in CI.
//!
//! What is cut off is the file system: the kernel refuses everything from then on, as it does for a
//! disk that is gone, and what lay in its memory alone is lost. What was synced lies in the image,
//! in the memory of the system below, which is not cut off: for what a node may believe after a
//! sync that is the same, since it cannot tell a disk from an image.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use lockstep_not_run::not_run;

use crate::folder::Folder;

/// `EXT4_IOC_SHUTDOWN` of Linux. Perl is there on every Debian, and calls it without unsafe code.
const SHUTDOWN: &str = r#"
    open(my $folder, "<", $ARGV[0]) or die "cannot open $ARGV[0]: $!\n";
    ioctl($folder, 0x8004587D, pack("L", $ARGV[1])) or die "cannot cut the power: $!\n";
"#;

/// What of the file system's own journal reaches the disk before the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// All, and all data: the disk goes away between two writes.
    Everything = 0,
    /// The journal, but no data beyond what was synced.
    Journal = 1,
    /// Only what was synced: names, lengths and data since the last commit are lost.
    Nothing = 2,
}

/// A mounted image. Dropped, it is unmounted; the image stays.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    folder: PathBuf,
    mounted: bool,
}

impl Disk {
    /// Makes an empty disk of so many bytes, `NAME.img` in `directory`, mounted as `NAME`.
    pub fn create(directory: &Path, name: &str, bytes: u64) -> Result<Self, String> {
        let image = directory.join(format!("{name}.img"));
        let folder = directory.join(name);
        let file = std::fs::File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(bytes).map_err(|error| error.to_string())?;
        std::fs::create_dir(&folder).map_err(|error| error.to_string())?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        let mut disk = Self { image, folder, mounted: false };
        disk.try_mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Mounts it again; what its journal holds is replayed.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn mount(&mut self) {
        self.try_mount().unwrap_or_else(|reason| panic!("{reason}"));
    }

    fn try_mount(&mut self) -> Result<(), String> {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.folder))?;
        self.mounted = true;
        Ok(())
    }

    /// Unmounts it; nobody may use it any more.
    ///
    /// # Panics
    /// When it is in use.
    pub fn unmount(&mut self) {
        run(Command::new("umount").arg(&self.folder)).unwrap_or_else(|reason| panic!("{reason}"));
        self.mounted = false;
    }

    /// Cuts the power: from now on every call fails, until it is mounted again.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn cut_power(&self, cut: Cut) {
        let mut perl = Command::new("perl");
        perl.args(["-e", SHUTDOWN]).arg(&self.folder).arg((cut as u8).to_string());
        run(&mut perl).unwrap_or_else(|reason| panic!("{reason}"));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted
            && let Err(reason) = run(Command::new("umount").arg(&self.folder))
        {
            eprintln!("{reason}");
        }
    }
}

/// True where disks can be made; else says that the test is not run, and why.
///
/// # Panics
/// In CI, where they must be.
pub fn available() -> bool {
    static REASON: OnceLock<Option<String>> = OnceLock::new();
    let trial = || Disk::create(Folder::new().path(), "trial", 16 << 20).err();
    let reason = REASON.get_or_init(trial);
    if let Some(reason) = reason {
        not_run(&format!("no disk of its own: {reason}"));
    }
    reason.is_none()
}

fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("cannot start {name}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{name}: {}", said.trim())) }
}
