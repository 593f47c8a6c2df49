//! Many keys: what they cost in memory and on disk, and how long a restart takes with them.
//!
//! Systems run one after the other here, since memory and the page cache are what is measured.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::FutureExt;
use futures::future::select_all;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::args::{Args, Contender, Mode, System};
use crate::caller;
use crate::cluster::{Cluster, READY_WAIT};
use crate::load;
use crate::report::mebibytes;

/// Requests in flight while keys are loaded.
const LOAD_IN_FLIGHT: usize = 1024;
/// How long one read may take before it is tried again on a restarting cluster.
const READ_WAIT: Duration = Duration::from_millis(300);
/// Pause between two attempts to read.
const READ_PAUSE: Duration = Duration::from_millis(2);

/// Measures every system and size that `args` ask for, with `keys` keys.
pub(crate) async fn run(args: &Args, keys: u64) -> Result<Value> {
    let mut results = Vec::new();
    for &size in &args.nodes {
        for system in args.systems() {
            results.push(measure(args, keys, system, size).await?);
        }
    }
    Ok(Value::Array(results))
}

async fn measure(args: &Args, keys: u64, system: System, size: usize) -> Result<Value> {
    println!("\n{}, {size} node(s), {keys} keys", system.name());
    let dir = tempfile::Builder::new().prefix("run-").tempdir_in(&args.dir)?;
    let mut cluster = Cluster::start(args, system, size, dir.path()).await?;
    let leader = cluster.leader().await?;
    let mode = if system.is_lockstep() { Mode::Stream } else { Mode::Unary };
    let contender = Contender { system, mode };
    let started = Instant::now();
    load::fill(contender, cluster.addresses()[leader], LOAD_IN_FLIGHT, keys).await?;
    let seconds = started.elapsed().as_secs_f64();
    println!("  loaded in {seconds:.1} s, {:.0} writes/s", keys as f64 / seconds);
    let loaded = footprint(&cluster)?;
    let terminated = restart(&mut cluster, Signal::TERM, keys).await?;
    let killed = restart(&mut cluster, Signal::KILL, keys).await?;
    cluster.stop(Signal::TERM).await?;
    Ok(json!({
        "system": system.name(), "nodes": size, "keys": keys, "load_seconds": seconds,
        "loaded": loaded, "after_term": terminated, "after_kill": killed,
    }))
}

/// Stops all nodes with `signal`, starts them together, and times the way to the first read.
async fn restart(cluster: &mut Cluster, signal: Signal, keys: u64) -> Result<Value> {
    let stopping = Instant::now();
    cluster.stop(signal).await?;
    let stopped = stopping.elapsed().as_secs_f64();
    let starting = Instant::now();
    cluster.restart()?;
    let reads = cluster.addresses().into_iter();
    let reads = reads.map(|address| first_read(cluster.system, address, keys - 1).boxed());
    timeout(READY_WAIT, select_all(reads)).await.context("no read after a restart")?;
    let first_read = starting.elapsed().as_secs_f64();
    let name = if signal == Signal::KILL { "SIGKILL" } else { "SIGTERM" };
    println!("  {name}: stopped in {stopped:.2} s, first read {first_read:.2} s after start");
    let footprint = footprint(cluster)?;
    Ok(json!({ "stop_seconds": stopped, "first_read_seconds": first_read, "then": footprint }))
}

/// Returns when the node has answered a linearizable read of the key of that number.
async fn first_read(system: System, address: SocketAddr, number: u64) {
    while !matches!(timeout(READ_WAIT, try_read(system, address, number)).await, Ok(Ok(()))) {
        sleep(READ_PAUSE).await;
    }
}

async fn try_read(system: System, address: SocketAddr, number: u64) -> Result<()> {
    let contender = Contender { system, mode: Mode::Unary };
    let mut callers = caller::callers(contender, address, 1).await?;
    let caller = callers.first_mut().context("one caller was asked for")?;
    caller.read(load::key(number)).await
}

/// Prints and returns memory and disk of each node.
fn footprint(cluster: &Cluster) -> Result<Value> {
    let rss: Vec<u64> = cluster.usage()?.iter().map(|usage| usage.rss_bytes).collect();
    let disk = cluster.disk_bytes()?;
    println!("  per node: RSS {} MiB, disk {} MiB", list(&rss), list(&disk));
    Ok(json!({ "rss_bytes": rss, "disk_bytes": disk }))
}

fn list(bytes: &[u64]) -> String {
    let figures: Vec<String> =
        bytes.iter().map(|&bytes| format!("{:.0}", mebibytes(bytes))).collect();
    figures.join(" ")
}
