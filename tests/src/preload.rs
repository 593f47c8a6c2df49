//! Small pieces of C: libraries that are loaded into a node before its own, and a program. Each is
//! built once for each test.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds `source` as `libNAME.so` in `directory`, unless it is there.
///
/// # Panics
/// When the C compiler fails, which links everything else here, too.
pub(crate) fn build(directory: &Path, name: &str, source: &str) -> PathBuf {
    compile(directory.join(format!("lib{name}.so")), &["-shared", "-fPIC"], source)
}

/// Builds `source` as the program `NAME` in `directory`, unless it is there.
///
/// # Panics
/// As [`build`] does.
pub(crate) fn build_program(directory: &Path, name: &str, source: &str) -> PathBuf {
    compile(directory.join(name), &[], source)
}

fn compile(result: PathBuf, flags: &[&str], source: &str) -> PathBuf {
    if result.exists() {
        return result;
    }
    let file = result.with_extension("c");
    std::fs::write(&file, source).expect("a file can be written");
    let mut compiler = Command::new("cc");
    compiler.args(flags).args(["-O1", "-o"]).arg(&result).arg(&file);
    let output = compiler.output().expect("there is a C compiler");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the C compiler failed: {said}");
    result
}
