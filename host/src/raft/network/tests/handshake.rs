//! Who is refused, with which words, and that nothing of it reaches openraft.

use bytes::Bytes;
use lockstep_proto::peer;
use lockstep_proto::peer::Hello;
use lockstep_proto::peer::peer_client::PeerClient;
use openraft::RaftNetworkFactory as _;
use openraft::async_runtime::WatchReceiver as _;
use openraft::network::{RPCOption, RaftNetworkV2 as _};
use openraft::raft::{AppendEntriesRequest, VoteRequest};
use tonic::Code;
use tonic::transport::Channel;

use super::node::{CLUSTER, DEADLINE, Node, incarnation, local, member};
use crate::raft::network::roster::Roster;
use crate::raft::network::{Local, Network, payload};
use crate::raft::store::convert::vote_to_raft;
use crate::types::{ClusterId, NodeId, Vote};

/// A change that makes a right hello wrong.
type Change = fn(&mut Hello);

async fn connect(node: &Node) -> PeerClient<Channel> {
    PeerClient::connect(format!("http://{}", node.address)).await.unwrap()
}

fn hello_to(node: &Node, to: u64) -> Hello {
    let (caller, _) = local(1, Some(CLUSTER));
    caller.hello(NodeId(to), &member(to, node.address)).unwrap()
}

fn vote_request(hello: Option<Hello>) -> peer::VoteRequest {
    let vote = Vote { term: 5, node: NodeId(1), committed: false };
    let payload = payload::encode_vote_request(&VoteRequest::new(vote_to_raft(vote), None));
    peer::VoteRequest { hello, payload, pre_vote: false }
}

/// Each wrong hello is refused with its reason, on unary calls and on streams, before openraft
/// sees anything; the reason is kept for the operator until a right hello comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_hello_is_refused() {
    let node = Node::start(2, Some(CLUSTER)).await;
    let cases: [(Change, &str); 6] = [
        (|hello| hello.protocol_version = 2, "version 2 of the peer protocol"),
        (|hello| hello.cluster_id = Bytes::from_static(&[9; 16]), "is of cluster 0909"),
        (|hello| hello.cluster_id = Bytes::new(), "does not say who sends it"),
        (|hello| hello.to_node = 3, "node 3 was called, and this is node 2"),
        (
            |hello| hello.to_incarnation = Bytes::from_static(&[9; 16]),
            "this node's disk is not the one that joined as node 2: it was wiped or replaced. \
             Repair: remove node 2, start it with a new id on an empty folder, add it",
        ),
        (|hello| hello.from_node = 2, "the caller is node 2 too"),
    ];
    let mut client = connect(&node).await;
    for (change, expected) in cases {
        let mut hello = hello_to(&node, 2);
        change(&mut hello);
        let refused = client.vote(vote_request(Some(hello.clone()))).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains(expected), "{refused}");
        let first = peer::AppendRequest { hello: Some(hello), ..Default::default() };
        let refused = client.append(futures::stream::iter([first])).await.unwrap_err();
        assert!(refused.message().contains(expected), "{refused}");
        let alarms = node.local.alarms();
        assert!(alarms.iter().any(|alarm| alarm.contains(expected)), "{alarms:?}");
    }
    let nameless = client.vote(vote_request(None)).await.unwrap_err();
    assert_eq!(nameless.code(), Code::FailedPrecondition);
    let untouched = node.raft.server_metrics().borrow_watched().vote;
    assert_eq!(untouched, vote_to_raft(Vote { term: 0, node: NodeId(2), committed: false }));

    client.vote(vote_request(Some(hello_to(&node, 2)))).await.unwrap();
    let wiped_alarm = |alarm: &String| alarm.starts_with("node 1 ");
    assert!(!node.local.alarms().iter().any(wiped_alarm), "{:?}", node.local.alarms());
}

/// A caller that the membership knows with another disk is refused: its disk was wiped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_on_another_disk_is_refused() {
    let node = Node::start(1, Some(CLUSTER)).await;
    let members = [(NodeId(1), member(1, node.address))].into();
    node.raft.initialize::<std::collections::BTreeMap<_, _>>(members).await.unwrap();
    let wait = node.raft.wait(Some(DEADLINE));
    wait.current_leader(NodeId(1), "a cluster of one elects itself").await.unwrap();
    node.wait_applied(1).await;
    let somewhere = "127.0.0.1:9".parse().unwrap();
    node.raft.add_learner(NodeId(2), member(2, somewhere), false).await.unwrap();
    let (caller, _) = local(2, Some(CLUSTER));
    let mut hello = caller.hello(NodeId(1), &member(1, node.address)).unwrap();
    hello.from_incarnation = Bytes::from_static(&[9; 16]);
    let mut client = connect(&node).await;
    let refused = client.vote(vote_request(Some(hello))).await.unwrap_err();
    assert!(refused.message().contains("the disk of node 2 is not the one"), "{refused}");
}

/// The caller learns why it is refused, as an alarm that goes when it is accepted again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_caller_shows_why_it_is_refused() {
    let node = Node::start(2, Some(CLUSTER)).await;
    let (caller, _) = local(1, Some(CLUSTER));
    let mut network = Network::new(caller.clone(), &Default::default());
    let mut replaced = member(2, node.address);
    replaced.incarnation = incarnation(9).0;
    let vote = vote_to_raft(Vote { term: 5, node: NodeId(1), committed: false });
    let mut client = network.new_client(NodeId(2), &replaced).await;
    for _ in 0..3 {
        let request = VoteRequest::new(vote, None);
        client.vote(request, RPCOption::new(DEADLINE)).await.unwrap_err();
    }
    let alarms = caller.alarms();
    assert_eq!(alarms.len(), 1);
    let start = "node 2 refuses this node: this node's disk is not the one that joined as node 2";
    assert!(alarms[0].starts_with(start), "{alarms:?}");

    let mut client = network.new_client(NodeId(2), &member(2, node.address)).await;
    client.vote(VoteRequest::new(vote, None), RPCOption::new(DEADLINE)).await.unwrap();
    assert!(caller.alarms().is_empty());
}

/// A peer of another engine profile is let in, and shown on both sides until it has the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_engine_profile_is_let_in_and_shown() {
    let node = Node::start(2, Some(CLUSTER)).await;
    let mut client = connect(&node).await;
    let mut hello = hello_to(&node, 2);
    hello.engine_profile = "other".into();
    client.vote(vote_request(Some(hello))).await.unwrap();
    let expected = "the engine profile of node 1 is other, that of this node profile";
    assert_eq!(node.local.alarms(), [expected]);
    assert!(node.local.runs(NodeId(1), "other") && !node.local.runs(NodeId(1), "profile"));
    client.vote(vote_request(Some(hello_to(&node, 2)))).await.unwrap();
    assert!(node.local.runs(NodeId(1), "profile") && !node.local.runs(NodeId(1), "other"));
    assert!(node.local.runs(NodeId(2), "profile"), "it knows its own");
    assert!(!node.local.runs(NodeId(3), "profile"), "nobody said so");
    assert!(node.local.alarms().is_empty());

    let adopt = Box::new(|_| Ok(()));
    let caller = Local::new(NodeId(1), incarnation(1), "other".into(), Some(CLUSTER), adopt);
    let mut network = Network::new(caller.clone(), &Default::default());
    let mut client = network.new_heartbeat_client(NodeId(2), &member(2, node.address)).await;
    let heartbeat = AppendEntriesRequest {
        vote: vote_to_raft(Vote { term: 6, node: NodeId(1), committed: true }),
        prev_log_id: None,
        entries: Vec::new(),
        leader_commit: None,
    };
    client.append_entries(heartbeat, RPCOption::new(DEADLINE)).await.unwrap();
    let expected = "the engine profile of node 2 is profile, that of this node other";
    assert_eq!(caller.alarms(), [expected]);
    assert!(caller.runs(NodeId(2), "profile"), "a leader hears it from its followers");
}

/// A node that cannot note down the cluster does not join it.
#[tokio::test]
async fn a_cluster_that_is_not_persisted_is_not_joined() {
    let adopt = Box::new(|_| Err("disk full".to_owned()));
    let node = Local::new(NodeId(2), incarnation(2), "profile".into(), None, adopt);
    let (caller, _) = local(1, Some(CLUSTER));
    let hello = caller.hello(NodeId(2), &member(2, "127.0.0.1:1".parse().unwrap()));
    let roster = Roster::default();
    let refused = node.admit(hello.as_ref(), &roster, |_| false).await.unwrap_err();
    assert!(refused.to_string().ends_with("disk full"), "{refused}");
    assert_eq!(node.cluster(), None);
}

/// The cluster is set once.
#[test]
fn a_node_joins_one_cluster() {
    let (node, adopted) = local(2, None);
    node.join(CLUSTER).unwrap();
    node.join(CLUSTER).unwrap();
    assert!(node.join(ClusterId([8; 16])).unwrap_err().contains("is in cluster 0707"));
    assert_eq!(*adopted.lock().unwrap(), [CLUSTER]);
}

/// A node in no cluster has no hello, and so calls nobody.
#[tokio::test]
async fn a_node_in_no_cluster_calls_nobody() {
    let (caller, _) = local(1, None);
    let mut network = Network::new(caller, &Default::default());
    let somewhere = member(2, "127.0.0.1:9".parse().unwrap());
    let mut client = network.new_client(NodeId(2), &somewhere).await;
    let vote = vote_to_raft(Vote { term: 5, node: NodeId(1), committed: false });
    let request = VoteRequest::new(vote, None);
    let error = client.vote(request, RPCOption::new(DEADLINE)).await.unwrap_err();
    assert!(error.to_string().contains("in no cluster yet"), "{error}");
}
