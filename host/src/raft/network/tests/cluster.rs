//! Nodes of real openraft that talk over loopback.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use bytes::Bytes;
use openraft::network::{RPCOption, RaftNetworkV2 as _};
use openraft::raft::VoteRequest;
use openraft::{RaftNetworkFactory as _, ReadPolicy};

use super::node::{CLUSTER, DEADLINE, Node, Proxy, member};
use crate::config::limits;
use crate::machine::entry::proposal::ModuleReport;
use crate::machine::{CheckpointReport, Proposal};
use crate::raft::network::{PROPOSAL_BYTES_MAX, Rejected};
use crate::raft::store::convert::vote_to_raft;
use crate::raft::type_config::EntryBytes;
use crate::types::{MachineId, ModuleDigest, NodeId, StateDigest, Vote};

/// Node 1 leads, node 2 follows it as a learner; node 1 reaches it at `way`.
async fn add_learner(leader: &Node, learner: &Node, way: SocketAddr) {
    let members = BTreeMap::from([(NodeId(1), member(1, leader.address))]);
    leader.raft.initialize(members).await.unwrap();
    let wait = leader.raft.wait(Some(DEADLINE));
    wait.current_leader(NodeId(1), "a cluster of one elects itself").await.unwrap();
    leader.wait_applied(1).await;
    let added = leader.raft.add_learner(NodeId(2), member(2, way), true).await.unwrap();
    learner.wait_applied(added.log_id.index()).await;
    assert_eq!(learner.local.cluster(), Some(CLUSTER));
}

async fn write(node: &Node, length: usize) -> u64 {
    let entry = EntryBytes(vec![1; length].into());
    node.raft.client_write(entry).await.unwrap().log_id.index()
}

/// Entries arrive whole and in order, also the longest that there can be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_of_every_size_are_replicated() {
    let leader = Node::start(1, Some(CLUSTER)).await;
    let learner = Node::start(2, None).await;
    add_learner(&leader, &learner, learner.address).await;
    let longest = limits::ENTRY_ENCODED_BYTES_MAX;
    let lengths = [0, 1, 1 << 20, longest, 3, longest - 1, 5];
    let mut last = 0;
    for length in lengths {
        last = write(&leader, length).await;
    }
    learner.wait_applied(last).await;
    assert_eq!(learner.machine.locked().lengths, lengths);
}

/// A node that adopted the cluster notes it down once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_added_adopts_the_cluster_once() {
    let leader = Node::start(1, Some(CLUSTER)).await;
    let learner = Node::start(2, None).await;
    add_learner(&leader, &learner, learner.address).await;
    let last = write(&leader, 10).await;
    learner.wait_applied(last).await;
    assert_eq!(*learner.adopted.lock().unwrap(), [CLUSTER]);
    assert!(leader.local.alarms().is_empty() && learner.local.alarms().is_empty());
}

/// After all connections were cut, replication goes on where it was, by itself, and through the
/// address that the configuration gives for the peer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_stream_recovers() {
    let learner = Node::start(2, None).await;
    let mut proxy = Proxy::start(learner.address).await;
    let reach = BTreeMap::from([("2".to_owned(), proxy.address.to_string())]);
    let leader = Node::start_reaching(1, Some(CLUSTER), &reach).await;
    let nowhere = "127.0.0.1:9".parse().unwrap();
    add_learner(&leader, &learner, nowhere).await;
    let mut lengths = Vec::new();
    for round in 1..=3 {
        lengths.push(round);
        let before = write(&leader, round).await;
        learner.wait_applied(before).await;
        proxy.cut();
        for _ in 0..100 {
            lengths.push(10 * round);
            write(&leader, 10 * round).await;
        }
        proxy.mend().await;
    }
    let last = write(&leader, 0).await;
    lengths.push(0);
    learner.wait_applied(last).await;
    assert_eq!(learner.machine.locked().lengths, lengths);
}

/// Votes, heartbeats and the hand-over of leadership work over the wire.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over() {
    let first = Node::start(1, Some(CLUSTER)).await;
    let second = Node::start(2, None).await;
    add_learner(&first, &second, second.address).await;
    let voters = BTreeSet::from([NodeId(1), NodeId(2)]);
    first.raft.change_membership(voters, false).await.unwrap();
    let last = write(&first, 10).await;
    second.wait_applied(last).await;
    first.raft.trigger().transfer_leader(NodeId(2)).await.unwrap();
    for node in [&first, &second] {
        let wait = node.raft.wait(Some(DEADLINE));
        wait.current_leader(NodeId(2), "the other leads").await.unwrap();
    }
    // A new leader writes nothing before a quorum has answered its first heartbeat.
    second.raft.ensure_linearizable(ReadPolicy::ReadIndex).await.unwrap();
    let last = write(&second, 20).await;
    first.wait_applied(last).await;
    assert_eq!(first.machine.locked().lengths, [10, 20]);
}

/// What a node reports of itself is applied; a report that reaches a follower is turned away.
/// Whatever else a peer hands in is refused: bytes that are no entry, entries that only a leader
/// may propose, reports in the name of another node, and what is too long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_proposes_reports_of_itself_alone() {
    let leader = Node::start(1, Some(CLUSTER)).await;
    let learner = Node::start(2, None).await;
    add_learner(&leader, &learner, learner.address).await;
    let to_leader = async |entry: Bytes| {
        let member = member(1, leader.address);
        learner.network.propose(NodeId(1), &member, entry, DEADLINE).await
    };
    let failed = |node, characters| {
        let failure = Some("x".repeat(characters));
        let (digest, node) = (ModuleDigest([1; 32]), NodeId(node));
        Proposal::ModuleReady(ModuleReport { digest, node, failure }).encode()
    };
    let state = |node| {
        let (index, node, digest) = (7, NodeId(node), StateDigest([2; 32]));
        Proposal::CheckpointReport(CheckpointReport { index, node, digest }).encode()
    };
    to_leader(failed(2, 1_000)).await.unwrap();
    to_leader(state(2)).await.unwrap();
    assert_eq!(leader.machine.locked().lengths, [failed(2, 1_000).len(), state(2).len()]);
    let mut later = state(2).to_vec();
    later[3] = 250;
    let sum = crc32c::crc32c_append(crc32c::crc32c(&later[..8]), &later[12..]);
    later[8..12].copy_from_slice(&sum.to_le_bytes());
    let rows: [(Bytes, &str); 9] = [
        (failed(2, PROPOSAL_BYTES_MAX), "and 8192 are allowed"),
        (failed(1, 0), "in the name of node 1"),
        (state(3), "in the name of node 3"),
        (Bytes::new(), "not a log entry"),
        (vec![0; 100].into(), "not a log entry"),
        (later.into(), "kind 250"),
        (Proposal::Tick { time_ms: u64::MAX }.encode(), "only a leader"),
        (Proposal::RemoveMachine { machine: MachineId(4) }.encode(), "only a leader"),
        (Proposal::EngineProfile("other".to_owned()).encode(), "only a leader"),
    ];
    for (entry, expected) in rows {
        let refused = to_leader(entry).await.unwrap_err().to_string();
        assert!(refused.contains(expected), "{expected}: {refused}");
    }
    assert_eq!(leader.machine.locked().lengths.len(), 2);
    let member = member(2, learner.address);
    let misled = leader.network.propose(NodeId(2), &member, state(1), DEADLINE).await;
    assert_eq!(misled, Err(Rejected::NotLeader));
}

/// A node that stops ends the streams of its peers, so that its server can drain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_end_when_the_node_stops() {
    let leader = Node::start(1, Some(CLUSTER)).await;
    let learner = Node::start(2, None).await;
    add_learner(&leader, &learner, learner.address).await;
    let mut network = leader.network.clone();
    let mut client = network.new_client(NodeId(2), &member(2, learner.address)).await;
    let option = RPCOption::new(DEADLINE);
    let silent = futures::stream::pending();
    let mut output = client.stream_append(silent, option.clone()).await.unwrap();
    learner.handler.stop();
    let ended = futures::StreamExt::next(&mut output).await.unwrap().unwrap_err();
    assert!(ended.to_string().contains("shutting down"), "{ended}");
    drop(output);
    let refused = client.stream_append(futures::stream::pending(), option).await.err().unwrap();
    assert!(refused.to_string().contains("shutting down"), "{refused}");
}

/// A node may only ask for votes for itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vote_for_another_node_is_refused() {
    let leader = Node::start(1, Some(CLUSTER)).await;
    let learner = Node::start(2, None).await;
    let mut network = leader.network.clone();
    let mut client = network.new_client(NodeId(2), &member(2, learner.address)).await;
    let vote = |node| vote_to_raft(Vote { term: 1, node: NodeId(node), committed: false });
    let option = RPCOption::new(DEADLINE);
    let request = VoteRequest::new(vote(3), None);
    let refused = client.vote(request, option.clone()).await.unwrap_err();
    assert!(refused.to_string().contains("with the vote of node 3"), "{refused}");
    let granted = client.vote(VoteRequest::new(vote(1), None), option).await.unwrap();
    assert_eq!(granted.vote, vote(1));
}
