//! Many clients on few keys while things are done to the cluster: what all of them were told can be
//! explained by one register a key (`lockstep_tests::history` says how this is shown). These are
//! slices of the runs that `cargo xtask soak history` makes for as long as one likes.

use std::time::Duration;

use lockstep_client::Consistency;
use lockstep_history::{Action, History, Operation, Outcome, Reply, Violation, check};
use lockstep_tests::cluster::Plan;
use lockstep_tests::history::{Kind, Settings, run};
use lockstep_tests::{kv, load};

/// How long things are done to a cluster here.
const SLICE: Duration = Duration::from_secs(11);

/// Processes are killed, frozen and stopped under 16 clients: their history is linearizable, the
/// cluster goes on after each, and all nodes are equal in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_with_crashes_is_linearizable() {
    run(&Settings::new(Kind::Crashes, SLICE)).await;
}

/// The same while ways between nodes are cut in one direction or both, and leadership moves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_with_cuts_is_linearizable() {
    run(&Settings::new(Kind::Network, SLICE)).await;
}

/// The same while members come and go, clocks jump, and leaders are killed at it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_with_changes_is_linearizable() {
    run(&Settings::new(Kind::Changes, SLICE)).await;
}

/// What these runs would refuse: a node that is cut off answers a stale read with what was there
/// before; taken for a linearizable read, it makes the history one that can't be explained.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_read_makes_a_history_that_is_refused() {
    let cluster = Plan::new(3).linked().start().await;
    let (client, leader) = (cluster.client(), cluster.leader().await);
    let follower = cluster.node(leader % 3 + 1);
    load::write(&client, "k", "a").await;
    cluster.level(&[follower.id], Duration::from_secs(30)).await;
    cluster.isolate(follower.id);
    load::write(&client, "k", "b").await;
    let fresh = load::read(&client, "k", Consistency::Linearizable).await;
    let stale = load::read(&follower.client(), "k", Consistency::Stale).await;
    let told = [
        (Action::Set("a".to_owned()), Reply::Done),
        (Action::Set("b".to_owned()), Reply::Done),
        (Action::Get, Reply::Value(fresh)),
        (Action::Get, Reply::Value(stale)),
    ];
    let operations = told.into_iter().zip((0..).step_by(2)).map(|((action, reply), called_us)| {
        let outcome = Outcome::Answered { reply, index: called_us };
        let ended_us = called_us + 1;
        let (route, key, note) = ("leader".to_owned(), "k".to_owned(), String::new());
        Operation { client: 0, route, key, action, called_us, ended_us, outcome, note }
    });
    let mut history = History { operations: operations.collect(), ..History::default() };
    match check(&history) {
        Err(Violation::Unplaced(unplaced)) => assert_eq!(unplaced.operation.called_us, 6),
        other => panic!("the stale read is taken for a fresh one: {other:?}"),
    }
    history.operations.pop();
    assert!(check(&history).is_ok(), "all but the stale read is right");
}

/// A command that a leader took, and could not get agreed before its deadline, is of unknown
/// outcome, by a call, on a stream, and through a node that forwards: it may be applied later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_was_taken_is_unknown_at_its_deadline() {
    // With one entry under way at a time, what waits behind it is not taken, and says so.
    let plan = Plan::new(3).linked().flag("--forward").config("entries_in_flight_max = 16");
    let cluster = plan.start().await;
    let leader = cluster.leader().await;
    let short = Duration::from_millis(600);
    let at_leader = cluster.node(leader).client().with_timeout(short);
    let forwards = cluster.node(leader % 3 + 1).client().with_timeout(short);
    let stream = at_leader.stream();
    load::write(&cluster.client(), "k", "before").await;
    stream.execute(kv::MACHINE, kv::text("GET k")).await.expect("the stream is open");
    forwards.execute(kv::MACHINE, kv::text("GET k")).await.expect("it forwards");

    cluster.isolate(leader);
    let call = at_leader.execute(kv::MACHINE, kv::text("SET a v"));
    let streamed = stream.execute(kv::MACHINE, kv::text("SET b v"));
    let forwarded = forwards.execute(kv::MACHINE, kv::text("SET c v"));
    let (call, streamed, forwarded) = tokio::join!(call, streamed, forwarded);
    for (way, result) in [("call", call), ("stream", streamed), ("forwarded", forwarded)] {
        let error = result.expect_err("nobody agrees");
        assert_eq!(error.outcome, lockstep_client::Outcome::Unknown, "{way}: {error:?}");
    }
    cluster.heal();
    load::write(&cluster.client(), "k", "after").await;
}
