//! Small libraries of C that are loaded into a node before its own: built once for each test.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds `source` as `libNAME.so` in `directory`, unless it is there.
///
/// # Panics
/// When the C compiler fails, which links everything else here, too.
pub(crate) fn build(directory: &Path, name: &str, source: &str) -> PathBuf {
    let library = directory.join(format!("lib{name}.so"));
    if library.exists() {
        return library;
    }
    let file = directory.join(format!("{name}.c"));
    std::fs::write(&file, source).expect("a file can be written");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&file);
    let output = compiler.output().expect("there is a C compiler");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the C compiler failed: {said}");
    library
}
