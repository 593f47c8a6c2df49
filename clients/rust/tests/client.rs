//! The client against nodes that fail as scripted: what is sent again, what is not, and where.

mod fake;

use std::time::Duration;

use fake::{Answer, Node};
use lockstep_client::{Client, Consistency, Outcome, reason};
use tonic::Code;

fn not_leader(leader: Option<String>) -> Answer {
    Answer::Fail(Code::Unavailable, reason::NOT_LEADER, "NOT_APPLIED", leader)
}

/// A redirect is followed to the leader, and remembered.
#[tokio::test]
async fn redirects_are_followed() {
    let leader = Node::start(|_, _| Answer::Echo).await;
    let address = leader.address.clone();
    let follower = Node::start(move |_, _| not_leader(Some(address.clone()))).await;
    let client = Client::connect([follower.address.as_str()]).unwrap();
    for _ in 0..3 {
        assert_eq!(client.execute("m", "a").await.unwrap().reply, "a");
    }
    assert_eq!((follower.calls(), leader.calls()), (1, 3));
}

/// NOT_APPLIED and transient: sent again until it succeeds.
#[tokio::test]
async fn what_was_not_applied_is_sent_again() {
    let node = Node::start(|call, _| match call {
        0 => Answer::Fail(Code::Unavailable, reason::NO_LEADER, "NOT_APPLIED", None),
        1 => Answer::Fail(Code::ResourceExhausted, reason::OVERLOADED, "NOT_APPLIED", None),
        _ => Answer::Echo,
    })
    .await;
    let client = Client::connect([node.address.as_str()]).unwrap();
    assert_eq!(client.execute("m", "a").await.unwrap().reply, "a");
    assert_eq!(node.calls(), 3);
}

/// A command whose outcome is unknown, or that was applied, is sent once, whoever says so.
#[tokio::test]
async fn what_may_be_applied_is_sent_once() {
    let rows = [
        (Answer::Break, Outcome::Unknown),
        (Answer::Fail(Code::Unavailable, "LEADER_CHANGED", "UNKNOWN", None), Outcome::Unknown),
        (Answer::Fail(Code::Unavailable, "NEWER", "NEWER", None), Outcome::Unknown),
        (
            Answer::Fail(Code::FailedPrecondition, "GUEST_TRAP", "APPLIED_ERROR", None),
            Outcome::AppliedError,
        ),
    ];
    for (answer, outcome) in rows {
        let node = Node::start(move |_, _| answer.clone()).await;
        let client = Client::connect([node.address.as_str()]).unwrap();
        let error = client.execute("m", "a").await.unwrap_err();
        assert_eq!((error.outcome, node.calls()), (outcome, 1), "{error:?}");
        let stream = client.stream();
        let error = stream.execute("m", "a").await.unwrap_err();
        assert_eq!((error.outcome, node.calls()), (outcome, 2), "stream: {error:?}");
    }
}

/// A query changes nothing, so it is repeated even where its first attempt is in doubt.
#[tokio::test]
async fn queries_are_repeated() {
    let node = Node::start(|call, _| match call {
        0 => Answer::Fail(Code::Unavailable, reason::LEADER_CHANGED, "UNKNOWN", None),
        _ => Answer::Echo,
    })
    .await;
    let client = Client::connect([node.address.as_str()]).unwrap();
    let answered = client.query("m", "q", Consistency::Linearizable).await.unwrap();
    assert_eq!((answered.reply.as_ref(), node.calls()), (&b"q"[..], 2));
}

/// A deadline that passes after sending is UNKNOWN; without any connection it is NOT_APPLIED.
#[tokio::test]
async fn deadlines() {
    let node = Node::start(|_, _| Answer::Hang).await;
    let client =
        Client::connect([node.address.as_str()]).unwrap().with_timeout(Duration::from_millis(150));
    let error = client.execute("m", "a").await.unwrap_err();
    assert_eq!((error.outcome, error.reason.as_str()), (Outcome::Unknown, "DEADLINE_EXCEEDED"));
    let error = client.stream().execute("m", "a").await.unwrap_err();
    assert_eq!((error.outcome, error.reason.as_str()), (Outcome::Unknown, "DEADLINE_EXCEEDED"));
    let address = node.address.clone();
    drop(node);
    let nobody = Client::connect([address]).unwrap().with_timeout(Duration::from_millis(150));
    let error = nobody.execute("m", "a").await.unwrap_err();
    assert_eq!((error.outcome, error.reason.as_str()), (Outcome::NotApplied, "UNREACHABLE"));
    let error = nobody.stream().execute("m", "a").await.unwrap_err();
    assert_eq!((error.outcome, error.reason.as_str()), (Outcome::NotApplied, "UNREACHABLE"));
}

/// What a node said before the deadline passed tells more of a query than that it passed; of a
/// command, nothing may hide that it may be applied.
#[tokio::test]
async fn answers_before_the_deadline_are_told() {
    let script = |call, _: &[u8]| match call % 2 {
        0 => Answer::Fail(Code::Unavailable, reason::NO_LEADER, "NOT_APPLIED", None),
        _ => Answer::Hang,
    };
    let node = Node::start(script).await;
    let client =
        Client::connect([node.address.as_str()]).unwrap().with_timeout(Duration::from_secs(1));
    let error = client.query("m", "q", Consistency::Linearizable).await.unwrap_err();
    assert_eq!((error.outcome, error.reason.as_str()), (Outcome::NotApplied, "NO_LEADER"));
    assert_eq!(node.calls(), 2);
    let error = client.execute("m", "a").await.unwrap_err();
    assert_eq!((error.outcome, error.reason.as_str()), (Outcome::Unknown, "DEADLINE_EXCEEDED"));
}

/// A dead endpoint in the list costs a dial, not the request.
#[tokio::test]
async fn dead_endpoints_are_passed_over() {
    let dead = Node::start(|_, _| Answer::Echo).await.address.clone();
    let node = Node::start(|_, _| Answer::Echo).await;
    let client = Client::connect([dead, node.address.clone()]).unwrap();
    assert_eq!(client.execute("m", "a").await.unwrap().reply, "a");
    let client = Client::connect(["127.0.0.1:1".to_owned(), node.address.clone()]).unwrap();
    assert_eq!(client.stream().execute("m", "a").await.unwrap().reply, "a");
}

/// A server that accepts connections and says nothing, as a stopped process does.
async fn silent() -> (String, tokio::net::TcpListener) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    (listener.local_addr().expect("it is bound").to_string(), listener)
}

/// A node that accepts connections and says nothing costs a second, not the request, and nothing is
/// sent to it: not when it is the only one either.
#[tokio::test]
async fn silent_endpoints_are_passed_over() {
    let (silent, _listener) = silent().await;
    let node = Node::start(|_, _| Answer::Echo).await;
    let client = Client::connect([silent.clone(), node.address.clone()]).unwrap();
    assert_eq!(client.execute("m", "a").await.unwrap().reply, "a");
    let client = Client::connect([silent.clone(), node.address.clone()]).unwrap();
    assert_eq!(client.stream().execute("m", "a").await.unwrap().reply, "a");
    let client = Client::connect([silent.clone(), node.address.clone()]).unwrap();
    assert_eq!(client.query("m", "q", Consistency::Linearizable).await.unwrap().reply, "q");
    let alone = Client::connect([silent]).unwrap().with_timeout(Duration::from_secs(2));
    let error = alone.execute("m", "a").await.unwrap_err();
    assert_eq!((error.outcome, error.reason.as_str()), (Outcome::NotApplied, "UNREACHABLE"));
    assert!(error.message.contains("stopped or hangs"), "{error}");
}

/// A read that has waited for one node asks another one as well, and the first answer counts; a
/// command goes to one node only.
#[tokio::test]
async fn reads_are_hedged() {
    let slow = Node::start(|_, _| Answer::Hang).await;
    let node = Node::start(|_, _| Answer::Echo).await;
    let client = Client::connect([slow.address.clone(), node.address.clone()]).unwrap();
    assert_eq!(client.query("m", "q", Consistency::Stale).await.unwrap().reply, "q");
    assert_eq!((slow.calls(), node.calls()), (1, 1));
    let client = Client::connect([slow.address.clone(), node.address.clone()]).unwrap();
    let error = client.with_timeout(Duration::from_secs(2)).execute("m", "a").await.unwrap_err();
    assert_eq!((error.outcome, slow.calls(), node.calls()), (Outcome::Unknown, 2, 1));
}

/// No error of a query says that anything may have been applied, whoever failed.
#[tokio::test]
async fn queries_are_never_in_doubt() {
    let rows = [
        Answer::Hang,
        Answer::Break,
        Answer::Fail(Code::Unavailable, reason::LEADER_CHANGED, "UNKNOWN", None),
        Answer::Fail(Code::Internal, reason::STOPPED, "UNKNOWN", None),
    ];
    for answer in rows {
        let node = Node::start(move |_, _| answer.clone()).await;
        let client = Client::connect([node.address.as_str()]).unwrap();
        let client = client.with_timeout(Duration::from_millis(300));
        let error = client.query("m", "q", Consistency::Linearizable).await.unwrap_err();
        assert_eq!(error.outcome, Outcome::NotApplied, "{error:?}");
        assert!(!error.message.contains("applied"), "{error}");
    }
}

/// Where the leader's address, as nodes name it, cannot be reached, the client asks its other
/// endpoints, and then to be passed on. What cannot be done at all names the address.
#[tokio::test]
async fn unreachable_leaders_are_asked_around() {
    let gone = Node::start(|_, _| Answer::Echo).await.address.clone();
    let hidden = gone.clone();
    let follower = Node::start(move |_, _| not_leader(Some(hidden.clone()))).await;
    let leader = Node::start(|_, _| Answer::Echo).await;
    let endpoints = [follower.address.clone(), leader.address.clone()];
    let client = Client::connect(endpoints).unwrap();
    for _ in 0..3 {
        assert_eq!(client.execute("m", "a").await.unwrap().reply, "a");
    }
    assert_eq!((follower.calls(), leader.calls()), (1, 3));

    let hidden = gone.clone();
    let passes_on = Node::start(move |_, _| Answer::Forward(hidden.clone())).await;
    let client = Client::connect([passes_on.address.as_str()]).unwrap();
    assert_eq!(client.execute("m", "a").await.unwrap().reply, "a");
    assert_eq!(client.query("m", "q", Consistency::Linearizable).await.unwrap().reply, "q");
    assert_eq!(client.stream().execute("m", "a").await.unwrap().reply, "a");

    let client = Client::connect([follower.address.as_str()]).unwrap();
    let client = client.with_timeout(Duration::from_millis(500));
    let error = client.execute("m", "a").await.unwrap_err();
    assert_eq!(error.outcome, Outcome::NotApplied, "{error:?}");
    assert!(error.message.contains(&gone) && error.message.contains("cannot connect"), "{error}");
}

/// What every node would refuse is refused before it is sent.
#[tokio::test]
async fn oversized_commands_are_not_sent() {
    let node = Node::start(|_, _| Answer::Echo).await;
    let client = Client::connect([node.address.as_str()]).unwrap();
    let command = vec![0; lockstep_client::COMMAND_BYTES_MAX + 1];
    let error = client.execute("m", command.clone()).await.unwrap_err();
    assert_eq!((error.outcome, error.reason.as_str()), (Outcome::NotApplied, "TOO_LARGE"));
    assert!(client.query("m", command.clone(), Consistency::Stale).await.is_err());
    assert!(client.stream().execute("m", command).await.is_err());
    assert_eq!(node.calls(), 0);
}

/// Endpoints that are none are refused by name, without a dial.
#[test]
fn endpoints_are_checked() {
    assert!(Client::connect(["nonsense"]).err().unwrap().message.contains("nonsense"));
    assert!(Client::connect(Vec::<String>::new()).is_err());
}
