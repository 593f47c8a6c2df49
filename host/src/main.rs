//! `lockstep`: parses the command line and runs one subcommand.
//!
//! Exit codes: 0 done, 1 failed (one message on standard error), 2 wrong usage.

use std::process::ExitCode;

use clap::Parser as _;
use lockstep_host::cli::Cli;

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
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(cli.run())
}
