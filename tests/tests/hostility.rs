//! A guest that does its worst, among good commands: what fails costs itself, and replicas stay
//! equal.

use std::time::Duration;

use lockstep_client::{Consistency, Outcome, Stream, reason};
use lockstep_proto::v1::CheckpointReport;
use lockstep_tests::cluster::{Cluster, Plan, SOON};
use lockstep_tests::{kv, load, program};
use tokio::task::JoinSet;

/// Clients, each with a key of its own, on one stream: two for each kind of failure.
const CLIENTS: usize = 2 * POISON.len();
/// Good commands and failing ones, of all clients together.
const GOOD: usize = 100_000;
const POISONS: usize = 10_000;
/// What runs until it has no fuel.
const ENDLESS: [&str; 3] = ["spin", "remember and spin", "chatter"];
/// Enough for every good command, and soon used up by one without an end.
const FUEL: &str = "2000000";
/// Enough for what is odd as well: each of the 65,535 pages that are refused takes 255.
const FUEL_FOR_ODD: &str = "40000000";
const MEMORY_BYTES: &str = "4194304";
/// What fails, each in its own way.
const POISON: [&str; 15] = [
    "unreachable",
    "panic",
    "spin",
    "recurse",
    "recurse in memory",
    "remember and trap",
    "remember and spin",
    "long reply",
    "flood",
    "no replies",
    "falling ends",
    "end too far",
    "rejects another",
    "rejects twice",
    "chatter",
];
/// What succeeds, and does odd things on the way.
const ODD: [&str; 3] = ["eat memory", "grow too far", "nan"];
/// How long the load may take on a slow machine.
const LOAD_LIMIT: Duration = Duration::from_secs(400);

/// A machine for each kind of failure, side by side; 10,000 failing commands among 100,000 good
/// ones: each good one gets its own exact answer, each failing one an error that says that it was
/// applied and failed, the nodes stay up and small, nobody else leads, and all nodes have the same
/// memory in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_costs_itself_alone() {
    let mut cluster = Plan::new(3).start().await;
    let guest = program::guest("hostile");
    let path = guest.to_str().expect("a path that is text");
    for poison in POISON {
        let machine = machine_for(poison);
        let fuel = if ENDLESS.contains(&poison) { FUEL } else { FUEL_FOR_ODD };
        let limits = ["--fuel-per-command", fuel, "--memory-bytes", MEMORY_BYTES];
        let create = [&["machine", "create", &machine, path], &limits[..]].concat();
        cluster.run(&create).await.ok();
    }
    let before = cluster.statuses().await;
    let stream = cluster.client().stream();
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let random = fastrand::Rng::with_seed(cluster.random.u64(..));
        clients.spawn(client(stream.clone(), number, random));
    }
    let all = async {
        while let Some(ended) = clients.join_next().await {
            ended.expect("a client found an answer wrong");
        }
    };
    tokio::time::timeout(LOAD_LIMIT, all).await.expect("the load ends in time");
    cluster.level(&[1, 2, 3], SOON).await;
    for (before, now) in before.iter().zip(cluster.statuses().await) {
        assert_eq!(before.term, now.term, "node {}: nobody else leads", now.node_id);
    }
    for node in [1, 2, 3] {
        let resident = cluster.node(node).resident_bytes();
        assert!(resident < 400 << 20, "node {node} has {resident} bytes");
    }
    equal_digests(&cluster).await;
}

/// The machine on which commands fail in this way.
fn machine_for(poison: &str) -> String {
    poison.replace(' ', "-")
}

/// A client's share: its key is counted one by one, whatever fails around it.
async fn client(stream: Stream, number: usize, mut random: fastrand::Rng) {
    let poison = POISON[number % POISON.len()];
    let machine = machine_for(poison);
    let mut count = 0_u32;
    let (turns, poisons) = (GOOD.div_ceil(CLIENTS), POISONS.div_ceil(CLIENTS));
    for turn in 0..turns {
        let key = format!("count {number}");
        let good = stream.execute(&machine, key).await.expect("a good command is answered");
        count += 1;
        assert_eq!(good.reply, count.to_string(), "client {number}, turn {turn}");
        if random.usize(..turns) >= poisons {
            continue;
        }
        let failed = stream.execute(&machine, poison).await.expect_err(poison);
        assert_eq!(failed.outcome, Outcome::AppliedError, "{poison}: {failed}");
        let odd = ODD[random.usize(..ODD.len())];
        let done = stream.execute(&machine, odd).await;
        if odd == "grow too far" && ENDLESS.contains(&poison) {
            let error = done.expect_err("so many pages take more than the fuel");
            assert_eq!(error.reason, reason::OUT_OF_FUEL, "{poison}, {odd}: {error}");
        } else {
            done.expect(odd);
        }
    }
}

/// A guest that runs for seconds on every node holds up its own machine alone: queries of another
/// are answered meanwhile, and nobody else leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_runs_long_moves_no_leader() {
    let cluster = Plan::new(3).start().await;
    let guest = program::guest("hostile");
    let path = guest.to_str().expect("a path that is text");
    let long = ["machine", "create", "hostile", path, "--fuel-per-command", "4000000000"];
    cluster.run(&long).await.ok();
    let client = cluster.client();
    let stream = client.stream();
    load::write(&client, "k", "v").await;
    let before = cluster.statuses().await;
    for _ in 0..3 {
        let spin = stream.execute_within("hostile", "spin", LOAD_LIMIT);
        tokio::pin!(spin);
        let mut answered = 0;
        let error = loop {
            tokio::select! {
                biased;
                spun = &mut spin => break spun.expect_err("it runs out of fuel"),
                read = client.query(kv::MACHINE, kv::text("GET k"), Consistency::Stale) => {
                    assert_eq!(read.expect("another machine answers").reply, "$1\r\nv\r\n");
                    answered += 1;
                }
            }
        };
        assert_eq!(error.reason, reason::OUT_OF_FUEL, "{error}");
        assert!(answered > 10, "{answered} queries were answered meanwhile");
    }
    load::write(&client, "k", "w").await;
    for (before, now) in before.iter().zip(cluster.statuses().await) {
        assert_eq!(before.term, now.term, "node {}: nobody else leads", now.node_id);
    }
}

/// A failure after more commands than a node keeps in memory for it: they are found in the log
/// again, by each node, and the state is as if nothing had failed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_after_many_megabytes() {
    let cluster = Plan::new(3).start().await;
    let guest = program::guest("hostile");
    cluster.run(&["machine", "create", "hostile", guest.to_str().expect("text")]).await.ok();
    let stream = cluster.client().stream();
    let long = "x".repeat(700_000);
    for round in 1..=20_u32 {
        let echo = stream.execute("hostile", long.clone()).await.expect("it is repeated");
        assert_eq!(echo.reply.len(), long.len());
        let count = stream.execute("hostile", "count").await.expect("it is counted");
        assert_eq!(count.reply, round.to_string());
    }
    let failed = stream.execute("hostile", "unreachable").await.expect_err("it traps");
    assert_eq!(failed.outcome, Outcome::AppliedError, "{failed}");
    let count = stream.execute("hostile", "count").await.expect("it is counted");
    assert_eq!(count.reply, "21");
    equal_digests(&cluster).await;
}

/// Takes a checkpoint, and waits until every node has reported the same digest of it.
pub(crate) async fn equal_digests(cluster: &Cluster) {
    let said = cluster.run(&["snapshot"]).await.ok();
    let index: u64 = said.split(' ').find_map(|word| word.parse().ok()).expect("it says which");
    for id in cluster.ids() {
        cluster
            .node(id)
            .says("all report one digest", SOON, |status| {
                let checkpoint = status.checkpoints.iter().find(|found| found.index == index)?;
                let equal = |report: &CheckpointReport| report.digest == checkpoint.agreed;
                let all = checkpoint.reports.len() == 3 && checkpoint.reports.iter().all(equal);
                all.then_some(())
            })
            .await;
    }
}
