//! What clients meet when a node is frozen, when its address cannot be reached, or when too few
//! nodes are left: they go to another one, and say truly what became of what they asked for.

use std::time::{Duration, Instant};

use lockstep_client::{Client, Consistency, Outcome, reason};
use lockstep_tests::cluster::{Cluster, Plan, SOON};
use lockstep_tests::wait::until;
use lockstep_tests::{kv, load, ports, program};

/// Words that no message about a read may hold, and none about a command that was not sent.
const IN_DOUBT: &str = "may have been applied";

/// A frozen process still accepts connections. With one as the first endpoint, every call of the
/// command line is answered by the others, well before its deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_first_endpoint_is_passed_over() {
    let cluster = Plan::new(3).start().await;
    let leader = cluster.leader().await;
    let frozen = other_than(&cluster, leader);
    cluster.node(frozen).pause().await;
    let endpoints = endpoints_from(&cluster, frozen);
    let calls: [&[&str]; 8] = [
        &["kv", "--endpoint", &endpoints, "SET", "k", "v"],
        &["kv", "--endpoint", &endpoints, "GET", "k"],
        &["exec", "--machine", "kv", "--endpoint", &endpoints, "x"],
        &["query", "--machine", "kv", "--stale", "--endpoint", &endpoints, "x"],
        &["status", "--endpoint", &endpoints],
        &["machine", "list", "--endpoint", &endpoints],
        &["machine", "describe", "kv", "--endpoint", &endpoints],
        &["snapshot", "--endpoint", &endpoints],
    ];
    for call in calls {
        let started = Instant::now();
        let ran = program::run(call).await;
        let took = started.elapsed();
        let answered = ran.code == Some(0) || ran.err.contains("the guest rejected");
        assert!(answered, "{}: {}{}", ran.call, ran.out, ran.err);
        assert!(took < Duration::from_secs(4), "{} took {took:?}", ran.call);
    }
    cluster.node(frozen).resume();
}

/// The same where the frozen node is the leader: who names it points nowhere until the others have
/// elected another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_leader_is_passed_over() {
    let cluster = Plan::new(3).start().await;
    let leader = cluster.leader().await;
    load::write(&cluster.client(), "k", "v").await;
    cluster.node(leader).pause().await;
    let endpoints = endpoints_from(&cluster, leader);
    let ran = program::run(["kv", "--endpoint", &endpoints, "SET", "k", "w"]).await;
    assert_eq!(ran.ok(), "OK");
    let ran = program::run(["kv", "--endpoint", &endpoints, "GET", "k"]).await;
    assert_eq!(ran.ok(), "\"w\"");
    cluster.node(leader).resume();
}

/// Nothing was sent to a frozen node, so it is certain that nothing was applied; and whatever
/// becomes of a query, it is never in doubt, also where the connection was open before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_in_doubt_at_a_frozen_node() {
    let cluster = Plan::new(1).start().await;
    let connected = cluster.client().with_timeout(Duration::from_secs(4));
    load::write(&connected, "k", "v").await;
    cluster.node(1).pause().await;
    let fresh = cluster.client().with_timeout(Duration::from_secs(2));
    let failures = [
        ("execute", fresh.execute(kv::MACHINE, kv::text("SET k w")).await.err()),
        ("stream", fresh.stream().execute(kv::MACHINE, kv::text("SET k w")).await.err()),
        ("query", fresh.query(kv::MACHINE, kv::text("GET k"), Consistency::Stale).await.err()),
    ];
    for (call, error) in failures {
        let error = error.expect("the node is frozen");
        assert_eq!((error.outcome, error.reason.as_str()), (Outcome::NotApplied, "UNREACHABLE"));
        assert!(error.message.contains("stopped or hangs"), "{call}: {error}");
    }
    for consistency in [Consistency::Linearizable, Consistency::Stale] {
        let error = connected.query(kv::MACHINE, kv::text("GET k"), consistency).await;
        let error = error.expect_err("the node is frozen");
        assert_eq!(error.outcome, Outcome::NotApplied, "{error:?}");
        assert!(!error.message.contains(IN_DOUBT), "{error}");
    }
    let ran = cluster.run(&["status", "--timeout", "2"]).await;
    let said = ran.refused(&["stopped or hangs"]);
    assert!(!said.contains(IN_DOUBT), "{said}");
    cluster.node(1).resume();
    let read = load::read(&connected.with_timeout(SOON), "k", Consistency::Linearizable).await;
    assert_eq!(read.as_deref(), Some("v"), "what was not applied never is");
}

/// A client whose connection was open when the node froze finds the others: reads at once, and
/// commands once the connection is known to be dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_connections_to_a_frozen_leader_are_left() {
    let cluster = Plan::new(3).start().await;
    let leader = cluster.leader().await;
    let endpoints: Vec<String> =
        endpoints_from(&cluster, leader).split(',').map(str::to_owned).collect();
    let client = Client::connect(endpoints).expect("addresses are endpoints");
    load::write(&client, "k", "v").await;
    cluster.node(leader).pause().await;
    // Another one answers, which may not have applied the write.
    load::read(&client, "k", Consistency::Stale).await;
    let started = Instant::now();
    let read = load::read(&client.with_timeout(SOON), "k", Consistency::Linearizable).await;
    assert_eq!(read.as_deref(), Some("v"), "another one leads");
    assert!(started.elapsed() < Duration::from_secs(8), "it took {:?}", started.elapsed());
    // Nobody knows what a frozen node does with what was sent to it: such a write is not repeated.
    until("a write to arrive", SOON, async || {
        let written = client.execute(kv::MACHINE, kv::text("SET k w")).await;
        written.map(drop).map_err(|error| error.to_string())
    })
    .await;
    cluster.node(leader).resume();
}

/// Behind a port mapping nodes name addresses that a client cannot reach. It finds the leader
/// among its own endpoints; where that is not one of them, it says which address it could not
/// reach.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_address_cannot_be_reached_is_found() {
    let mut cluster = Plan::new(3).start().await;
    load::write(&cluster.client(), "k", "v").await;
    for id in cluster.ids() {
        let node = cluster.node_mut(id);
        node.stop().await;
        // The membership goes on naming the address before.
        node.client_addr = ports::address();
    }
    cluster.start_all().await;
    let leader = cluster.leader().await;
    for first in cluster.ids() {
        let endpoints = endpoints_from(&cluster, first);
        let ran = program::run(["kv", "--endpoint", &endpoints, "GET", "k"]).await;
        assert_eq!(ran.ok(), "\"v\"", "from node {first}");
        let ran = program::run(["kv", "--endpoint", &endpoints, "SET", "k", "v"]).await;
        assert_eq!(ran.ok(), "OK", "from node {first}");
    }
    let follower = cluster.node(other_than(&cluster, leader)).client_addr.clone();
    let status = cluster.node(leader).status().await.expect("it answers");
    let known = status.nodes.iter().find(|node| node.node_id == leader).expect("it is a member");
    let named = known.client_addr.clone();
    assert_ne!(named, cluster.node(leader).client_addr);
    let alone = ["kv", "--endpoint", &follower, "--timeout", "2", "SET", "k", "w"];
    let said = program::run(alone).await.refused(&[&named, "cannot connect"]);
    assert!(!said.contains(IN_DOUBT), "{said}");
}

/// Without a majority a follower cannot hand a write to any leader: the write was not applied, and
/// the command line does not say that it may have been. With forwarding and without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_in_doubt() {
    for flag in ["--forward=false", "--forward"] {
        let mut plan = Plan::new(3);
        if flag == "--forward" {
            plan = plan.flag(flag);
        }
        let mut cluster = plan.start().await;
        let leader = cluster.leader().await;
        let left = other_than(&cluster, leader);
        let client = Client::connect(cluster.endpoints().split(',')).expect("they are endpoints");
        load::write(&client, "k", "v").await;
        for id in cluster.ids().into_iter().filter(|id| *id != left) {
            cluster.node_mut(id).kill().await;
        }
        for timeout in ["1", "2", "3"] {
            for first in cluster.ids() {
                let endpoints = endpoints_from(&cluster, first);
                let call = ["kv", "--endpoint", &endpoints, "--timeout", timeout, "SET", "k", "w"];
                let ran = program::run(call).await;
                assert_eq!(ran.code, Some(1), "{flag}: {}", ran.out);
                assert!(!ran.err.contains(IN_DOUBT), "{flag}: {}", ran.err);
            }
        }
        let client = client.with_timeout(Duration::from_secs(2));
        for stream in [false, true] {
            let command = kv::text("SET k w");
            let result = match stream {
                true => client.stream().execute(kv::MACHINE, command).await,
                false => client.execute(kv::MACHINE, command).await,
            };
            let error = result.expect_err("there is no majority");
            assert_eq!(error.outcome, Outcome::NotApplied, "{flag}: {error:?}");
            assert_ne!(error.reason, reason::DEADLINE_EXCEEDED, "{flag}: {error:?}");
        }
    }
}

fn other_than(cluster: &Cluster, id: u64) -> u64 {
    cluster.ids().into_iter().find(|other| *other != id).expect("there are others")
}

/// The endpoints of all nodes, this one's first.
fn endpoints_from(cluster: &Cluster, first: u64) -> String {
    let others = cluster.ids().into_iter().filter(|id| *id != first);
    let all = std::iter::once(first).chain(others);
    let all: Vec<_> = all.map(|id| cluster.node(id).client_addr.clone()).collect();
    all.join(",")
}
