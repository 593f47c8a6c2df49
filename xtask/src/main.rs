//! Everything a developer of Lockstep runs: `cargo xtask help` lists it.
//!
//! It knows how to build and start things, and no crate of the project: it must compile in
//! seconds on a fresh machine, before anything else exists. Each task says what it does while it
//! does it, and stops at the first failure with one sentence about what to do.

mod check;
mod guests;
mod run;
mod setup;
mod step;
mod text_guests;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, runs and checks Lockstep.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Runs Lockstep on this machine: sets up what is missing, builds guests and daemon, then
    /// starts `lockstep dev` with the arguments (`--nodes 3` for a cluster, `--help` for all).
    #[command(disable_help_flag = true)]
    Dev {
        /// For `lockstep dev`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Passes all tests: sets up what is missing, builds everything, runs `cargo test` with the
    /// arguments (a part of a test's name runs those that match).
    Test {
        /// For `cargo test --workspace`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Checks everything that must hold before a change lands: formatting, house rules, clippy
    /// with warnings denied, all tests.
    Ci,
    /// Measures whole clusters; the arguments go to `lockstep-bench` (`--help` for all). With
    /// `guest` as the first, the sandbox by itself (`lockstep-bench-guest`).
    #[command(disable_help_flag = true)]
    Bench {
        /// For `lockstep-bench`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Looks for faults for as long as one likes; the arguments go to `lockstep-soak` (`--help` for
    /// all): `history --seed N --minutes M`.
    #[command(disable_help_flag = true)]
    Soak {
        /// For `lockstep-soak`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Builds the guests of this repository, or those in the folders given, into `target/guests`.
    Guests {
        /// Folders of guest crates of your own.
        folders: Vec<PathBuf>,
    },
    /// Makes components of core modules that another toolchain built, into `target/guests`.
    Component {
        /// Core modules for wasm32, with the functions of `wit/guest.wit`.
        #[arg(required = true)]
        modules: Vec<PathBuf>,
    },
    /// Installs what is missing to build guests, after asking.
    Setup {
        /// Goes ahead without asking.
        #[arg(long)]
        yes: bool,
    },
    /// Checks the house rules alone.
    Tidy,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Dev { arguments } => run::dev(&arguments),
        Task::Test { arguments } => check::test(&arguments),
        Task::Ci => check::ci(),
        Task::Bench { arguments } => run::bench(&arguments),
        Task::Soak { arguments } => run::soak(&arguments),
        Task::Guests { folders } => run::guests(&folders),
        Task::Component { modules } => text_guests::wrap(&modules),
        Task::Setup { yes } => setup::run(yes),
        Task::Tidy => tidy::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    /// The command line is well formed, and what follows `dev` and `test` is passed on whole.
    #[test]
    fn the_command_line_parses() {
        super::Arguments::command().debug_assert();
        let parse = |line: &[&str]| super::Arguments::try_parse_from(line).expect("it parses").task;
        let super::Task::Dev { arguments } = parse(&["x", "dev", "--nodes", "3", "--help"]) else {
            panic!("dev is dev");
        };
        assert_eq!(arguments, ["--nodes", "3", "--help"]);
        let super::Task::Test { arguments } = parse(&["x", "test", "torn", "--", "--nocapture"])
        else {
            panic!("test is test");
        };
        assert_eq!(arguments, ["torn", "--", "--nocapture"]);
    }

    use clap::Parser;
}
