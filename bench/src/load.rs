//! Closed-loop load: every client sends its next request when the last one was answered.
//!
//! Latency is thus what a client waits; throughput is what so many waiting clients get.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::future::try_join_all;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::args::{Contender, Operation};
use crate::caller::{self, Caller, KEY_BYTES, VALUE_BYTES};

/// How long the last requests of a run may take.
const DRAIN_WAIT: Duration = Duration::from_secs(30);
/// What a client waits after a failed request, so that a dead server is not hammered.
const ERROR_PAUSE: Duration = Duration::from_millis(10);
/// Failures in a row after which loading a key gives up.
const FILL_TRIES: usize = 200;

const WARMUP: u8 = 0;
const MEASURE: u8 = 1;
const STOP: u8 = 2;

/// What one client saw while the run was measured.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Microseconds of each answered request.
    pub(crate) latencies_us: Vec<u32>,
    /// Failed requests, warm-up included.
    pub(crate) errors: u64,
    /// What the first of them said.
    pub(crate) first_error: Option<String>,
}

/// Clients that run until told otherwise.
#[derive(Debug)]
pub(crate) struct Load {
    phase: Arc<AtomicU8>,
    clients: JoinSet<Tally>,
}

impl Load {
    /// Sets `clients` loose on the node at `address`. Nothing is recorded yet.
    pub(crate) async fn start(
        contender: Contender,
        address: SocketAddr,
        clients: usize,
        operation: Operation,
        keyspace: u64,
    ) -> Result<Self> {
        let phase = Arc::new(AtomicU8::new(WARMUP));
        let callers = caller::callers(contender, address, clients).await?;
        let start = |caller| client(caller, operation, keyspace, Arc::clone(&phase));
        let clients = callers.into_iter().map(start).collect();
        Ok(Self { phase, clients })
    }

    /// Requests answered from here on are recorded.
    pub(crate) fn measure(&self) {
        self.phase.store(MEASURE, Ordering::Relaxed);
    }

    /// Stops recording at once, and returns when every client has its last reply.
    pub(crate) async fn stop(self) -> Result<Vec<Tally>> {
        self.phase.store(STOP, Ordering::Relaxed);
        timeout(DRAIN_WAIT, self.clients.join_all()).await.context("requests never answered")
    }
}

async fn client(
    mut caller: Caller,
    operation: Operation,
    keyspace: u64,
    phase: Arc<AtomicU8>,
) -> Tally {
    let mut random = fastrand::Rng::new();
    let mut tally = Tally::default();
    while phase.load(Ordering::Relaxed) != STOP {
        let key = key(random.u64(0..keyspace));
        let started = Instant::now();
        let outcome = match operation {
            Operation::Writes => caller.write(key, value(&mut random)).await,
            Operation::Reads => caller.read(key).await,
        };
        let elapsed = started.elapsed();
        match outcome {
            Ok(()) if phase.load(Ordering::Relaxed) == MEASURE => tally.record(elapsed),
            Ok(()) => {}
            Err(error) => {
                tally.errors += 1;
                tally.first_error.get_or_insert_with(|| format!("{error:#}"));
                sleep(ERROR_PAUSE).await;
            }
        }
    }
    tally
}

impl Tally {
    fn record(&mut self, elapsed: Duration) {
        self.latencies_us.push(u32::try_from(elapsed.as_micros()).unwrap_or(u32::MAX));
    }
}

/// Writes the keys from 0 to `keys` through `clients`, each once.
pub(crate) async fn fill(
    contender: Contender,
    address: SocketAddr,
    clients: usize,
    keys: u64,
) -> Result<()> {
    let next = AtomicU64::new(0);
    let callers = caller::callers(contender, address, clients).await?;
    try_join_all(callers.into_iter().map(|caller| fill_share(caller, &next, keys))).await?;
    Ok(())
}

async fn fill_share(mut caller: Caller, next: &AtomicU64, keys: u64) -> Result<()> {
    let mut random = fastrand::Rng::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= keys {
            return Ok(());
        }
        let mut tries = 0;
        while let Err(error) = caller.write(key(number), value(&mut random)).await {
            tries += 1;
            if tries == FILL_TRIES {
                return Err(error.context(format!("loading key {number}")));
            }
            sleep(ERROR_PAUSE).await;
        }
    }
}

/// The key of that number: 16 bytes.
pub(crate) fn key(number: u64) -> Bytes {
    format!("key:{number:0width$}", width = KEY_BYTES - 4).into()
}

/// A value that doesn't compress.
pub(crate) fn value(random: &mut fastrand::Rng) -> Bytes {
    let mut value = vec![0; VALUE_BYTES];
    random.fill(&mut value);
    value.into()
}
