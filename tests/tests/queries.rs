//! What long queries cost others: a command waits for one call of queries at most, and a query
//! ends with its deadline.

use std::time::Duration;

use lockstep_client::{Client, Consistency, Error, reason};
use lockstep_tests::cluster::{Cluster, Plan, SOON};
use lockstep_tests::program;
use tokio::task::JoinSet;

/// Queries without an end, asked at once.
const SPINNING: usize = 40;
/// Commands that are answered meanwhile, though each has to be agreed on first.
const COMMANDS_MIN: u32 = 4;

async fn create(cluster: &Cluster, limits: &[&str]) {
    let guest = program::guest("hostile").display().to_string();
    let call = [&["machine", "create", "hostile", &guest], limits].concat();
    cluster.run(&call).await.ok();
}

async fn spin(client: Client, consistency: Consistency) -> Error {
    client.query("hostile", "spin", consistency).await.expect_err("it has no end")
}

/// Queries that use up all of their fuel, asked at once, hold commands up one at a time: commands
/// are answered in between, and each query in the end as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_answered_between_long_queries() {
    let cluster = Plan::new(3).start().await;
    create(&cluster, &[]).await;
    let client = cluster.client().with_timeout(SOON);
    let mut queries = JoinSet::new();
    for _ in 0..SPINNING {
        queries.spawn(spin(client.clone(), Consistency::Linearizable));
    }
    let mut commands: u32 = 0;
    while !queries.is_empty() {
        let counted = client.execute("hostile", "count").await.expect("a command is answered");
        commands += 1;
        assert_eq!(counted.reply, commands.to_string());
        while let Some(ended) = queries.try_join_next() {
            let error = ended.expect("it does not panic");
            assert_eq!(error.reason, reason::OUT_OF_FUEL, "{error}");
        }
    }
    assert!(commands >= COMMANDS_MIN, "{commands} commands were answered meanwhile");
}

/// A query that has fuel for a minute and a deadline of half a second ends with that: commands
/// after it are answered long before the minute is over, on every node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_ends_with_its_deadline() {
    let cluster = Plan::new(3).start().await;
    create(&cluster, &["--fuel-per-query", "100000000000"]).await;
    for node in cluster.ids() {
        let client = cluster.node(node).client().with_timeout(Duration::from_millis(500));
        for _ in 0..3 {
            let error = spin(client.clone(), Consistency::Stale).await;
            assert_eq!(error.reason, reason::DEADLINE_EXCEEDED, "{error}");
        }
    }
    let client = cluster.client().with_timeout(SOON / 2);
    client.execute("hostile", "count").await.expect("the leader's guest is free");
    cluster.level(&cluster.ids(), SOON / 2).await;
    for node in cluster.ids() {
        let client = cluster.node(node).client().with_timeout(SOON / 2);
        let answered = client.query("hostile", "hello", Consistency::Stale).await;
        assert_eq!(answered.expect("the guest of each node is free").reply, "hello", "node {node}");
    }
}
