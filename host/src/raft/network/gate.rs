//! What every call of a peer must pass before openraft sees anything of it: who calls, in which
//! term, and whether there is room for what it brings.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use lockstep_proto::peer;
use openraft::Raft;
use openraft::async_runtime::WatchReceiver as _;
use openraft::raft::AppendEntriesRequest;

use super::handler::Machine;
use super::hello::Local;
use super::roster::{Hearsay, Roster, Witness};
use super::{Known, Network, Refusal, Rejected, TERM_JUMP_MAX, payload, receive_snapshot};
use crate::machine::{Directory, Proposal};
use crate::raft::clock::Clock;
use crate::raft::duties::space::Space;
use crate::raft::store::convert::{membership_from_raft, vote_from_raft};
use crate::raft::type_config::{RaftStoredMembership, RaftVote, TypeConfig};
use crate::storage::snapshot::Snapshot;
use crate::types::NodeId;

/// What an entry takes in the log beside its own bytes, rounded up.
const ENTRY_OVERHEAD_BYTES: u64 = 256;

/// What a node answers its peers by.
pub struct Parts<SM: Machine> {
    /// Agreement.
    pub raft: Raft<TypeConfig, SM>,
    /// This node.
    pub local: Arc<Local>,
    /// By which members are asked who a stranger is.
    pub network: Network,
    /// Nodes that need no member's word.
    pub trusted: Vec<NodeId>,
    /// Room on disk.
    pub space: Arc<Space>,
    /// What is parked, removed, agreed on.
    pub directory: Arc<Directory>,
    /// What time it is.
    pub clock: Arc<Clock>,
}

/// The checks.
pub(super) struct Gate<SM: Machine> {
    pub(super) raft: Raft<TypeConfig, SM>,
    pub(super) local: Arc<Local>,
    pub(super) space: Arc<Space>,
    pub(super) directory: Arc<Directory>,
    pub(super) clock: Arc<Clock>,
    hearsay: Hearsay,
    trusted: Vec<NodeId>,
    /// The roster that was made last, since each heartbeat asks for one.
    made: Mutex<Option<(Basis, Arc<Roster>)>>,
}

/// What a roster is made from. Memberships are compared by where they lie: openraft makes another
/// one of each that it hands out.
struct Basis {
    effective: Arc<RaftStoredMembership>,
    committed: Arc<RaftStoredMembership>,
    followed: Option<NodeId>,
    is_removed: bool,
}

impl PartialEq for Basis {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.effective, &other.effective)
            && Arc::ptr_eq(&self.committed, &other.committed)
            && (self.followed, self.is_removed) == (other.followed, other.is_removed)
    }
}

impl<SM: Machine> Gate<SM> {
    pub(super) fn new(parts: Parts<SM>) -> Self {
        let Parts { raft, local, network, trusted, space, directory, clock } = parts;
        let hearsay = Hearsay::new(network);
        Self { raft, local, space, directory, clock, hearsay, trusted, made: Mutex::default() }
    }

    /// Who calls, if it may. Of a caller that this node does not know, it asks the members that it
    /// knows.
    pub(super) async fn admit(&self, hello: Option<&peer::Hello>) -> Result<NodeId, Rejected> {
        let mut roster = self.roster();
        let removed = |node| self.was_removed(node);
        let stranger = hello.and_then(|hello| self.local.stranger(hello, &roster, removed));
        if let Some((node, disk)) = stranger {
            self.hearsay.introduce(Arc::make_mut(&mut roster), node, disk).await;
        }
        let from = self.local.admit(hello, &roster, removed).await?;
        if let Some(known) = hello.and_then(|hello| self.local.lost(hello)) {
            self.check_log(from, known, &roster).await?;
        }
        Ok(from)
    }

    /// A caller says that this node's log went back. That would end the node's part in the cluster,
    /// and anybody can call in the name of a member. So the member itself is asked, at the address
    /// that this node's log has for it. A node that joins has no such address.
    async fn check_log(&self, from: NodeId, known: Known, roster: &Roster) -> Result<(), Rejected> {
        let said = match roster.is_joining() {
            true => Some(known),
            false => self.hearsay.known(roster, from).await?,
        };
        if let Some(known) = said {
            self.local.compare(from, known).map_err(Refusal::WentBack)?;
        }
        Err(self.local.refuse(from, Refusal::FalseClaim { node: from }, roster).into())
    }

    /// Who calls, if this node knows it by itself.
    pub(super) async fn admit_known(
        &self,
        hello: Option<&peer::Hello>,
    ) -> Result<NodeId, Rejected> {
        Ok(self.local.admit(hello, &self.roster(), |node| self.was_removed(node)).await?)
    }

    /// Whom this node knows by its own log.
    pub(super) fn roster(&self) -> Arc<Roster> {
        let this = self.local.node_id();
        let is_removed = self.was_removed(this);
        let basis = {
            let metrics = self.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            Basis {
                effective: Arc::clone(&metrics.membership_config),
                committed: Arc::clone(&metrics.committed_membership_config),
                followed: metrics.current_leader,
                is_removed,
            }
        };
        let mut made = self.made.lock().expect("nothing panics while it holds the roster");
        match &*made {
            Some((of, roster)) if *of == basis => Arc::clone(roster),
            _ => {
                let roster = Arc::new(self.make_roster(this, &basis));
                *made = Some((basis, Arc::clone(&roster)));
                roster
            }
        }
    }

    fn make_roster(&self, this: NodeId, basis: &Basis) -> Roster {
        let memberships = [&basis.committed, &basis.effective];
        let memberships = memberships.map(|stored| membership_from_raft(stored.membership()));
        // A leader that removes itself finishes what it has begun.
        let trusted: Vec<NodeId> = self.trusted.iter().copied().chain(basis.followed).collect();
        Roster::new(this, memberships, &trusted, basis.is_removed)
    }

    fn was_removed(&self, node: NodeId) -> bool {
        self.directory.view().retired_nodes.contains(&node) && self.followed() != Some(node)
    }

    /// Refuses a caller that was let in as a member and has been removed since.
    pub(super) fn check_present(&self, node: NodeId) -> Result<(), Rejected> {
        if self.was_removed(node) { Err(Refusal::Removed { node }.into()) } else { Ok(()) }
    }

    /// The leader that this node follows, until it votes for another.
    fn followed(&self) -> Option<NodeId> {
        self.raft.server_metrics().borrow_watched().current_leader
    }

    /// Refuses a vote that is not the caller's own, and a term that cannot be.
    pub(super) fn check_vote(&self, from: NodeId, vote: &RaftVote) -> Result<(), Rejected> {
        let (node, theirs) = {
            let vote = vote_from_raft(vote);
            (vote.node, vote.term)
        };
        if node != from {
            let text = format!("node {from} calls with the vote of node {node}");
            return Err(Rejected::Malformed(text));
        }
        let ours = vote_from_raft(&self.raft.server_metrics().borrow_watched().vote).term;
        if theirs.saturating_sub(ours) <= TERM_JUMP_MAX {
            return Ok(());
        }
        let roster = self.roster();
        // One that joins may find a cluster of any age.
        if roster.is_joining() {
            return Ok(());
        }
        let refusal = Refusal::TermJump { node: from, theirs, ours };
        Err(self.local.refuse(from, refusal, &roster).into())
    }

    /// Refuses an entry that is none, or that a follower may not hand in: a node reports of itself
    /// and nothing else.
    pub(super) fn check_proposal(&self, from: NodeId, entry: &Bytes) -> Result<(), Rejected> {
        let proposal = Proposal::decode(entry);
        let about = match proposal.map_err(|error| Rejected::Malformed(error.to_string()))? {
            Proposal::ModuleReady(report) => report.node,
            Proposal::CheckpointReport(report) => report.node,
            _ => {
                let text = format!("node {from} proposes what only a leader may propose");
                return Err(Rejected::Malformed(text));
            }
        };
        if about == from {
            return Ok(());
        }
        Err(Rejected::Malformed(format!("node {from} reports in the name of node {about}")))
    }

    /// Refuses a snapshot that is not what the cluster agreed on, as far as that can be known: by
    /// this node's own tables, else by the other members' (decision 0011).
    pub(super) async fn check_snapshot(
        &self,
        from: NodeId,
        snapshot: Snapshot,
    ) -> Result<(), Rejected> {
        let roster = self.roster();
        let Some(last) = snapshot.id().last.filter(|_| !roster.is_joining()) else {
            return Ok(());
        };
        let index = last.index;
        let refused = |reason: String| Err(Rejected::NotAgreed { index, reason });
        let Some(digest) = receive_snapshot::digest(snapshot).await? else {
            return refused("it does not say which state it holds".to_owned());
        };
        let own = self.directory.view().checkpoints.get(&index).and_then(|record| record.agreed);
        if let Some(own) = own {
            let reason = || format!("its state is {digest}, and this node's log says {own}");
            return if own == digest { Ok(()) } else { refused(reason()) };
        }
        let (said, asked) = self.hearsay.checkpoint(&roster, from, index).await;
        let differs = |witness: &&Witness| witness.agreed.is_some_and(|agreed| agreed != digest);
        if let Some(Witness { node, agreed: Some(agreed), .. }) = said.iter().find(differs) {
            return refused(format!("its state is {digest}, and node {node} says {agreed}"));
        }
        if said.iter().any(|witness| witness.agreed.is_some()) {
            return Ok(());
        }
        if let Some(Witness { node, .. }) = said.iter().find(|witness| witness.applied >= index) {
            return refused(format!("node {node} has come past it, and knows of no agreement"));
        }
        // What was agreed on, a majority has come to: the sender and one more at least.
        if asked > 0 && said.len() == asked {
            return refused("no other member has come so far".to_owned());
        }
        tracing::warn!(%from, index, "no other member can confirm a snapshot");
        Ok(())
    }

    /// Refuses entries that the disk has no room for. A request without entries (a heartbeat, a
    /// commit) always passes.
    fn take_room(&self, request: &peer::AppendRequest) -> Result<(), Rejected> {
        let length = |entry: &Bytes| u64::try_from(entry.len()).expect("a usize fits");
        let room = request.entries.iter().map(|entry| length(entry) + ENTRY_OVERHEAD_BYTES).sum();
        let has_room = request.entries.is_empty() || self.space.take(room);
        if has_room { Ok(()) } else { Err(Rejected::DiskFull) }
    }
}

/// The gate for the requests to append of one caller, which said hello at their beginning.
pub(super) struct AppendGate<SM: Machine> {
    gate: Arc<Gate<SM>>,
    from: NodeId,
    /// The vote that passed last.
    passed: Option<RaftVote>,
}

impl<SM: Machine> AppendGate<SM> {
    pub(super) fn new(gate: Arc<Gate<SM>>, from: NodeId) -> Self {
        Self { gate, from, passed: None }
    }

    /// The request, if openraft may see it.
    pub(super) fn pass(
        &mut self,
        request: peer::AppendRequest,
    ) -> Result<AppendEntriesRequest<TypeConfig>, Rejected> {
        self.gate.check_present(self.from)?;
        self.gate.take_room(&request)?;
        let request = payload::decode_append(request)?;
        if self.passed != Some(request.vote) {
            self.gate.check_vote(self.from, &request.vote)?;
            self.passed = Some(request.vote);
        }
        Ok(request)
    }
}
