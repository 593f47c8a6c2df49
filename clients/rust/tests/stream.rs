//! Many callers on one stream: each gets the reply to its own command, and each command lost with a
//! connection is UNKNOWN exactly if it was sent.

mod fake;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fake::{Answer, Node};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use lockstep_client::{Client, Options, Outcome, reason};
use tonic::Code;

/// 200 callers, 50 commands each, on one stream with few places: every caller gets its own reply.
#[tokio::test]
async fn replies_reach_their_callers() {
    let node = Node::start(|_, _| Answer::Echo).await;
    let options = Options { stream_in_flight_max: 16, ..Options::default() };
    let client = Client::with_options([node.address.as_str()], options).unwrap();
    let stream = client.stream();
    let callers: FuturesUnordered<_> = (0..200)
        .map(|caller| {
            let stream = stream.clone();
            async move {
                for command in 0..50 {
                    let bytes = format!("{caller}-{command}");
                    let executed = stream.execute("m", bytes.clone()).await.unwrap();
                    assert_eq!(executed.reply, bytes);
                }
            }
        })
        .collect();
    assert_eq!(callers.count().await, 200);
    assert_eq!(node.calls(), 200 * 50);
}

/// Commands are sent in the order in which callers sent them.
#[tokio::test]
async fn order_is_kept() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let node = Node::start(move |_, command| {
        log.lock().unwrap().push(command.to_vec());
        Answer::Echo
    })
    .await;
    let stream = Client::connect([node.address.as_str()]).unwrap().stream();
    let commands: Vec<Vec<u8>> = (0..1000).map(|n: u32| n.to_be_bytes().to_vec()).collect();
    let calls = commands.iter().map(|command| stream.execute("m", command.clone()));
    let results = futures::future::join_all(calls).await;
    assert!(results.iter().all(Result::is_ok));
    assert!(*seen.lock().unwrap() == commands, "commands were sent in another order");
}

/// A connection breaks with commands under way: those are UNKNOWN and not sent again, and later
/// commands go on a new connection.
#[tokio::test]
async fn a_broken_connection_is_replaced() {
    let node = Node::start(|call, _| match call {
        0..9 => Answer::Hang,
        9 => Answer::Break,
        _ => Answer::Echo,
    })
    .await;
    let stream = Client::connect([node.address.as_str()]).unwrap().stream();
    let calls = (0..10).map(|_| stream.execute("m", "lost"));
    for result in futures::future::join_all(calls).await {
        assert_eq!(result.unwrap_err().outcome, Outcome::Unknown);
    }
    assert_eq!(stream.execute("m", "next").await.unwrap().reply, "next");
    assert_eq!(node.calls(), 11);
}

/// A node that stops being the leader: its commands go to the new leader, each exactly once there,
/// while what it still has under way is answered by it.
#[tokio::test]
async fn a_moved_leader_is_followed() {
    let new = Node::start(|_, _| Answer::Echo).await;
    let address = new.address.clone();
    let old = Node::start(move |call, _| match call {
        0 => Answer::Echo,
        _ => Answer::Fail(
            Code::Unavailable,
            reason::NOT_LEADER,
            "NOT_APPLIED",
            Some(address.clone()),
        ),
    })
    .await;
    let stream = Client::connect([old.address.as_str()]).unwrap().stream();
    let calls = (0..100).map(|n| stream.execute("m", format!("{n}")));
    for (n, result) in futures::future::join_all(calls).await.into_iter().enumerate() {
        assert_eq!(result.unwrap().reply, format!("{n}"));
    }
    assert_eq!(new.calls(), 99);
}

/// Commands that found no place before their deadline were never sent, and say so.
#[tokio::test]
async fn waiting_commands_are_not_applied() {
    let node = Node::start(|_, _| Answer::Hang).await;
    let options = Options {
        stream_in_flight_max: 1,
        timeout: Duration::from_millis(200),
        ..Options::default()
    };
    let stream = Client::with_options([node.address.as_str()], options).unwrap().stream();
    let results = futures::future::join_all((0..4).map(|_| stream.execute("m", "a"))).await;
    let outcomes: Vec<Outcome> = results.into_iter().map(|r| r.unwrap_err().outcome).collect();
    assert_eq!(outcomes[0], Outcome::Unknown);
    assert_eq!(outcomes[1..], [Outcome::NotApplied; 3]);
    assert_eq!(node.calls(), 1);
}

/// A forwarder asks once and follows nobody: the client behind it does.
#[tokio::test]
async fn a_forwarder_asks_once() {
    let elsewhere = Node::start(|_, _| Answer::Echo).await;
    let address = elsewhere.address.clone();
    let leads = Arc::new(AtomicBool::new(false));
    let script_leads = Arc::clone(&leads);
    let node = Node::start(move |_, _| {
        let leader = Some(address.clone());
        match script_leads.load(Ordering::SeqCst) {
            true => Answer::Echo,
            false => Answer::Fail(Code::Unavailable, reason::NOT_LEADER, "NOT_APPLIED", leader),
        }
    })
    .await;
    let options = Options { forwarder: true, ..Options::default() };
    let client = Client::with_options([node.address.as_str()], options).unwrap();
    let stream = client.stream();
    assert_eq!(stream.execute("m", "a").await.unwrap_err().reason, reason::NOT_LEADER);
    assert_eq!(client.execute("m", "a").await.unwrap_err().reason, reason::NOT_LEADER);
    leads.store(true, Ordering::SeqCst);
    assert_eq!(stream.execute("m", "a").await.unwrap().reply, "a");
    assert_eq!((node.calls(), elsewhere.calls()), (3, 0));
}

/// A forwarder whose node is gone says so at once, each time: the client behind it has a deadline.
#[tokio::test]
async fn a_forwarder_does_not_wait() {
    let gone = Node::start(|_, _| Answer::Echo).await.address.clone();
    let options = Options { forwarder: true, ..Options::default() };
    let stream = Client::with_options([gone], options).unwrap().stream();
    let started = std::time::Instant::now();
    for _ in 0..20 {
        let error = stream.execute("m", "a").await.unwrap_err();
        assert_eq!((error.outcome, error.reason.as_str()), (Outcome::NotApplied, "UNREACHABLE"));
    }
    assert!(started.elapsed() < Duration::from_secs(5), "it took {:?}", started.elapsed());
}
