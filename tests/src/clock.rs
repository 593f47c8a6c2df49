//! The wall clock of a running node, which can be set wrong: a small library, loaded into the node
//! before its own, adds to it what a file says (`clock.c`).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::preload;

/// The wall clock of one node.
#[derive(Debug)]
pub struct Clock {
    library: PathBuf,
    path: PathBuf,
    file: File,
}

impl Clock {
    /// Builds the library into `directory`, unless it is there, for the node `id`. Its clock is
    /// right at first.
    ///
    /// # Panics
    /// When the C compiler fails, or the disk.
    pub fn prepare(directory: &Path, id: u64) -> Self {
        let library = preload::build(directory, "clock", include_str!("clock.c"));
        let path = directory.join(format!("node-{id}.clock"));
        let file = File::create(&path).expect("a file can be made");
        let clock = Self { library, path, file };
        clock.set_ahead_ms(0);
        clock
    }

    /// The library that its process loads first.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// What the process must find in its environment besides.
    pub fn environment(&self) -> (&'static str, &Path) {
        ("LOCKSTEP_TEST_CLOCK", &self.path)
    }

    /// Sets it ahead of the right time, or behind, from now on and over restarts.
    ///
    /// # Panics
    /// When the file can't be written, or the offset is longer than 292 years.
    pub fn set_ahead_ms(&self, offset_ms: i64) {
        let nanoseconds = offset_ms.checked_mul(1_000_000).expect("no more than 292 years");
        // The process has the file mapped: it changes in place, and eight bytes at once.
        self.file.write_all_at(&nanoseconds.to_ne_bytes(), 0).expect("a file can be written");
    }
}
