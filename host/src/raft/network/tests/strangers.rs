//! Only members speak to a member, and in terms that can be (decision 0011).

use lockstep_proto::peer;
use lockstep_proto::peer::peer_client::PeerClient;
use lockstep_proto::peer::{Hello, StandingRequest};
use openraft::async_runtime::WatchReceiver as _;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::node::{CLUSTER, Node, Proxy, local, member, until};
use crate::machine::Proposal;
use crate::raft::network::{TERM_JUMP_MAX, payload};
use crate::raft::store::convert::vote_to_raft;
use crate::types::{NodeId, Vote};

async fn connect(node: &Node) -> PeerClient<Channel> {
    PeerClient::connect(format!("http://{}", node.address)).await.unwrap()
}

/// The hello of a node, by its true disk, to another.
fn hello(from: u64, to: &Node) -> Hello {
    let (caller, _) = local(from, Some(CLUSTER));
    let to_id = to.local.node_id();
    caller.hello(to_id, &member(to_id.0, to.address)).unwrap()
}

fn vote(term: u64, node: u64, committed: bool) -> crate::raft::type_config::RaftVote {
    vote_to_raft(Vote { term, node: NodeId(node), committed })
}

fn append_request(from: u64, to: &Node, term: u64) -> peer::AppendRequest {
    let request = AppendEntriesRequest {
        vote: vote(term, from, true),
        prev_log_id: None,
        entries: Vec::new(),
        leader_commit: None,
    };
    let message = payload::encode_append(request).unwrap();
    peer::AppendRequest { hello: Some(hello(from, to)), ..message }
}

async fn ask_vote(from: u64, to: &Node, term: u64) -> Result<(), Status> {
    let payload = payload::encode_vote_request(&VoteRequest::new(vote(term, from, false), None));
    let hello = Some(hello(from, to));
    let request = peer::VoteRequest { hello, payload, pre_vote: true };
    connect(to).await.vote(request).await.map(drop)
}

/// Makes every call of the service that brings a term, in the name of a node; what each came to.
async fn call_all(from: u64, to: &Node, term: u64) -> Vec<Result<(), Status>> {
    let mut client = connect(to).await;
    let mut results = vec![ask_vote(from, to, term).await];
    let request = append_request(from, to, term);
    results.push(client.append_one(request.clone()).await.map(drop));

    let first = peer::AppendRequest { hello: request.hello.clone(), ..Default::default() };
    let later = peer::AppendRequest { hello: None, ..request };
    results.push(match client.append(futures::stream::iter([first, later])).await {
        Ok(replies) => replies.into_inner().message().await.map(drop),
        Err(refused) => Err(refused),
    });

    let transfer = TransferLeaderRequest::new(vote(term, from, true), to.local.node_id(), None);
    let payload = payload::encode_transfer(&transfer);
    let hello = Some(hello(from, to));
    let request = peer::TransferLeaderRequest { hello, payload };
    results.push(client.transfer_leader(request).await.map(drop));
    results
}

/// A node that is a member refuses whoever is none, whatever it calls, and openraft sees nothing
/// of it; the alarm names the caller.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_is_refused() {
    let node = Node::start(2, Some(CLUSTER)).await;
    node.knows(&[(1, "127.0.0.1:9".parse().unwrap()), (2, node.address)]).await;
    let before = node.raft.server_metrics().borrow_watched().vote;
    let mut results = call_all(7, &node, 2).await;
    let mut client = connect(&node).await;
    let standing = StandingRequest { hello: Some(hello(7, &node)) };
    results.push(client.standing(standing).await.map(drop));
    let entry = Proposal::Tick { time_ms: u64::MAX }.encode();
    let propose = peer::ProposeRequest { hello: Some(hello(7, &node)), entry };
    results.push(client.propose(propose).await.map(drop));
    for result in results {
        let refused = result.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("node 7 is no member"), "{refused}");
    }
    assert_eq!(node.raft.server_metrics().borrow_watched().vote, before);
    let alarms = node.local.alarms();
    assert!(alarms.iter().any(|alarm| alarm.starts_with("node 7 is refused")), "{alarms:?}");
    ask_vote(1, &node, 2).await.unwrap();
}

/// A node that lags hears a member that it does not know yet, on the word of a member that it
/// knows: else it would be locked out by the entry that it lacks. A stranger it does not hear.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lags_hears_a_member_that_it_does_not_know() {
    let nowhere = "127.0.0.1:9".parse().unwrap();
    let (ahead, behind) =
        (Node::start(1, Some(CLUSTER)).await, Node::start(2, Some(CLUSTER)).await);
    let mut way = Proxy::start(ahead.address).await;
    ahead.knows(&[(1, ahead.address), (2, behind.address), (3, nowhere)]).await;
    behind.knows(&[(1, way.address), (2, behind.address)]).await;

    way.cut();
    let refused = ask_vote(3, &behind, 2).await.unwrap_err();
    assert!(refused.message().contains("`trusted_peers`"), "nobody could be asked: {refused}");
    way.mend().await;
    until(async || ask_vote(3, &behind, 2).await.is_ok()).await;
    let refused = ask_vote(4, &behind, 2).await.unwrap_err();
    assert!(refused.message().contains("node 4 is no member"), "{refused}");
}

/// A term that is above this node's by more than elections can make it is refused and named, in
/// every call that brings one; a node that joins takes it, since its cluster may have any age.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_term_that_jumps_is_refused() {
    let node = Node::start(2, Some(CLUSTER)).await;
    node.knows(&[(1, "127.0.0.1:9".parse().unwrap()), (2, node.address)]).await;
    let before = node.raft.server_metrics().borrow_watched().vote;
    for term in [1 + TERM_JUMP_MAX + 1, (1 << 62) - 1] {
        for result in call_all(1, &node, term).await {
            let refused = result.unwrap_err();
            let expected = format!("node 1 calls with term {term}, and this node has term 1");
            assert!(refused.message().contains(&expected), "{refused}");
        }
    }
    assert_eq!(node.raft.server_metrics().borrow_watched().vote, before);
    let alarms = node.local.alarms();
    assert!(alarms.iter().any(|alarm| alarm.contains("calls with term")), "{alarms:?}");
    for result in call_all(1, &node, 1 + TERM_JUMP_MAX).await {
        result.unwrap();
    }
    let joining = Node::start(3, None).await;
    for result in call_all(1, &joining, 1 << 40).await {
        result.unwrap();
    }
}
