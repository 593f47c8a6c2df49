//! Failover: how long nobody can write after the leader is killed or frozen, and how often a leader
//! changes for no reason.
//!
//! Clusters of three run side by side and take turns, so that what disturbs the machine disturbs
//! all of them. A failover is seen from outside: writes are sent to every node that is left, a new
//! one every few milliseconds and none given up, and the first that is acknowledged ends it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::{interval, sleep, timeout};
use tonic::transport::Channel;

use crate::args::{Args, Contender, FailoverArgs, Mode, Operation, System};
use crate::caller;
use crate::cluster::Cluster;
use crate::load::{self, Load};
use crate::report;

/// Nodes of each cluster.
const NODES: usize = 3;
/// Between two writes that are sent to a node while nobody leads.
const PROBE_INTERVAL: Duration = Duration::from_millis(10);
/// After so long without an acknowledged write the run fails.
const FAILOVER_MAX: Duration = Duration::from_secs(60);
/// A cluster is left alone for so long before its leader is hit, and up to twice as long, so that
/// the moment has nothing to do with its timers.
const REST: Duration = Duration::from_millis(1_000);
/// Keys that exist, and that writes pick from.
const KEYS: u64 = 1_000;
/// Clients that write while a leader should stay.
const QUIET_CLIENTS: usize = 256;

/// What is done to a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    /// SIGKILL, then a restart.
    Kill,
    /// SIGSTOP, then SIGCONT.
    Pause,
}

/// One failover.
struct Sample {
    system: System,
    blow: Blow,
    took: Duration,
}

/// Measures what `failover` asks for, prints it, and returns every sample.
pub(crate) async fn run(args: &Args, failover: &FailoverArgs) -> Result<Value> {
    let dir = tempfile::Builder::new().prefix("run-").tempdir_in(&args.dir)?;
    let mut clusters = Vec::new();
    for system in failover.systems() {
        eprintln!("starting {}, {NODES} nodes", system.name());
        let mut cluster = Cluster::start(args, system, NODES, dir.path()).await?;
        let leader = cluster.leader().await?;
        load::fill(unary(system), cluster.addresses()[leader], 16, KEYS).await?;
        clusters.push(cluster);
    }
    let mut samples = Vec::new();
    for (blow, count) in [(Blow::Kill, failover.kills), (Blow::Pause, failover.pauses)] {
        for round in 0..count {
            for cluster in &mut clusters {
                let took = measure(cluster, blow).await?;
                let (system, round) = (cluster.system, round + 1);
                eprintln!("{} {round} of {}: {} ms", blow.name(), system.name(), took.as_millis());
                samples.push(Sample { system, blow, took });
            }
        }
        if count > 0 {
            print(failover, blow, &samples);
        }
    }
    let quiet = quiet(failover, &mut clusters).await?;
    for cluster in &mut clusters {
        cluster.stop(Signal::KILL).await?;
    }
    let samples: Vec<Value> = samples.iter().map(Sample::to_json).collect();
    Ok(json!({ "failovers": samples, "elections": quiet }))
}

/// Hits the leader of a healthy cluster, and leaves the cluster healthy.
async fn measure(cluster: &mut Cluster, blow: Blow) -> Result<Duration> {
    let leader = cluster.leader().await?;
    sleep(REST.mul_f64(1.0 + fastrand::f64())).await;
    let mut left = cluster.addresses();
    left.remove(leader);
    let probes = connect(cluster.system, &left).await?;
    let hit = Instant::now();
    cluster.signal(leader, if blow == Blow::Kill { Signal::KILL } else { Signal::STOP })?;
    let written = timeout(FAILOVER_MAX, first_write(probes)).await;
    let took = hit.elapsed();
    match blow {
        Blow::Kill => cluster.revive(leader).await?,
        Blow::Pause => cluster.signal(leader, Signal::CONT)?,
    }
    if written.is_err() {
        bail!("{}: no write for {} s", cluster.system.name(), FAILOVER_MAX.as_secs());
    }
    cluster.leader().await?;
    Ok(took)
}

/// A connection to each node.
async fn connect(system: System, addresses: &[SocketAddr]) -> Result<Vec<Probe>> {
    let mut probes = Vec::new();
    for &address in addresses {
        probes.push(Probe { system, channel: caller::connect(address).await? });
    }
    Ok(probes)
}

/// Writes to one node, many at a time.
struct Probe {
    system: System,
    channel: Channel,
}

impl Probe {
    /// Writes once; true when it is acknowledged.
    async fn write(&self) -> bool {
        let callers = caller::share_channel(unary(self.system), self.channel.clone(), 1).await;
        let Some(mut caller) = callers.ok().and_then(|mut callers| callers.pop()) else {
            return false;
        };
        let mut random = fastrand::Rng::new();
        let key = load::key(random.u64(0..KEYS));
        caller.write(key, load::value(&mut random)).await.is_ok()
    }
}

/// Returns once a write is acknowledged, by any of the nodes.
async fn first_write(probes: Vec<Probe>) {
    let mut pace = interval(PROBE_INTERVAL);
    let mut under_way = FuturesUnordered::new();
    loop {
        tokio::select! {
            _ = pace.tick() => under_way.extend(probes.iter().map(Probe::write)),
            Some(acknowledged) = under_way.next() => if acknowledged { return },
        }
    }
}

/// Counts the elections of each cluster under clients that write as fast as they can.
async fn quiet(failover: &FailoverArgs, clusters: &mut [Cluster]) -> Result<Vec<Value>> {
    let mut counted = Vec::new();
    if failover.quiet_minutes <= 0.0 {
        return Ok(counted);
    }
    let lasts = Duration::from_secs_f64(failover.quiet_minutes * 60.0);
    for cluster in clusters {
        let system = cluster.system;
        let leader = cluster.leader().await?;
        let before = cluster.term().await?;
        eprintln!("{QUIET_CLIENTS} clients write to {} for {lasts:?}", system.name());
        let address = cluster.addresses()[leader];
        let load = Load::start(unary(system), address, QUIET_CLIENTS, Operation::Writes, KEYS);
        let load = load.await?;
        load.measure();
        sleep(lasts).await;
        let tallies = load.stop().await?;
        let answered: usize = tallies.iter().map(|tally| tally.latencies_us.len()).sum();
        let failed: u64 = tallies.iter().map(|tally| tally.errors).sum();
        cluster.leader().await?;
        let elections = cluster.term().await?.checked_sub(before).context("terms only grow")?;
        println!(
            "{}: {elections} elections in {lasts:?} of {QUIET_CLIENTS} clients, {answered} writes \
             answered, {failed} failed",
            system.name()
        );
        counted.push(json!({
            "system": system.name(), "minutes": failover.quiet_minutes, "elections": elections,
            "answered": answered, "failed": failed,
        }));
    }
    Ok(counted)
}

fn unary(system: System) -> Contender {
    Contender { system, mode: Mode::Unary }
}

fn print(failover: &FailoverArgs, blow: Blow, samples: &[Sample]) {
    println!("\n{NODES} nodes, {}, to the next acknowledged write, in ms", blow.description());
    println!("{:>10} {:>6} {:>7} {:>7} {:>7} {:>7}", "", "count", "min", "median", "p90", "max");
    for system in failover.systems() {
        let of = samples.iter().filter(|sample| sample.system == system && sample.blow == blow);
        let mut took: Vec<f64> = of.map(|sample| sample.took.as_secs_f64() * 1000.0).collect();
        took.sort_by(f64::total_cmp);
        let (Some(least), Some(most)) = (took.first(), took.last()) else { continue };
        println!(
            "{:>10} {:>6} {least:>7.0} {:>7.0} {:>7.0} {most:>7.0}",
            system.name(),
            took.len(),
            report::median(took.clone()),
            took[(took.len() * 9).div_ceil(10) - 1],
        );
    }
}

impl Blow {
    fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
        }
    }

    fn description(self) -> &'static str {
        match self {
            Self::Kill => "from kill -9 of the leader",
            Self::Pause => "from SIGSTOP of the leader",
        }
    }
}

impl Sample {
    fn to_json(&self) -> Value {
        json!({
            "system": self.system.name(), "blow": self.blow.name(),
            "ms": self.took.as_secs_f64() * 1000.0,
        })
    }
}
