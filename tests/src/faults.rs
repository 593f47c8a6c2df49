//! Faults of a disk under a running node: a small library, loaded into the node before its own,
//! fails or delays its writes and syncs by a rule that a test can set at any time (`faults.c`).

use std::path::{Path, PathBuf};

use crate::preload;

/// The rule of one node, and the library that obeys it.
#[derive(Clone, Debug)]
pub struct Faults {
    library: PathBuf,
    rule: PathBuf,
}

impl Faults {
    /// Builds the library into `directory`, unless it is there, for the node `id`.
    ///
    /// # Panics
    /// When the C compiler fails.
    pub fn prepare(directory: &Path, id: u64) -> Self {
        let library = preload::build(directory, "faults", include_str!("faults.c"));
        Self { library, rule: directory.join(format!("node-{id}.fault")) }
    }

    /// The library that its process loads first.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// What the process must find in its environment besides.
    pub fn environment(&self) -> (&'static str, &Path) {
        ("LOCKSTEP_TEST_FAULT", &self.rule)
    }

    /// Sets the rule, in force from the next call on.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn set(&self, rule: &str) {
        let next = self.rule.with_extension("next");
        std::fs::write(&next, rule).expect("a file can be written");
        std::fs::rename(&next, &self.rule).expect("a file can be renamed");
    }

    /// Lets the next such call on a file with `part` in its path fail with EIO, once.
    pub fn fail(&self, call: &str, part: &str) {
        self.set(&format!("{call} {part} fail 0"));
    }

    /// No faults from now on. Tells whether there was a rule: one that has failed a call is gone.
    ///
    /// # Panics
    /// When the rule cannot be removed.
    pub fn clear(&self) -> bool {
        match std::fs::remove_file(&self.rule) {
            Ok(()) => true,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(error) => panic!("the rule cannot be removed: {error}"),
        }
    }
}
