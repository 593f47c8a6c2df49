//! `lockstep-bench`: whole clusters as real processes under closed-loop load, as a table.
//!
//! It starts every cluster that it measures, on loopback and with data on the real disk, and stops
//! them all when it ends. It asserts nothing about speed: figures are for people, and only ratios
//! within one run mean anything (docs/performance.md says how it measures and why so).

mod args;
mod bulk;
mod caller;
mod cell;
mod cluster;
mod etcd;
mod failover;
mod load;
mod lockstep;
mod machine;
mod node;
mod report;
mod stream;

use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{Args, Task};

#[tokio::main]
async fn main() -> ExitCode {
    match run_until_stopped(&Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs until done or signalled. Whichever comes first drops the other, and a dropped cluster
/// takes its processes with it.
async fn run_until_stopped(args: &Args) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    tokio::select! {
        outcome = run(args) => outcome,
        _ = terminate.recv() => Err(anyhow!("stopped by SIGTERM")),
        _ = tokio::signal::ctrl_c() => Err(anyhow!("stopped by SIGINT")),
    }
}

async fn run(args: &Args) -> Result<()> {
    args.check()?;
    println!("{}", machine::describe(&args.dir)?);
    let results = match (&args.task, args.keys) {
        (Some(Task::Failover(failover)), _) => failover::run(args, failover).await?,
        (None, Some(keys)) => bulk::run(args, keys).await?,
        (None, None) => cell::run(args).await?,
    };
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&results)?;
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
