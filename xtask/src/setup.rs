//! Installs what building guests needs and this machine lacks.
//!
//! It prints each command before it runs it, asks on a terminal, and goes ahead with `--yes` or
//! where nobody could answer. What is there already is left alone.

use std::io::{BufRead, IsTerminal, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::guests::{TARGET, Toolchain, root};

/// How long `rustup` may take: a few megabytes, or a network that never answers.
const RUSTUP_SECONDS_MAX: u64 = 120;
/// How long each `apt-get` may take; `rust-web-src` and its compiler are about 200 MB.
const APT_SECONDS_MAX: u64 = 900;

/// Installs what is missing. With `yes` it asks nothing.
///
/// The first that works is enough: the target's standard library from rustup, else Debian's
/// compiler for wasm.
pub(crate) fn run(yes: bool) -> Result<()> {
    if Toolchain::find().is_ok() {
        return Ok(());
    }
    let attempts = [vec![(rustup(), RUSTUP_SECONDS_MAX)], debian()];
    for steps in attempts {
        let mut done = true;
        for (command, seconds_max) in steps {
            done = done && permitted(&command, yes)? && succeeds(command, seconds_max);
        }
        if done && Toolchain::find().is_ok() {
            return Ok(());
        }
    }
    bail!(
        "guests cannot be built: install the wasm target with `rustup target add {TARGET}`, or on \
         Debian `apt-get install rustc-web cargo-web rust-web-src`"
    )
}

fn rustup() -> Command {
    let mut command = Command::new("rustup");
    command.args(["target", "add", TARGET]).current_dir(root());
    command
}

fn debian() -> Vec<(Command, u64)> {
    let apt = |arguments: &[&str]| {
        let mut command = if is_root() {
            Command::new("apt-get")
        } else {
            let mut sudo = Command::new("sudo");
            sudo.arg("apt-get");
            sudo
        };
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        (command, APT_SECONDS_MAX)
    };
    let packages = ["rustc-web", "cargo-web", "rust-web-src"];
    let install = [&["install", "--yes", "--no-install-recommends"], &packages[..]].concat();
    vec![apt(&["update", "--quiet"]), apt(&install)]
}

fn is_root() -> bool {
    let id = Command::new("id").arg("--user").output();
    id.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// Prints the command, and asks where somebody can answer.
fn permitted(command: &Command, yes: bool) -> Result<bool> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    eprintln!("to build guests: {}", words.join(" "));
    if yes || !std::io::stdin().is_terminal() {
        return Ok(true);
    }
    eprint!("run it? [Y/n] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "" | "y" | "yes"))
}

/// Runs a command to its end, at most for the time given. Its own output says why it fails.
fn succeeds(mut command: Command, seconds_max: u64) -> bool {
    match command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn() {
        Ok(child) => finishes(child, Duration::from_secs(seconds_max)),
        Err(error) => {
            eprintln!("cannot start it: {error}");
            false
        }
    }
}

/// Waits for the end of a child's output, which comes with its own end, and kills it when that
/// takes too long.
fn finishes(mut child: Child, time_max: Duration) -> bool {
    let mut output = child.stdout.take().expect("its output was piped");
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || {
        let copied = std::io::copy(&mut output, &mut std::io::stderr());
        // Nobody listens after the time is up, and then the end is of no interest.
        let _ = ended.send(copied.is_ok());
    });
    if end.recv_timeout(time_max).is_err() {
        eprintln!("no end after {} s: given up", time_max.as_secs());
        let _ = child.kill();
    }
    child.wait().is_ok_and(|status| status.success())
}
