//! What reads may rely on.

use std::time::Duration;

use lockstep_client::{Consistency, reason};
use lockstep_tests::cluster::{Plan, SOON};
use lockstep_tests::wait::{throughout, until};
use lockstep_tests::{kv, load};

/// A read after an acknowledged write sees it, whichever node is asked: linearizable reads always,
/// stale ones once that node has applied the write's index.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_after_writes_are_consistent_on_every_node() {
    let cluster = Plan::new(3).flag("--forward").start().await;
    let clients: Vec<_> = cluster.nodes.iter().map(|node| node.client()).collect();
    for round in 0..30 {
        let (writer, value) = (round % 3, format!("v{round}"));
        let index = load::write(&clients[writer], "k", &value).await;
        for client in &clients {
            let read = load::read(client, "k", Consistency::Linearizable).await;
            assert_eq!(read.as_ref(), Some(&value), "round {round}");
        }
        for client in &clients {
            let answered = until("a node to apply the write", SOON, async || {
                let answered = client.query(kv::MACHINE, kv::text("GET k"), Consistency::Stale);
                let answered = answered.await.map_err(|error| error.to_string())?;
                let applied = answered.applied_index;
                if applied >= index { Ok(answered) } else { Err(format!("it is at {applied}")) }
            });
            assert_eq!(kv::value(&answered.await.reply).as_ref(), Some(&value), "round {round}");
        }
    }
}

/// A leader that is cut off from the others serves no linearizable read, from the moment on at
/// which a new leader may have acknowledged a write; a stale read says which index it is of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partitioned_leader_serves_no_linearizable_read() {
    let cluster = Plan::new(3).linked().start().await;
    let old = cluster.leader().await;
    let at_old = cluster.node(old).client().with_timeout(Duration::from_millis(500));
    load::write(&cluster.client(), "k", "before").await;

    cluster.isolate(old);
    let new = cluster.leader_other_than(old).await;
    let at_new = cluster.node(new).client();
    let written = load::write(&at_new, "k", "after").await;

    throughout("the old leader serves no read", Duration::from_secs(3), async || {
        let get = kv::text("GET k");
        match at_old.query(kv::MACHINE, get, Consistency::Linearizable).await {
            Ok(answered) => Err(format!("it answered {:?}", answered.reply)),
            Err(_) => Ok(()),
        }
    })
    .await;
    let stale = at_old.query(kv::MACHINE, kv::text("GET k"), Consistency::Stale).await;
    let stale = stale.expect("a stale read is served");
    assert_eq!(kv::value(&stale.reply).as_deref(), Some("before"));
    assert!(stale.applied_index < written, "it says how old it is");

    cluster.heal();
    until("the old leader to follow", SOON, async || {
        let read = at_old.query(kv::MACHINE, kv::text("GET k"), Consistency::Linearizable).await;
        match read {
            Ok(answered) if kv::value(&answered.reply).as_deref() == Some("after") => Ok(()),
            // The client that knows one node alone is told who leads.
            Err(error) if error.reason == reason::NOT_LEADER => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// A leader that was frozen while another one took over serves nothing old when it goes on: a
/// read that waited in it is answered from after the new leader's write, or not at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_leader_wakes_up_without_old_reads() {
    let cluster = Plan::new(3).start().await;
    let old = cluster.leader().await;
    load::write(&cluster.client(), "k", "before").await;
    let at_old = cluster.node(old).client().with_timeout(SOON);
    // The connection is open before the freeze, so that the read waits inside the node.
    load::read(&at_old, "k", Consistency::Stale).await;

    cluster.node(old).pause().await;
    let read = tokio::spawn(async move {
        at_old.query(kv::MACHINE, kv::text("GET k"), Consistency::Linearizable).await
    });
    let new = cluster.leader_other_than(old).await;
    load::write(&cluster.node(new).client(), "k", "after").await;
    cluster.node(old).resume();

    if let Ok(answered) = read.await.expect("the reader does not panic") {
        assert_eq!(kv::value(&answered.reply).as_deref(), Some("after"));
    }
}

/// A request to a follower is answered with the leader's address, which a client follows; with
/// `--forward`, or where the client asks for it, the follower passes it on by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_names_the_leader_or_forwards() {
    use lockstep_proto::v1::{ExecuteRequest, client_client::ClientClient};

    for (by_flag, asked) in [(false, false), (true, false), (false, true)] {
        let forwards = by_flag || asked;
        let mut plan = Plan::new(3);
        if by_flag {
            plan = plan.flag("--forward");
        }
        let cluster = plan.start().await;
        let leader = cluster.leader().await;
        let follower = cluster.ids().into_iter().find(|id| *id != leader).expect("two follow");
        let address = format!("http://{}", cluster.node(follower).client_addr);
        let mut service = ClientClient::connect(address).await.expect("the follower answers");
        let mut request = tonic::Request::new(ExecuteRequest {
            machine: kv::MACHINE.to_owned(),
            command: kv::text("SET k v"),
            session: None,
        });
        if asked {
            let value = "1".parse().expect("it is text");
            request.metadata_mut().insert(lockstep_client::FORWARD_HEADER, value);
        }
        match service.execute(request).await {
            Ok(reply) => {
                assert!(forwards, "a follower orders nothing");
                assert_eq!(reply.into_inner().reply, "+OK\r\n");
            }
            Err(status) => {
                assert!(!forwards, "it forwards: {status}");
                let error = lockstep_client::Error::from_status(&status);
                assert_eq!(error.reason, reason::NOT_LEADER);
                assert_eq!(error.outcome, lockstep_client::Outcome::NotApplied);
                assert_eq!(error.leader_addr.as_ref(), Some(&cluster.node(leader).client_addr));
            }
        }
        // A client that was given the follower alone gets there in both cases.
        load::write(&cluster.node(follower).client(), "k", "w").await;
    }
}
