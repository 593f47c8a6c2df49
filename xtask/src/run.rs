//! The tasks that run Lockstep: the main job, the benchmark, and the guests both need.
//!
//! The last step of `dev`, `bench` and `soak` replaces this process by the program: signals and
//! exit status are then the program's own, with nothing in between to lose them.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::step::{self, say};
use crate::{guests, setup};

const COMPILER: &str = "the compiler's message is above; a missing linker is installed by \
    `apt-get install gcc libc6-dev`";

/// Runs the main job: a node, or a cluster, with the reference guest in it.
pub(crate) fn dev(arguments: &[String]) -> Result<()> {
    guests(&[])?;
    build_release(&["lockstep-host"])?;
    let guest = step::target().join("guests/guest-kv.wasm");
    let mut lockstep = Command::new(step::target().join("release/lockstep"));
    lockstep.arg("dev").arg("--guest").arg(guest).args(arguments);
    become_program("starting lockstep dev", lockstep)
}

/// Measures whole clusters of release builds, or the sandbox by itself: `bench guest`.
pub(crate) fn bench(arguments: &[String]) -> Result<()> {
    guests(&[])?;
    build_release(&["lockstep-host", "lockstep-bench"])?;
    let (program, arguments) = match arguments {
        [first, rest @ ..] if first == "guest" => ("lockstep-bench-guest", rest),
        all => ("lockstep-bench", all),
    };
    let mut bench = Command::new(step::target().join("release").join(program));
    bench.args(arguments).current_dir(step::workspace());
    become_program(&format!("starting {program}"), bench)
}

/// Tries clusters for long, of the very builds that the tests run.
pub(crate) fn soak(arguments: &[String]) -> Result<()> {
    guests(&[])?;
    // As `test` does, so that nothing is compiled for two sets of features.
    let programs = ["build", "--workspace", "--all-targets"];
    let what = "building the daemon and the soak (some minutes the first time)";
    step::run(what, step::cargo(&programs), COMPILER)?;
    let mut soak = Command::new(step::target().join("debug/lockstep-soak"));
    soak.args(arguments).current_dir(step::workspace());
    become_program("starting lockstep-soak", soak)
}

/// Builds the guests of the repository, or those in `folders`, after installing what is missing to
/// build them.
pub(crate) fn guests(folders: &[PathBuf]) -> Result<()> {
    say("looking for a WebAssembly toolchain");
    setup::run(false)?;
    say("building the guests");
    if folders.is_empty() {
        return guests::build();
    }
    folders.iter().try_for_each(|folder| guests::build_folder(folder).map(drop))
}

fn build_release(packages: &[&str]) -> Result<()> {
    let mut build = step::cargo(&["build", "--release"]);
    for package in packages {
        build.args(["--package", package]);
    }
    let what = format!("building {} (some minutes the first time)", packages.join(" and "));
    step::run(&what, build, COMPILER)
}

/// Ends as `program`; returns only when it cannot be started.
fn become_program(what: &str, mut program: Command) -> Result<()> {
    say(what);
    let path = program.get_program().to_owned();
    Err(program.exec()).with_context(|| format!("cannot start {}", path.display()))
}
