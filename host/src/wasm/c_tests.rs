//! The sandbox on a guest in C (`tests/guests/c/tally.c`), built by the `clang` of this machine.

use std::path::Path;
use std::process::Command;

use super::tests::{ENGINE, WORK_MAX, apply, exported, imported, on_guest_thread, query};
use super::text_tests::embedded;
use super::*;

/// What `docs/guests.md` gives to `clang`.
const FLAGS: [&str; 7] = [
    "--target=wasm32-wasi",
    "-mexec-model=reactor",
    "-nostartfiles",
    "-Wl,--no-entry",
    "-Wl,--strip-debug",
    "-Wall",
    "-Werror",
];

/// The core module of the guest; why not, where this machine has no compiler for it.
fn built(level: &str) -> Result<Vec<u8>, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/guests/c/tally.c");
    let folder = tempfile::tempdir().unwrap();
    let module = folder.path().join("tally.wasm");
    let mut clang = Command::new("clang");
    clang.args(FLAGS).arg(level).arg("-o").arg(&module).arg(source);
    let output = clang.output().map_err(|error| format!("no clang: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(format!(
            "clang cannot build it, which takes lld, wasi-libc and builtins: {said}"
        ));
    }
    Ok(std::fs::read(module).unwrap())
}

/// What `clang` makes of C is admitted at each level of optimization, does what it should, and its
/// state leaves and enters.
#[test]
fn guests_in_c_run_at_each_level() {
    for level in ["-O0", "-O1", "-O2", "-O3", "-Os", "-Oz"] {
        let module = match built(level) {
            Ok(module) => module,
            Err(reason) => return lockstep_not_run::not_run(&reason),
        };
        let module =
            ENGINE.compile(&embedded(module), WORK_MAX).unwrap_or_else(|e| panic!("{level}: {e}"));
        on_guest_thread(move || {
            let mut guest = Guest::instantiate(&ENGINE, &module).unwrap();
            let long = "x".repeat(32);
            let replies = apply(&mut guest, &["a", "word", "a", "", &long]).unwrap();
            let refused = "!a word has 1 to 31 bytes";
            assert_eq!(replies, ["a=1", "word=1", "a=2", refused, refused], "{level}");
            let (schema, chunks) = exported(&guest, &module);
            let copy = imported(&module, schema, &chunks);
            assert_eq!(query(&copy, &module, &["a", "word", "b"]), ["a=2", "word=1", "b=0"]);
            assert_eq!(exported(&copy, &module).1, chunks, "{level}");
        });
    }
}
