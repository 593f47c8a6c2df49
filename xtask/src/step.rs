//! One step of a task: says what it does, runs a program that shows its own progress, and turns
//! its failure into a sentence. Nothing here is captured or hidden.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// The folder of the workspace.
pub(crate) fn workspace() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().expect("xtask is a folder of the workspace")
}

/// The folder that cargo builds into.
pub(crate) fn target() -> PathBuf {
    let set = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    workspace().join(set.unwrap_or_else(|| "target".into()))
}

/// Announces a step. Goes to standard error, so that what a task prints can be piped.
pub(crate) fn say(what: &str) {
    eprintln!("==> {what}");
}

/// The cargo that runs this task.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or(OsString::from("cargo")));
    command.args(arguments).current_dir(workspace());
    command
}

/// Runs a command to its end, with its output shown as it comes. `what` says what is done, and
/// `repair` what to do when it fails.
pub(crate) fn run(what: &str, mut command: Command, repair: &str) -> Result<()> {
    say(what);
    let started = Instant::now();
    let program = command.get_program().to_owned();
    let status = command
        .status()
        .with_context(|| format!("{what}: cannot start {}: {repair}", program.display()))?;
    if !status.success() {
        bail!("{what} failed ({status}): {repair}");
    }
    eprintln!("    done in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A step that fails, and a program that is not there, each say what to do about it.
    #[test]
    fn a_failure_names_the_repair() {
        let failed = run("it", cargo(&["no-such-subcommand"]), "do that").expect_err("it fails");
        assert!(format!("{failed:#}").starts_with("it failed"), "{failed:#}");
        assert!(format!("{failed:#}").ends_with("do that"), "{failed:#}");
        let absent = run("it", Command::new("no-such-program"), "install it");
        let absent = format!("{:#}", absent.expect_err("there is none"));
        assert!(absent.contains("cannot start no-such-program: install it"), "{absent}");
    }
}
