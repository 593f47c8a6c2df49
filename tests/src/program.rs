//! The programs under test: where they are, and calls of the command line.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// How long one call of the command line may take.
const CALL_LIMIT: Duration = Duration::from_secs(90);

/// The folder that cargo built this test, or this program, into: `target/debug`.
///
/// # Panics
/// When it was not built by cargo.
pub fn built() -> PathBuf {
    let own = std::env::current_exe().expect("a program knows its own file");
    let folder = own.parent().expect("a file lies in a folder");
    let is_test = folder.file_name().is_some_and(|name| name == "deps");
    let built = if is_test { folder.parent() } else { Some(folder) };
    built.expect("a test lies in target/debug/deps").to_owned()
}

/// The `lockstep` under test: `LOCKSTEP_BIN`, else the one built beside the tests.
///
/// # Panics
/// When it is not there, saying how to build it.
pub fn lockstep() -> PathBuf {
    let beside = || built().join("lockstep");
    let binary = std::env::var_os("LOCKSTEP_BIN").map_or_else(beside, PathBuf::from);
    let here = std::path::absolute(&binary).expect("the path is not empty");
    assert!(here.is_file(), "{} is missing: run `cargo xtask test`", binary.display());
    here
}

/// The same program with an engine of another profile.
///
/// # Panics
/// As [`lockstep`] does.
pub fn lockstep_next() -> PathBuf {
    let binary = built().join("lockstep-next");
    assert!(binary.is_file(), "{} is missing: run `cargo xtask test`", binary.display());
    binary
}

/// The component of a guest: in `LOCKSTEP_GUESTS_DIR`, else where `cargo xtask guests` puts it.
///
/// # Panics
/// When it is not there, saying how to build it.
pub fn guest(name: &str) -> PathBuf {
    let guests = || built().parent().expect("it lies in target").join("guests");
    let folder = std::env::var_os("LOCKSTEP_GUESTS_DIR").map_or_else(guests, PathBuf::from);
    let file = folder.join(format!("{name}.wasm"));
    assert!(file.is_file(), "{} is missing: run `cargo xtask guests`", file.display());
    file
}

/// What a call of the command line came to.
#[derive(Debug)]
pub struct Ran {
    /// The call, for messages.
    pub call: String,
    /// Exit code; `None` after a signal.
    pub code: Option<i32>,
    /// What it printed.
    pub out: String,
    /// What it complained about.
    pub err: String,
}

impl Ran {
    /// What it printed, without the last line break.
    ///
    /// # Panics
    /// When it failed.
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{} failed: {}{}", self.call, self.out, self.err);
        self.out.trim_end_matches('\n').to_owned()
    }

    /// Expects exit code 1 and one short complaint that holds every one of `parts`, in any case
    /// of letters. Returns the complaint.
    ///
    /// # Panics
    /// When it went well, failed otherwise, or complained about something else.
    pub fn refused(self, parts: &[&str]) -> String {
        self.failed(1, parts)
    }

    /// Expects this exit code and a complaint that holds every one of `parts`.
    ///
    /// # Panics
    /// As [`Ran::refused`] does.
    pub fn failed(self, code: i32, parts: &[&str]) -> String {
        let Self { call, out, err, .. } = &self;
        assert_eq!(self.code, Some(code), "{call}: printed {out}; complained {err}");
        assert_holds(call, err, parts);
        assert!(!err.contains("panicked"), "{call} panicked: {err}");
        self.err
    }
}

/// Expects every one of `parts` in `text`, in any case of letters.
///
/// # Panics
/// With the text, when one is missing.
pub fn assert_holds(what: &str, text: &str, parts: &[&str]) {
    let lower = text.to_lowercase();
    for part in parts {
        assert!(lower.contains(&part.to_lowercase()), "{what}: no {part:?} in: {text}");
    }
}

/// Calls the command line and waits for its end.
///
/// # Panics
/// When it cannot be started or takes longer than a minute and a half.
pub async fn run<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Ran {
    run_with_input(arguments, b"").await
}

/// Calls the command line with something on its standard input.
///
/// # Panics
/// As [`run`] does.
pub async fn run_with_input<A: AsRef<OsStr>>(
    arguments: impl IntoIterator<Item = A>,
    input: &[u8],
) -> Ran {
    run_program(&lockstep(), arguments, input).await
}

/// Calls the command line of one of the programs.
///
/// # Panics
/// As [`run`] does.
pub async fn run_program<A: AsRef<OsStr>>(
    program: &Path,
    arguments: impl IntoIterator<Item = A>,
    input: &[u8],
) -> Ran {
    use tokio::io::AsyncWriteExt;

    let mut command = Command::new(program);
    command.args(arguments).env_remove("LOCKSTEP_ENDPOINT").env_remove("LOCKSTEP_LOG");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let call = format!("{:?}", command.as_std());
    let mut child = command.kill_on_drop(true).spawn().expect("lockstep can be started");
    let mut stdin = child.stdin.take().expect("it is piped");
    let work = async {
        // A program that reads no input closes it: its own answer says why.
        let _ = stdin.write_all(input).await;
        drop(stdin);
        child.wait_with_output().await.expect("its output can be read")
    };
    let Ok(output) = tokio::time::timeout(CALL_LIMIT, work).await else {
        panic!("{call} did not end within {} s", CALL_LIMIT.as_secs());
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    Ran { call, code: output.status.code(), out, err }
}
