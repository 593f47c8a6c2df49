//! Memory of guests that grows while everything else goes on: no node ends, no answer is wrong,
//! and all nodes come to the same state.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use lockstep_client::{Client, Consistency};
use lockstep_tests::cluster::{Cluster, Plan, SOON};
use lockstep_tests::engine::{self, Sealing};
use lockstep_tests::kv;
use tokio::task::JoinSet;

/// Length of the values that a node failed at within seconds, in bytes.
const LARGE: usize = 900_000;
/// Values of that length: with all that they take beside, about 100 MiB of a guest's memory.
const LARGE_VALUES: usize = 100;
/// Rounds of values of every length.
const ROUNDS: usize = 12;
/// Longest value, in bytes: a command of 1 MiB less what its key and frame take.
const LONGEST: usize = (1 << 20) - 64;

/// How long a write may take while snapshots are written and a test build compiles beside it.
const PATIENT: Duration = Duration::from_secs(30);

fn set(key: &str, length: usize) -> Bytes {
    kv::command(&[b"SET", key.as_bytes(), &vec![b'v'; length]])
}

/// Asks for the newest key again and again, and checks each answer.
async fn read(client: Client, lengths: Arc<std::sync::Mutex<Vec<usize>>>, done: Arc<AtomicBool>) {
    while !done.load(Ordering::Relaxed) {
        let newest =
            lengths.lock().expect("no holder panics").iter().copied().enumerate().next_back();
        let Some((number, length)) = newest else {
            tokio::task::yield_now().await;
            continue;
        };
        let get = kv::text(&format!("GET key-{number}"));
        let answered = client.query(kv::MACHINE, get, Consistency::Linearizable).await;
        let reply = answered.expect("a query is answered").reply;
        let value = kv::value(&reply).expect("it was written");
        assert_eq!(value.len(), length, "key {number}");
    }
}

/// Writes values of these lengths, each under a new key, while others read and, in between,
/// snapshots are taken.
async fn grow(cluster: &Cluster, written: &mut Vec<usize>, lengths: impl Iterator<Item = usize>) {
    let client = cluster.client().with_timeout(PATIENT);
    let known = Arc::new(std::sync::Mutex::new(written.clone()));
    let done = Arc::new(AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for _ in 0..3 {
        readers.spawn(read(client.clone(), Arc::clone(&known), Arc::clone(&done)));
    }
    let taken = Arc::new(AtomicUsize::new(0));
    readers.spawn({
        let (client, done, taken) = (client.clone(), Arc::clone(&done), Arc::clone(&taken));
        async move {
            while !done.load(Ordering::Relaxed) {
                client.snapshot().await.expect("a snapshot is taken");
                taken.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    for length in lengths {
        let key = format!("key-{}", written.len());
        client.execute(kv::MACHINE, set(&key, length)).await.expect("a write is answered");
        written.push(length);
        known.lock().expect("no holder panics").push(length);
    }
    done.store(true, Ordering::Relaxed);
    while let Some(ended) = readers.join_next().await {
        ended.expect("a reader found what was written");
    }
    assert!(taken.load(Ordering::Relaxed) > 0, "a snapshot was taken meanwhile");
}

/// One client writes values of 900 KB under new keys and others ask GET in a loop, then the same
/// with values of 1 byte to 1 MiB; snapshots are taken all the time, and the engine is changed in
/// between. No node ends, and all hold the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_grows_under_queries_and_snapshots() {
    let mut cluster = Plan::new(3).start().await;
    let mut written = Vec::new();
    grow(&cluster, &mut written, std::iter::repeat_n(LARGE, LARGE_VALUES)).await;

    let next = engine::next_profile().await;
    let mut sealing = Sealing::start(&cluster);
    sealing.says("next: restart each node").await;
    for id in cluster.ids() {
        engine::restart_with_next(&mut cluster, id).await;
    }
    engine::run_on(&cluster, &cluster.ids(), &next).await;
    sealing.ends().await;

    let lengths = (0..=20).map(|power| (1_usize << power).min(LONGEST));
    let rounds = (0..ROUNDS).flat_map(|_| lengths.clone());
    grow(&cluster, &mut written, rounds).await;
    cluster.level(&cluster.ids(), SOON).await;
    for id in cluster.ids() {
        assert!(cluster.node_mut(id).runs(), "node {id} has not ended");
    }
    engine::check_states(&cluster, &cluster.ids()).await;
}
