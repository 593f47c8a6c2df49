//! The tables: every contender in every cell, taking turns.
//!
//! Clusters of one size run side by side, idle but for the one that is measured, and rounds go
//! A B A B, so that what disturbs the machine for a while disturbs all of them.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::args::{Args, Contender, Mode, Operation};
use crate::cluster::Cluster;
use crate::load::{self, Load, Tally};
use crate::machine::{self, Usage};
use crate::report;

/// Clients that write the keyspace before measuring.
const FILL_CLIENTS: usize = 64;

/// What is measured: one line of a table for each contender.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell {
    pub(crate) nodes: usize,
    pub(crate) operation: Operation,
    pub(crate) clients: usize,
}

/// One contender's turn in one round. Figures of nodes come leader first.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) cell: Cell,
    pub(crate) contender: Contender,
    pub(crate) round: usize,
    pub(crate) ops_per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) max_us: f64,
    /// CPU microseconds per answered request.
    pub(crate) node_cpu_us: Vec<f64>,
    pub(crate) client_cpu_us: f64,
    pub(crate) rss_bytes: Vec<u64>,
    /// CPU that neither this cluster nor its clients used, in percent of one core: the noise.
    pub(crate) others_cpu_percent: f64,
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
    /// Another node led at the end than at the start.
    pub(crate) leader_changed: bool,
}

/// Measures all that `args` ask for, prints the tables, and returns every sample.
pub(crate) async fn run(args: &Args) -> Result<Value> {
    let mut samples = Vec::new();
    for &size in &args.nodes {
        let dir = tempfile::Builder::new().prefix("run-").tempdir_in(&args.dir)?;
        let mut clusters = start_clusters(args, size, dir.path()).await?;
        for &operation in &args.ops {
            report::heading(args, size, operation);
            for &clients in &args.clients {
                let cell = Cell { nodes: size, operation, clients };
                let measured = measure_cell(args, cell, &mut clusters).await?;
                report::rows(args, cell, &measured);
                samples.extend(measured);
            }
        }
        for cluster in &mut clusters {
            cluster.stop(Signal::KILL).await?;
        }
    }
    Ok(samples.iter().map(Sample::to_json).collect())
}

async fn start_clusters(args: &Args, size: usize, dir: &Path) -> Result<Vec<Cluster>> {
    let mut clusters = Vec::new();
    for system in args.systems() {
        eprintln!("starting {}, {size} node(s), {} keys", system.name(), args.keyspace);
        let mut cluster = Cluster::start(args, system, size, dir).await?;
        let contender = Contender { system, mode: Mode::Unary };
        let leader = cluster.leader().await?;
        let address = cluster.addresses()[leader];
        load::fill(contender, address, FILL_CLIENTS, args.keyspace).await?;
        clusters.push(cluster);
    }
    Ok(clusters)
}

async fn measure_cell(args: &Args, cell: Cell, clusters: &mut [Cluster]) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    for round in 0..args.rounds {
        for contender in args.contenders() {
            let cluster = clusters.iter_mut().find(|cluster| cluster.system == contender.system);
            let cluster = cluster.context("every contender's cluster was started")?;
            samples.push(measure(args, cell, contender, round, cluster).await?);
        }
    }
    Ok(samples)
}

async fn measure(
    args: &Args,
    cell: Cell,
    contender: Contender,
    round: usize,
    cluster: &mut Cluster,
) -> Result<Sample> {
    let leader = cluster.leader().await?;
    let address: SocketAddr = cluster.addresses()[leader];
    let load = Load::start(contender, address, cell.clients, cell.operation, args.keyspace);
    let load = load.await?;
    sleep(Duration::from_secs_f64(args.warmup)).await;
    let before = Reading::take(cluster, leader)?;
    load.measure();
    sleep(Duration::from_secs_f64(args.seconds)).await;
    let after = Reading::take(cluster, leader)?;
    let tallies = load.stop().await?;
    let latencies = latencies(&tallies)?;
    if latencies.is_empty() {
        let error = tallies.into_iter().find_map(|tally| tally.first_error);
        bail!("{}: no request was answered: {error:?}", contender.name());
    }
    let elapsed = after.at - before.at;
    let per_request = |cpu: Duration| cpu.as_secs_f64() * 1e6 / latencies.len() as f64;
    let node_cpu: Vec<Duration> = after
        .nodes
        .iter()
        .zip(&before.nodes)
        .map(|(after, before)| after.cpu - before.cpu)
        .collect();
    let client_cpu = after.client.cpu - before.client.cpu;
    let ours = node_cpu.iter().sum::<Duration>() + client_cpu;
    let others = (after.busy - before.busy).saturating_sub(ours);
    Ok(Sample {
        cell,
        contender,
        round,
        ops_per_second: latencies.len() as f64 / elapsed.as_secs_f64(),
        p50_us: latencies.value_at_quantile(0.5) as f64,
        p99_us: latencies.value_at_quantile(0.99) as f64,
        max_us: latencies.max() as f64,
        node_cpu_us: node_cpu.into_iter().map(per_request).collect(),
        client_cpu_us: per_request(client_cpu),
        rss_bytes: after.nodes.iter().map(|node| node.rss_bytes).collect(),
        others_cpu_percent: 100.0 * others.as_secs_f64() / elapsed.as_secs_f64(),
        errors: tallies.iter().map(|tally| tally.errors).sum(),
        first_error: tallies.into_iter().find_map(|tally| tally.first_error),
        leader_changed: cluster.leader().await? != leader,
    })
}

fn latencies(tallies: &[Tally]) -> Result<Histogram<u64>> {
    let mut histogram = Histogram::new(3)?;
    for &latency in tallies.iter().flat_map(|tally| &tally.latencies_us) {
        histogram.record(latency.into())?;
    }
    Ok(histogram)
}

/// The clocks of everybody at one moment. Nodes come leader first.
struct Reading {
    at: Instant,
    nodes: Vec<Usage>,
    client: Usage,
    busy: Duration,
}

impl Reading {
    fn take(cluster: &Cluster, leader: usize) -> Result<Self> {
        let mut nodes = cluster.usage()?;
        nodes[..=leader].rotate_right(1);
        let client = machine::usage("self")?;
        Ok(Self { at: Instant::now(), nodes, client, busy: machine::busy()? })
    }
}

impl Sample {
    fn to_json(&self) -> Value {
        json!({
            "system": self.contender.system.name(),
            "contender": self.contender.name(),
            "nodes": self.cell.nodes,
            "operation": self.cell.operation.name(),
            "clients": self.cell.clients,
            "round": self.round,
            "ops_per_second": self.ops_per_second,
            "p50_us": self.p50_us,
            "p99_us": self.p99_us,
            "max_us": self.max_us,
            "node_cpu_us_per_op": self.node_cpu_us,
            "client_cpu_us_per_op": self.client_cpu_us,
            "rss_bytes": self.rss_bytes,
            "others_cpu_percent": self.others_cpu_percent,
            "errors": self.errors,
            "first_error": self.first_error,
            "leader_changed": self.leader_changed,
        })
    }
}
