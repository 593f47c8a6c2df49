//! `lockstep-soak`: runs of the test suite that go on for as long as one likes, with another seed
//! each round. It ends at the first round that finds something, which says how it is replayed.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand, ValueEnum};
use lockstep_tests::history::{self, Kind, Settings};
use lockstep_tests::hostile::{self, Row};
use lockstep_tests::seed;

/// Finds faults by trying for long.
#[derive(Parser)]
#[command(name = "cargo xtask soak", bin_name = "cargo xtask soak")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Many clients use few keys of a cluster while things are done to it: what all of them were
    /// told must be linearizable.
    History(HistoryArguments),
    /// Hostile clients, one kind for each thing that others could make a node grow or hold, beside
    /// a good one, whose times are looked at.
    Hostile {
        /// Seconds for which each goes on.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Only these kinds, by their names in `tests/src/hostile.rs`.
        #[arg(long)]
        row: Vec<String>,
    },
    /// Checks a history that a run has kept once more.
    Check {
        /// The file `history.jsonl` of the run.
        file: PathBuf,
    },
}

#[derive(clap::Args)]
struct HistoryArguments {
    /// Seed of the first round; each round has the next one. By default a random one.
    #[arg(long)]
    seed: Option<u64>,
    /// Minutes until no further round begins.
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// What is done to the cluster; all kinds in turn by default, as the seed says.
    #[arg(long, value_enum)]
    kind: Option<KindName>,
    /// Clients.
    #[arg(long, default_value_t = 16)]
    clients: u32,
    /// Keys that the clients use at a time.
    #[arg(long, default_value_t = 4)]
    keys: usize,
    /// Seconds for which a round does things to its cluster.
    #[arg(long, default_value_t = 60)]
    round_seconds: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum KindName {
    Crashes,
    Network,
    Changes,
    Everything,
}

impl From<KindName> for Kind {
    fn from(name: KindName) -> Self {
        match name {
            KindName::Crashes => Self::Crashes,
            KindName::Network => Self::Network,
            KindName::Changes => Self::Changes,
            KindName::Everything => Self::Everything,
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match Arguments::parse().task {
        Task::History(arguments) => soak(&arguments).await,
        Task::Hostile { seconds, row } => return hostile(Duration::from_secs(seconds), &row).await,
        Task::Check { file } => return check(&file),
    }
    ExitCode::SUCCESS
}

/// The good client waits no longer for 99 of 100 commands.
const GOOD_P99_MAX: Duration = Duration::from_millis(250);

async fn hostile(duration: Duration, only: &[String]) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    let is_asked = |row: &Row| only.is_empty() || only.contains(&format!("{row:?}"));
    for row in Row::ALL.into_iter().filter(is_asked) {
        let verdict = hostile::run(row, duration).await;
        let said = match (verdict.p99 > GOOD_P99_MAX, verdict.same_leader) {
            (_, false) => "ANOTHER LEADER",
            (true, _) => "TOO SLOW",
            _ => "ok",
        };
        println!(
            "{row:?}: {said}: {} requests answered, {} failed, p99 {:.0} ms; nodes grew by {} MiB",
            verdict.answered,
            verdict.failed,
            verdict.p99.as_secs_f64() * 1e3,
            verdict.grown_max >> 20,
        );
        if said != "ok" {
            code = ExitCode::FAILURE;
        }
    }
    code
}

async fn soak(arguments: &HistoryArguments) {
    let end = Instant::now() + Duration::from_secs_f64(arguments.minutes * 60.0);
    let first = arguments.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    for round in 0.. {
        if round > 0 && Instant::now() >= end {
            return;
        }
        let seed = first.wrapping_add(round);
        let in_turn = Kind::ALL[usize::try_from(seed % 4).expect("it is below 4")];
        let settings = Settings {
            kind: arguments.kind.map_or(in_turn, Kind::from),
            clients: arguments.clients,
            keys: arguments.keys,
            duration: Duration::from_secs(arguments.round_seconds),
            seed: Some(seed),
        };
        seed::replayed_by(format!(
            "cargo xtask soak history --seed {seed} --kind {} --clients {} --keys {} \
             --round-seconds {} --minutes 0",
            settings.kind.name(),
            settings.clients,
            settings.keys,
            arguments.round_seconds,
        ));
        let report = history::run(&settings).await;
        let told = report.operations;
        println!(
            "round {round}, seed {seed}, {}: {} troubles; {} operations on {} keys answered, {} \
             refused, {} unknown: linearizable (found in {:.1} s)",
            settings.kind.name(),
            report.troubles,
            told.answered,
            told.keys,
            told.refused,
            told.unknown,
            report.checked_in.as_secs_f64(),
        );
    }
}

fn check(file: &std::path::Path) -> ExitCode {
    let history = match lockstep_history::file::read(file) {
        Ok(history) => history,
        Err(error) => {
            eprintln!("error: {}: {error}", file.display());
            return ExitCode::FAILURE;
        }
    };
    match lockstep_history::check(&history) {
        Ok(summary) => {
            println!("{}: linearizable: {summary:?}", history.title);
            ExitCode::SUCCESS
        }
        Err(violation) => {
            eprintln!("{}: {violation}", history.title);
            ExitCode::FAILURE
        }
    }
}
