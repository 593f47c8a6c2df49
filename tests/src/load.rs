//! Writers that run while a test breaks things, and know what they were promised.
//!
//! Each writer has keys of its own. A write is `SET key value GET` with a value that was never
//! used before: its reply is the key's previous value, so it proves itself to be the reply to this
//! very command, and that nothing acknowledged before it was lost. What is expected of a key is
//! exact, since a key whose last write had an unknown outcome is not written again: that write
//! may still be applied, whenever it likes.
//!
//! - acknowledged: it is applied, once, before any later write of its key.
//! - NOT_APPLIED: its value never shows.
//! - unknown: the key holds the value before it, or this one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use lockstep_client::{Client, Consistency, Error, Executed, Options, Outcome, Stream};
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::kv;
use crate::wait::until;

/// How long one write may take before its outcome counts as unknown.
const WRITE_LIMIT: Duration = Duration::from_secs(4);
/// Keys that one writer goes round.
const KEYS_PER_WRITER: u64 = 4;
/// Readers of the check that run at once.
const READERS: usize = 32;

/// What a key must hold in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Expected {
    key: String,
    /// The last acknowledged value.
    value: Option<String>,
    /// A later write of unknown outcome.
    unknown: Option<String>,
}

/// What a finished load came to.
#[derive(Debug, Default)]
pub struct Report {
    keys: Vec<Expected>,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Writes of unknown outcome.
    pub unknown: u64,
    /// What was said of these.
    pub unknown_because: BTreeSet<String>,
    /// Writes that were refused without being applied.
    pub refused: u64,
    /// Where the acknowledged writes stand in the log.
    pub indexes: BTreeSet<u64>,
}

/// Writers under way.
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    writers: JoinSet<Report>,
}

impl Load {
    /// Starts writers against a cluster: half of them on one pipelined stream, the others with
    /// calls of their own. Each test gives its load another name, which begins its keys.
    pub fn start(cluster: &Cluster, name: &str, writers: u64) -> Self {
        let endpoints = cluster.nodes.iter().map(|node| node.client_addr.clone());
        let options = Options { timeout: WRITE_LIMIT, ..Options::default() };
        let client = Client::with_options(endpoints, options).expect("addresses are endpoints");
        let stream = client.stream();
        let (stop, acknowledged) = (Arc::default(), Arc::default());
        let mut load = Self { stop, acknowledged, writers: JoinSet::new() };
        for number in 0..writers {
            let writer = Writer {
                prefix: format!("{name}-{number}"),
                client: client.clone(),
                stream: number.is_multiple_of(2).then(|| stream.clone()),
                stop: Arc::clone(&load.stop),
                acknowledged: Arc::clone(&load.acknowledged),
                next: 0,
                last_index: 0,
                report: Report::default(),
            };
            load.writers.spawn(writer.run());
        }
        load
    }

    /// Writes acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many more writes are acknowledged.
    ///
    /// # Panics
    /// When they are not within `limit`, or a writer found a promise broken.
    pub async fn progress(&mut self, more: u64, limit: Duration) {
        let goal = self.acknowledged() + more;
        until("the load to make progress", limit, async || {
            if let Some(ended) = self.writers.try_join_next() {
                ended.expect("a writer found a promise broken");
                panic!("a writer ended early");
            }
            let now = self.acknowledged();
            if now >= goal { Ok(()) } else { Err(format!("{} writes are missing", goal - now)) }
        })
        .await;
    }

    /// Ends the writers after their last write, and gathers what they were promised.
    ///
    /// # Panics
    /// When a writer found a promise broken.
    pub async fn finish(mut self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let mut report = Report::default();
        while let Some(ended) = self.writers.join_next().await {
            let one = ended.expect("a writer found a promise broken");
            report.keys.extend(one.keys);
            report.acknowledged += one.acknowledged;
            report.unknown += one.unknown;
            report.unknown_because.extend(one.unknown_because);
            report.refused += one.refused;
            report.indexes.extend(one.indexes);
        }
        report
    }
}

/// One writer, with keys that nobody else writes.
struct Writer {
    prefix: String,
    client: Client,
    stream: Option<Stream>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    /// Number of the next key or value: none is used twice.
    next: u64,
    last_index: u64,
    report: Report,
}

impl Writer {
    async fn run(mut self) -> Report {
        let mut open: Vec<Expected> = (0..KEYS_PER_WRITER).map(|_| self.new_key()).collect();
        let mut turn = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let place = turn % open.len();
            turn += 1;
            self.write(&mut open[place]).await;
            if open[place].unknown.is_some() {
                let fresh = self.new_key();
                self.report.keys.push(std::mem::replace(&mut open[place], fresh));
            }
        }
        self.report.keys.extend(open);
        self.report
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn new_key(&mut self) -> Expected {
        let number = self.number();
        let key = format!("{}-k{number}", self.prefix);
        Expected { key, value: None, unknown: None }
    }

    async fn write(&mut self, key: &mut Expected) {
        let number = self.number();
        let value = format!("{}-v{number}", self.prefix);
        match self.execute(&format!("SET {} {value} GET", key.key)).await {
            Ok(executed) => {
                self.check(key, &executed);
                key.value = Some(value);
                self.report.acknowledged += 1;
                self.report.indexes.insert(executed.index);
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => match error.outcome {
                Outcome::NotApplied => self.report.refused += 1,
                Outcome::Unknown => {
                    key.unknown = Some(value);
                    self.report.unknown += 1;
                    self.report.unknown_because.insert(error.to_string());
                }
                Outcome::AppliedError => panic!("a SET came to an error: {error}"),
            },
        }
    }

    async fn execute(&self, line: &str) -> Result<Executed, Error> {
        match &self.stream {
            Some(stream) => stream.execute(kv::MACHINE, kv::text(line)).await,
            None => self.client.execute(kv::MACHINE, kv::text(line)).await,
        }
    }

    /// The reply must be the one to this command, and its place behind all earlier ones.
    fn check(&mut self, key: &Expected, executed: &Executed) {
        let previous = kv::value(&executed.reply);
        assert_eq!(previous, key.value, "the previous value of {}", key.key);
        assert!(
            executed.index > self.last_index,
            "a write of {} stands at {}, an earlier one at {}",
            key.key,
            executed.index,
            self.last_index
        );
        self.last_index = executed.index;
    }
}

impl Report {
    /// Reads every key, linearizably, and expects what was promised of it.
    ///
    /// # Panics
    /// With the keys whose promise was broken.
    pub async fn check(&self, client: &Client) {
        assert!(self.acknowledged > 0, "nothing was acknowledged: nothing is shown");
        let broken: Vec<String> = self.compare(client, Consistency::Linearizable).await;
        assert!(
            broken.is_empty(),
            "{} of {} keys are not what was promised ({} writes acknowledged, {} unknown):\n{}",
            broken.len(),
            self.keys.len(),
            self.acknowledged,
            self.unknown,
            broken.join("\n")
        );
    }

    /// Reads every key from each node itself, and expects that they hold the same: what was
    /// promised, and for writes of unknown outcome the same choice everywhere.
    ///
    /// # Panics
    /// With the keys that differ.
    pub async fn check_equal(&self, cluster: &Cluster, ids: &[u64]) {
        let limit = Duration::from_secs(30);
        cluster.level(ids, limit).await;
        for id in ids {
            let broken = self.compare(&cluster.node(*id).client(), Consistency::Stale).await;
            assert!(broken.is_empty(), "node {id} holds something else:\n{}", broken.join("\n"));
        }
        for key in self.keys.iter().filter(|key| key.unknown.is_some()) {
            let mut found = BTreeSet::new();
            for id in ids {
                let client = cluster.node(*id).client();
                found.insert(read(&client, &key.key, Consistency::Stale).await);
            }
            assert_eq!(found.len(), 1, "nodes differ in {}: {found:?}", key.key);
        }
    }

    async fn compare(&self, client: &Client, consistency: Consistency) -> Vec<String> {
        let checks = self.keys.iter().map(|key| async move {
            let found = read(client, &key.key, consistency).await;
            let kept = found == key.value || (found.is_some() && found == key.unknown);
            (!kept).then(|| format!("{key:?} holds {found:?}"))
        });
        stream::iter(checks)
            .buffer_unordered(READERS)
            .filter_map(std::future::ready)
            .collect()
            .await
    }
}

/// Reads one key.
///
/// # Panics
/// When the cluster does not answer.
pub async fn read(client: &Client, key: &str, consistency: Consistency) -> Option<String> {
    let answered = client.query(kv::MACHINE, kv::text(&format!("GET {key}")), consistency).await;
    let answered = answered.unwrap_or_else(|error| panic!("cannot read {key}: {error}"));
    kv::value(&answered.reply)
}

/// Sets one key.
///
/// # Panics
/// When it is not acknowledged.
pub async fn write(client: &Client, key: &str, value: &str) -> u64 {
    let line = format!("SET {key} {value}");
    let executed = client.execute(kv::MACHINE, kv::text(&line)).await;
    let executed = executed.unwrap_or_else(|error| panic!("cannot set {key}: {error}"));
    assert_eq!(executed.reply, "+OK\r\n", "the reply to {line}");
    executed.index
}

/// Expects that a write is refused for this reason without being applied.
///
/// # Panics
/// When it is acknowledged, or fails otherwise.
pub async fn write_is_refused(client: &Client, reason: &str) {
    let error = client.execute(kv::MACHINE, kv::text("SET refused v")).await;
    let error = error.expect_err("the write is refused");
    assert_eq!((error.outcome, error.reason.as_str()), (Outcome::NotApplied, reason), "{error}");
    assert_eq!(read(client, "refused", Consistency::Linearizable).await, None);
}

/// Sets many keys through one stream: `prefix-0` to `prefix-(count-1)`, each to its own name.
///
/// # Panics
/// When one is not acknowledged.
pub async fn fill(client: &Client, prefix: &str, count: u64) {
    let stream = client.with_timeout(Duration::from_secs(60)).stream();
    let writes = (0..count).map(|number| {
        let (stream, key) = (stream.clone(), format!("{prefix}-{number}"));
        async move {
            let executed = stream.execute(kv::MACHINE, kv::text(&format!("SET {key} {key}"))).await;
            let executed = executed.unwrap_or_else(|error| panic!("cannot set {key}: {error}"));
            assert_eq!(executed.reply, "+OK\r\n", "the reply to a SET of {key}");
        }
    });
    stream::iter(writes).buffer_unordered(1024).collect::<Vec<()>>().await;
}

/// Counts how many of the keys that [`fill`] set are there.
///
/// # Panics
/// When the cluster does not answer.
pub async fn count(client: &Client, prefix: &str, count: u64, consistency: Consistency) -> u64 {
    let mut found = 0;
    for start in (0..count).step_by(1000) {
        let keys = (start..count.min(start + 1000)).map(|number| format!("{prefix}-{number}"));
        let words: Vec<String> = std::iter::once("EXISTS".to_owned()).chain(keys).collect();
        let words: Vec<&[u8]> = words.iter().map(String::as_bytes).collect();
        let answered = client.query(kv::MACHINE, kv::command(&words), consistency).await;
        let answered = answered.unwrap_or_else(|error| panic!("cannot count keys: {error}"));
        found += u64::try_from(kv::integer(&answered.reply)).expect("a count is not negative");
    }
    found
}
