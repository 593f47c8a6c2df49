//! A leader whose process has ended is replaced at once: nobody waits for the timers then.
//!
//! The system ends the connections of a process that dies, so the stream of entries ends on the
//! followers. A follower whose leader's stream has ended, or whom another node asks for a pre-vote,
//! asks its leader whether that still leads. Where nobody listens at the leader's address any more,
//! this task frees the follower's vote from the lease of that leader and stands for election. Every
//! other follower does the same. A leader that says that it leads no more may have handed over: who
//! is to follow it is left a moment for that first.
//!
//! A follower that is wrong disturbs nobody: it asks for a pre-vote, which the others refuse
//! while they hear their leader. A leader that vanishes without a word is left to the timers.

use std::time::{Duration, Instant};

use openraft::async_runtime::WatchReceiver as _;
use openraft::raft::TransferLeaderRequest;

use super::timing::patience;
use crate::raft::ask::replica::Replica;
use crate::raft::network::Leads;
use crate::raft::store::convert::vote_from_raft;
use crate::raft::type_config::RaftVote;
use crate::types::NodeId;

/// Whoever a leader hands over to leads within this time, or not soon.
const HANDOVER_GRACE: Duration = Duration::from_millis(300);
/// A leader that is there says so within this time.
const LEADER_ANSWERS_WITHIN: Duration = Duration::from_millis(300);
/// How much later each voter stands than the one before it, so that they do not compete. An
/// election takes less, where the disks are fast.
const TURN: Duration = Duration::from_millis(30);
/// Between two attempts of the voter that stands first; later ones take their turn again.
const RETRY: Duration = Duration::from_millis(40);

/// Follows the doubts about leaders for as long as the node runs.
pub struct ElectionTask {
    replica: Replica,
}

impl ElectionTask {
    /// A task for this node.
    pub fn new(replica: Replica) -> Self {
        Self { replica }
    }

    /// Runs until openraft is gone.
    pub async fn run(self) {
        let mut doubted = self.replica.shared.local.heard().doubted();
        while doubted.changed().await.is_ok() {
            let peer = *doubted.borrow_and_update();
            let Some(vote) = peer.and_then(|peer| self.vote_for(peer)) else { continue };
            let why = match self.ask(leader_of(&vote)).await {
                Leads::Yes | Leads::Unknown => continue,
                Leads::No => {
                    tokio::time::sleep(HANDOVER_GRACE).await;
                    "the leader says that it leads no more"
                }
                Leads::Gone => "the process of the leader has ended",
            };
            // Another may have been voted for meanwhile.
            let is_followed = self.vote_for(leader_of(&vote)) == Some(vote);
            if is_followed && self.replace(vote, why).await.is_none() {
                return;
            }
        }
    }

    /// The vote under which this node follows `leader`.
    fn vote_for(&self, leader: NodeId) -> Option<RaftVote> {
        let metrics = self.replica.shared.raft.server_metrics();
        let vote = metrics.borrow_watched().vote;
        (vote.is_committed() && leader_of(&vote) == leader).then_some(vote)
    }

    async fn ask(&self, leader: NodeId) -> Leads {
        let membership = self.replica.membership();
        let Some(member) = membership.members.get(&leader) else { return Leads::Unknown };
        self.replica.shared.network.leads(leader, member, LEADER_ANSWERS_WITHIN).await
    }

    /// Stands for election in place of the leader of `vote`, until this or another node leads, or
    /// the timers have their turn. `None` once openraft has stopped.
    async fn replace(&self, vote: RaftVote, why: &str) -> Option<()> {
        let shared = &self.replica.shared;
        let leader = leader_of(&vote);
        tracing::info!(%leader, "{why}: an election begins");
        shared.local.heard().note_gone(leader);
        // What a leader sends to its followers as it hands over; here nobody is to take over.
        let release = TransferLeaderRequest::new(vote, leader, None);
        shared.raft.handle_transfer_leader(release).await.ok()?.ok();
        let give_up = Instant::now() + patience(shared.raft.config());
        let turn = self.turn(leader);
        let mut pause = TURN * turn;
        loop {
            tokio::time::sleep(pause).await;
            pause = RETRY + TURN * turn;
            let current = shared.raft.metrics().borrow_watched().current_leader;
            if current.is_some_and(|current| current != leader) || Instant::now() > give_up {
                return Some(());
            }
            let may_stand = shared.local.votes().borrow().may_go_to(shared.local.last());
            let is_fit = shared.directory.view().parked.is_none()
                && shared.local.stalls().current().is_none();
            if is_fit && may_stand {
                shared.raft.trigger().elect(true).await.ok()?;
            }
        }
    }

    /// How many of the voters that are left stand before this node.
    fn turn(&self, leader: NodeId) -> u32 {
        let this = self.replica.shared.local.node_id();
        let voters = self.replica.membership().voter_ids();
        let before = voters.range(..this).filter(|voter| **voter != leader).count();
        u32::try_from(before).unwrap_or(u32::MAX).min(8)
    }
}

fn leader_of(vote: &RaftVote) -> NodeId {
    vote_from_raft(vote).node
}
