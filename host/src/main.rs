//! `lockstep`: parses the command line and runs one subcommand.
//!
//! Exit codes: 0 done, 1 failed (one message on standard error), 2 wrong usage.

use std::process::ExitCode;

use clap::Parser as _;
use lockstep_host::cli::Cli;

/// Agreement is a chain of short steps, and handing them from thread to thread costs more than they
/// do (docs/performance.md). Guests and the disk have threads of their own.
const CORES_PER_WORKER: usize = 2;

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    lockstep_host::telemetry::init(cli.log_level(), cli.log_format)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.div_ceil(CORES_PER_WORKER))
        .enable_all()
        .build()?;
    // As a task, so that nothing wakes the main thread while a node runs.
    runtime.block_on(async { tokio::spawn(cli.run()).await? })
}
