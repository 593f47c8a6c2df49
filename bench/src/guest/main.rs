//! `lockstep-bench-guest`: what the sandbox costs, in one process and without a log.
//!
//! It runs the reference guest beside the same code compiled natively, and times images, forks,
//! rollbacks and snapshots of states of several sizes. It asserts nothing about speed: figures are
//! for people, and only ratios within one run mean anything (docs/performance.md).

mod apply;
mod kv;
mod snapshot;
mod state;
mod timing;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use lockstep_host::wasm::{Engine, THREAD_STACK_BYTES};

/// Measures the sandbox: apply against native code, images, rollbacks, queries, snapshots.
#[derive(Debug, Parser)]
#[command(name = "lockstep-bench-guest", version)]
struct Args {
    /// The reference guest.
    #[arg(long, default_value = "target/guests/guest-kv.wasm")]
    guest: PathBuf,
    /// Sizes of the state to measure, in MiB of values.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 56, 900])]
    state_mib: Vec<usize>,
    /// Repetitions of what is timed; the table shows medians.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Where snapshots are written; must be on a real disk.
    #[arg(long, default_value = "target/bench")]
    dir: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // Guests need a large stack.
    let thread = std::thread::Builder::new().stack_size(THREAD_STACK_BYTES);
    let measured = match thread.spawn(move || run(&args)).map(std::thread::JoinHandle::join) {
        Ok(Ok(measured)) => measured,
        Ok(Err(_)) => Err(anyhow!("the measuring thread panicked")),
        Err(error) => Err(error.into()),
    };
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let path = args.guest.display();
    let bytes = std::fs::read(&args.guest).with_context(|| format!("reading {path}"))?;
    let engine = Engine::new()?;
    let module = engine.compile(&bytes, u64::MAX)?;
    let guests = kv::Guests { engine, module };
    apply::run(&guests, args.rounds)?;
    for mib in &args.state_mib {
        state::run(&guests, *mib, args.rounds)?;
        snapshot::run(&guests, *mib, &args.dir)?;
    }
    Ok(())
}
