//! The command line of `lockstep`: one file per subcommand. A subcommand reads its arguments, calls
//! the client library or the node, and prints; it holds no logic of its own about the cluster.
//!
//! What succeeded goes to standard output, everything else to standard error.

mod check;
mod cluster;
mod dev;
mod dev_nodes;
mod endpoint;
mod exec;
mod kv;
mod limits;
mod machine;
mod output;
mod repair;
mod restore;
mod seal;
mod serve;
mod snapshot;
mod status;
mod version;
mod view;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::telemetry::{self, Format};

/// What everything else logs unless told otherwise.
const QUIET_LEVEL: &str = "warn,openraft=error";
/// What a node logs unless told otherwise: its own events, of its libraries only what is wrong.
const SERVE_LEVEL: &str = "info,openraft=error";

/// Agreement is a chain of short steps, and handing them from thread to thread costs more than they
/// do (docs/performance.md). Guests and the disk have threads of their own.
const CORES_PER_WORKER: usize = 2;

/// Runs a durable, replicated WebAssembly state machine.
#[derive(Debug, Parser)]
#[command(name = "lockstep", version, propagate_version = true)]
pub struct Cli {
    /// What to log: error, warn, info, debug or trace [default: info for serve, else warn]
    #[arg(long, global = true, env = "LOCKSTEP_LOG", value_name = "LEVEL")]
    log_level: Option<String>,
    /// How to log
    #[arg(long, global = true, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub log_format: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a node, or three, on this machine, ready to use
    Dev(dev::Arguments),
    /// Run one node
    Serve(serve::Arguments),
    /// Form, change and look at a cluster
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Send a command to a key-value machine and print the reply as redis-cli does
    Kv(kv::Arguments),
    /// Send a command to a machine
    Exec(exec::ExecArguments),
    /// Ask a machine without changing it
    Query(exec::QueryArguments),
    /// Create, list, describe, limit and remove machines
    #[command(subcommand)]
    Machine(machine::Command),
    /// Say of a module what a node would: whether it is a guest, and what it is made of
    Check(check::Arguments),
    /// Take a checkpoint now
    Snapshot(snapshot::Arguments),
    /// Give a stopped node that cannot go on from its own state the cluster's
    Repair(repair::Arguments),
    /// Rebuild machines from the exports in a snapshot file, in this or another cluster
    Restore(restore::Arguments),
    /// Show what a node knows of itself and its cluster
    Status(status::Arguments),
    /// Print version and engine profile of this build
    Version,
}

/// Parses the command line of the process and runs its subcommand; the exit code of the process.
pub fn main() -> ExitCode {
    let cli = Cli::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    match run(cli) {
        Ok(_) if output::failed() => ExitCode::FAILURE,
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    telemetry::init(cli.log_level(), cli.log_format)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.div_ceil(CORES_PER_WORKER))
        .enable_all()
        .build()?;
    // As a task, so that nothing wakes the main thread while a node runs.
    let done = runtime.block_on(async { tokio::spawn(cli.run()).await? });
    // A compilation, or a disk that hangs, is not waited for: what must be on disk is.
    runtime.shutdown_background();
    done
}

impl Cli {
    /// Reads a command line.
    ///
    /// # Errors
    /// Wrong usage, and what stands for a request for help.
    pub fn read(line: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let line: Vec<OsString> = line.into_iter().collect();
        let cli = Self::try_parse_from(&line)?;
        if let Command::Kv(arguments) = &cli.command {
            let wrong = |text| Self::command().error(ErrorKind::UnknownArgument, text);
            arguments.check(&line).map_err(wrong)?;
        }
        Ok(cli)
    }

    /// From which level on to log.
    pub fn log_level(&self) -> &str {
        match (&self.log_level, &self.command) {
            (Some(level), _) => level,
            (None, Command::Serve(_)) => SERVE_LEVEL,
            (None, _) => QUIET_LEVEL,
        }
    }

    /// Runs the subcommand. The code is the process's: a subcommand may have printed an answer
    /// that stands for a failure.
    ///
    /// # Errors
    /// What is to be printed on standard error; the exit code is 1 then.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let log = dev::Logging { level: self.log_level().to_owned(), format: self.log_format };
        match self.command {
            Command::Dev(arguments) => dev::run(arguments, log).await.map(done),
            Command::Serve(arguments) => serve::run(arguments).await.map(done),
            Command::Cluster(command) => cluster::run(command).await.map(done),
            Command::Kv(arguments) => kv::run(arguments).await,
            Command::Exec(arguments) => exec::run_exec(arguments).await,
            Command::Query(arguments) => exec::run_query(arguments).await,
            Command::Machine(command) => machine::run(command).await.map(done),
            Command::Check(arguments) => check::run(arguments).await.map(done),
            Command::Snapshot(arguments) => snapshot::run(arguments).await.map(done),
            Command::Repair(arguments) => repair::run(arguments).await.map(done),
            Command::Restore(arguments) => restore::run(arguments).await.map(done),
            Command::Status(arguments) => status::run(arguments).await.map(done),
            Command::Version => version::run().await.map(done),
        }
    }
}

fn done((): ()) -> ExitCode {
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::read(line.split_whitespace().map(OsString::from))
    }

    /// The definition is sound (clap's own check).
    #[test]
    fn definition_is_sound() {
        Cli::command().debug_assert();
    }

    /// The forms that scripts rely on are accepted.
    #[test]
    fn forms_are_accepted() {
        let rows = [
            "lockstep dev",
            "lockstep dev --nodes 3 --port 7600 --data-dir d --guest kv.wasm --forward false",
            "lockstep serve --node-id 1 --data-dir d1 --client-addr 127.0.0.1:7411 \
             --peer-addr 127.0.0.1:7511",
            "lockstep serve --node-id 1 --data-dir d1 --client-addr 127.0.0.1:7411 \
             --peer-addr 127.0.0.1:7511 --config c.toml --forward --insecure --log-format json",
            "lockstep cluster init --endpoint 127.0.0.1:7411",
            "lockstep cluster add 127.0.0.1:7412 --endpoint 127.0.0.1:7411",
            "lockstep cluster add 127.0.0.1:7412 --learner",
            "lockstep cluster promote 2",
            "lockstep cluster remove 2",
            "lockstep cluster transfer",
            "lockstep cluster transfer 2",
            "lockstep cluster set-time",
            "lockstep cluster status --json",
            "lockstep cluster seal",
            "lockstep cluster seal --to 0af9 --without-absent --no-wait",
            "lockstep cluster seal --cancel",
            "lockstep version",
            "lockstep kv --endpoint 127.0.0.1:7411,127.0.0.1:7412 SET k v",
            "lockstep kv --machine other GET k",
            "lockstep kv SET k -1 --ex",
            "lockstep kv --machine other -- SET k --endpoint",
            "lockstep exec --machine m text",
            "lockstep exec --machine m --hex 00ff",
            "lockstep exec --machine m --file f --raw",
            "lockstep query --machine m --stale text",
            "lockstep query --machine m",
            "lockstep machine create kv guest.wasm",
            "lockstep machine create kv guest.wasm --memory-bytes 64MiB --fuel-per-query 5000000",
            "lockstep machine list",
            "lockstep machine describe kv --json",
            "lockstep machine limits kv",
            "lockstep machine limits kv --fuel-per-command 5000000 --fuel-per-export-step 1 \
             --table-elements 7 --reply-bytes 1KiB --export-bytes 1GiB --json",
            "lockstep machine remove kv",
            "lockstep snapshot",
            "lockstep repair --data-dir d3 --endpoint 127.0.0.1:7411,127.0.0.1:7412",
            "lockstep restore 1.snapshot",
            "lockstep restore 1.snapshot --list",
            "lockstep restore 1.snapshot --machine kv --as other --module kv.wasm \
             --memory-bytes 64MiB --endpoint 127.0.0.1:7411",
            "lockstep status --json --endpoint 127.0.0.1:7411 --log-level debug",
        ];
        for row in rows {
            assert!(parse(row).is_ok(), "{row}: {}", parse(row).unwrap_err());
        }
    }

    /// Anything else is wrong usage, which exits with 2.
    #[test]
    fn wrong_usage_is_refused() {
        let rows = [
            "lockstep",
            "lockstep unknown",
            "lockstep dev --nodes 2",
            "lockstep dev --port 70000",
            "lockstep serve --node-id 1",
            "lockstep serve --node-id 0 --data-dir d --client-addr 127.0.0.1:1 \
             --peer-addr 127.0.0.1:2",
            "lockstep serve --node-id 1 --data-dir d --client-addr nowhere --peer-addr 127.0.0.1:2",
            "lockstep cluster add",
            "lockstep cluster promote x",
            "lockstep cluster seal --cancel --to 0af9",
            "lockstep cluster seal --cancel --no-wait",
            "lockstep repair",
            "lockstep restore",
            "lockstep kv",
            "lockstep kv --unknown-flag GET k",
            "lockstep kv DEL k --endpoint 127.0.0.1:1",
            "lockstep kv DEL k --endpoint=127.0.0.1:1",
            "lockstep kv GET k --timeout 1",
            "lockstep kv GET k --machine other",
            "lockstep kv GET k --log-level debug",
            "lockstep kv GET k --help",
            "lockstep kv GET k -h",
            "lockstep kv GET k -- --endpoint",
            "lockstep exec text",
            "lockstep exec --machine m text --file f",
            "lockstep exec --machine m --stale text",
            "lockstep machine create kv",
            "lockstep machine limits kv --memory-bytes lots",
            "lockstep machine limits kv --fuel-per-command -1",
            "lockstep status --log-format xml",
        ];
        for row in rows {
            let error = parse(row).expect_err(row);
            assert!(error.use_stderr(), "{row}");
            assert_eq!(error.exit_code(), 2, "{row}");
        }
    }

    /// After the first word of a kv command everything belongs to the command, but for flags of
    /// lockstep itself, which are refused there; after `--`, those too.
    #[test]
    fn kv_takes_all_that_follows() {
        let rows = [
            (
                "lockstep kv --endpoint 127.0.0.1:1 SET k -1 --ex -",
                &["SET", "k", "-1", "--ex", "-"],
            ),
            (
                "lockstep kv -- SET k --endpoint --help -h",
                &["SET", "k", "--endpoint", "--help", "-h"],
            ),
        ];
        for (line, words) in rows {
            let Command::Kv(arguments) = parse(line).unwrap().command else { panic!("not kv") };
            assert_eq!(arguments.words(), words, "{line}");
        }
        let error = parse("lockstep kv DEL k --endpoint=127.0.0.1:1").unwrap_err().to_string();
        assert!(error.contains("lockstep kv -- SET key --endpoint"), "{error}");
    }

    /// Flags may come after what `exec` and `query` send: nothing there takes them for input.
    #[test]
    fn flags_come_anywhere_else() {
        for command in ["exec", "query"] {
            let before = format!("lockstep {command} --machine m --endpoint 127.0.0.1:1 text");
            let after = format!("lockstep {command} text --endpoint 127.0.0.1:1 --machine m");
            let [before, after] = [before, after].map(|line| parse(&line).unwrap().command);
            assert_eq!(format!("{before:?}"), format!("{after:?}"));
        }
    }

    /// No other command swallows what follows, as `kv` does.
    #[test]
    fn only_kv_takes_trailing_words() {
        fn check(command: &clap::Command) {
            let takes = command.get_arguments().any(clap::Arg::is_trailing_var_arg_set);
            assert!(!takes || command.get_name() == "kv", "{}", command.get_name());
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}
