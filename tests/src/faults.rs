//! Faults of a disk under a running node: a small library, loaded into the node before its own,
//! fails or delays its writes and syncs by a rule that a test can set at any time (`faults.c`).

use std::path::{Path, PathBuf};
use std::process::Command;

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
    /// When the C compiler fails, which links everything else here, too.
    pub fn prepare(directory: &Path, id: u64) -> Self {
        let library = directory.join("libfaults.so");
        if !library.exists() {
            let source = directory.join("faults.c");
            std::fs::write(&source, include_str!("faults.c")).expect("a file can be written");
            let mut compiler = Command::new("cc");
            compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source);
            let output = compiler.output().expect("there is a C compiler");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "the C compiler failed: {said}");
        }
        Self { library, rule: directory.join(format!("node-{id}.fault")) }
    }

    /// What the process of the node must find in its environment.
    pub fn environment(&self) -> [(&'static str, &Path); 2] {
        [("LD_PRELOAD", &self.library), ("LOCKSTEP_TEST_FAULT", &self.rule)]
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
