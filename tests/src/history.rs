//! Runs in which many clients use few keys of a real cluster while things are done to it, and the
//! check that everything they were told can be explained (crate `lockstep-history`).
//!
//! A run is seeded: what the clients ask and what is done to the cluster follow from the seed, but
//! not the moments, which are those of real processes. A run that fails says its seed and the
//! command that replays it, and keeps its history beside the logs of the nodes.
//!
//! Beside the history a run claims that the cluster goes on by itself after each trouble, within
//! [`SOON`], and that all members hold the same in the end.

mod asker;
mod keys;
mod recorder;
mod trouble;

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _};
use lockstep_client::{Client, Consistency};
use lockstep_history::{History, Summary};
use tokio::task::JoinSet;

use crate::cluster::{Cluster, Plan, SOON};
use crate::kv;
use crate::wait::until;
use asker::Asker;
use keys::Keys;
use recorder::Recorder;
pub use trouble::Kind;

/// Voters at the beginning of a run.
const VOTERS: u64 = 3;
/// Nodes that can take the place of others in a run.
const SPARES: u64 = 5;
/// Reads under way at the end of a run.
const READERS: usize = 16;

/// What a run is like.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is done to the cluster.
    pub kind: Kind,
    /// Clients.
    pub clients: u32,
    /// Keys that they use at a time.
    pub keys: usize,
    /// How long things are done to the cluster.
    pub duration: Duration,
    /// The seed; without one, that of the environment or a new one.
    pub seed: Option<u64>,
}

impl Settings {
    /// A run of this kind as the suite makes it: 16 clients on 4 keys.
    pub fn new(kind: Kind, duration: Duration) -> Self {
        Self { kind, clients: 16, keys: 4, duration, seed: None }
    }

    fn plan(&self) -> Plan {
        // Checkpoints every moment, and a log of small files that are soon purged.
        let plan = Plan::new(VOTERS).flag("--forward").config("checkpoint_log_entries = 150");
        let plan = plan.config("log_segment_bytes = 1048576").linked().clocks().faulty();
        let plan = if self.kind.changes_members() { plan.spares(SPARES) } else { plan };
        self.seed.into_iter().fold(plan, Plan::seed)
    }
}

/// What a run came to that found nothing wrong.
#[derive(Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// What its clients were told.
    pub operations: Summary,
    /// Troubles that were made.
    pub troubles: u32,
    /// How long the check of the history took.
    pub checked_in: Duration,
}

/// A run under way.
struct Run {
    cluster: Cluster,
    recorder: Arc<Recorder>,
    keys: Arc<Keys>,
    askers: JoinSet<()>,
    /// Ids of the nodes that are in the cluster, as far as is known.
    members: Vec<u64>,
    troubles: u32,
}

/// Makes one run.
///
/// # Panics
/// When the history can't be explained, the cluster does not go on, or its members differ.
pub async fn run(settings: &Settings) -> Report {
    let cluster = settings.plan().start().await;
    let seed = cluster.seed();
    let title = format!("{:?}, seed {seed}, {} clients", settings.kind, settings.clients);
    let recorder = Arc::new(Recorder::new(title, usize::try_from(VOTERS).expect("few nodes")));
    let keys = Arc::new(Keys::new(settings.keys));
    let endpoints: Vec<String> =
        cluster.nodes.iter().map(|node| node.client_addr.clone()).collect();
    let askers = (0..settings.clients).map(|number| {
        let (keys, recorder) = (Arc::clone(&keys), Arc::clone(&recorder));
        Asker::new(number, seed, &endpoints, keys, recorder).run()
    });
    let askers = askers.collect();
    let members = (1..=VOTERS).collect();
    let mut run = Run { cluster, recorder, keys, askers, members, troubles: 0 };
    let made = AssertUnwindSafe(run.make(settings)).catch_unwind().await;
    let path = run.cluster.directory().join("history.jsonl");
    run.recorder.save(&path);
    match made {
        Ok((operations, checked_in)) => {
            Report { seed, operations, troubles: run.troubles, checked_in }
        }
        Err(panic) => {
            eprintln!("the history so far: {}", path.display());
            resume_unwind(panic)
        }
    }
}

impl Run {
    async fn make(&mut self, settings: &Settings) -> (Summary, Duration) {
        self.progress(u64::from(settings.clients)).await;
        let end = Instant::now() + settings.duration;
        while Instant::now() < end {
            self.trouble(settings.kind, 0).await;
            self.goes_on().await;
        }
        self.settle().await;
        self.recorder.stop();
        while let Some(ended) = self.askers.join_next().await {
            ended.expect("a client was told what no guest says");
        }
        self.read_all().await;
        let history = self.recorder.history();
        let started = Instant::now();
        let checked = tokio::task::spawn_blocking(move || verdict(&history)).await;
        let operations = checked.unwrap_or_else(|error| resume_unwind(error.into_panic()));
        let checked_in = started.elapsed();
        self.members_are_equal().await;
        (operations, checked_in)
    }

    /// No client has been told what no guest says.
    fn clients_run(&mut self) -> Result<(), String> {
        match self.askers.try_join_next() {
            None => Ok(()),
            Some(Ok(())) => panic!("a client ended early"),
            Some(Err(error)) => resume_unwind(error.into_panic()),
        }
    }

    /// Waits until so many more operations are answered.
    async fn progress(&mut self, more: u64) {
        let goal = self.recorder.answered() + more;
        until("clients to be answered", SOON, async || {
            self.clients_run()?;
            let left = goal.saturating_sub(self.recorder.answered());
            if left == 0 { Ok(()) } else { Err(format!("{left} answers are missing")) }
        })
        .await;
    }

    /// Reads every key that was ever used, and writes down what is there.
    async fn read_all(&self) {
        let client = self.cluster.client().with_timeout(SOON);
        let read = async |key: String| {
            let called_us = self.recorder.now_us();
            let answered = query(&client, &key, Consistency::Linearizable).await;
            let ended_us = self.recorder.now_us();
            let told = (answered.0.as_slice(), answered.1);
            self.recorder.operation(asker::reading(&key, called_us, ended_us, told));
        };
        let reads = self.keys.all().into_iter().map(read);
        stream::iter(reads).buffer_unordered(READERS).collect::<Vec<()>>().await;
    }

    /// Expects that every member holds the same under every key.
    async fn members_are_equal(&self) {
        self.cluster.level(&self.members, SOON).await;
        let mut first: Option<(u64, Vec<Vec<u8>>)> = None;
        for id in &self.members {
            let client = self.cluster.node(*id).client();
            let reads = self.keys.all().into_iter().map(|key| {
                let client = client.clone();
                async move { query(&client, &key, Consistency::Stale).await.0 }
            });
            let held: Vec<Vec<u8>> = stream::iter(reads).buffered(READERS).collect().await;
            match &first {
                None => first = Some((*id, held)),
                Some((other, expected)) => {
                    let keys = self.keys.all();
                    for (key, (held, expected)) in keys.iter().zip(held.iter().zip(expected)) {
                        assert_eq!(held, expected, "nodes {id} and {other} differ in {key}");
                    }
                }
            }
        }
    }
}

async fn query(client: &Client, key: &str, consistency: Consistency) -> (Vec<u8>, u64) {
    let answered = client.query(kv::MACHINE, kv::text(&format!("GET {key}")), consistency).await;
    let answered = answered.unwrap_or_else(|error| panic!("cannot read {key}: {error}"));
    (answered.reply.to_vec(), answered.applied_index)
}

/// Checks the history of a run.
///
/// # Panics
/// When it can't be explained.
fn verdict(history: &History) -> Summary {
    lockstep_history::check(history).unwrap_or_else(|violation| {
        panic!("{}: what the clients were told can't be explained: {violation}", history.title)
    })
}
