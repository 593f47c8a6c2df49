//! Whom this node knows: the members that its own log names, those that a member it knows names,
//! and those that its operator trusts (decision 0011).
//!
//! A node may lag: its log may end before the entry that added a node which leads by now. So a
//! caller that is unknown here is asked about, at the members that are known here. A stranger
//! cannot answer that question, because this node dials the addresses of its own membership.
//!
//! **Invariant:** the question has no effect on its receiver, and the receiver never asks another
//! node because of it. **Invariant:** however many ids callers make up, this node asks once per
//! [`ASK_INTERVAL`].

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

use super::{Known, Network, Rejected};
use crate::types::{Incarnation, LogIndex, Member, Membership, NodeId, StateDigest};

/// Time between two rounds of questions.
const ASK_INTERVAL: Duration = Duration::from_millis(200);
/// A member that is there answers within this.
const ANSWERS_WITHIN: Duration = Duration::from_millis(300);
/// What members said is believed for so long. A node that lags has caught up by then, or asks
/// again.
const BELIEVED_FOR: Duration = Duration::from_secs(10);

/// What a roster says of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is a member, with this disk.
    Member,
    /// It is a member, with another disk.
    OtherDisk,
    /// It is none, as far as this node knows.
    Stranger,
}

/// The members that this node knows, by its own log.
#[derive(Clone, Debug, Default)]
pub(super) struct Roster {
    this: NodeId,
    members: BTreeMap<NodeId, Member>,
    trusted: Vec<NodeId>,
    /// This node was removed from the cluster.
    is_removed: bool,
}

impl Roster {
    /// The members of any of the `memberships`: those of the newest in the log, which may not be
    /// committed yet, and of the newest that is.
    pub(super) fn new(
        this: NodeId,
        memberships: impl IntoIterator<Item = Membership>,
        trusted: &[NodeId],
        is_removed: bool,
    ) -> Self {
        let members = memberships.into_iter().flat_map(|membership| membership.members).collect();
        Self { this, members, trusted: trusted.to_vec(), is_removed }
    }

    /// Whether this node is on its way into a cluster: no membership that it knows names it. Such
    /// a node has no vote, and can only trust whoever knows its id and its disk.
    pub(super) fn is_joining(&self) -> bool {
        !self.is_removed && !self.members.contains_key(&self.this)
    }

    /// What is known of a node with this disk.
    pub(super) fn standing(&self, node: NodeId, disk: &[u8]) -> Standing {
        match self.members.get(&node) {
            Some(member) if member.incarnation == disk => Standing::Member,
            Some(_) => Standing::OtherDisk,
            None if self.trusted.contains(&node) => Standing::Member,
            None => Standing::Stranger,
        }
    }

    /// Whether the membership names the node, with whatever disk.
    pub(super) fn names(&self, node: NodeId) -> bool {
        self.members.contains_key(&node)
    }

    /// How a member is reached, by this node's own log.
    fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.get(&node).filter(|member| !member.peer_addr.is_empty())
    }

    /// Every member.
    pub(super) fn members(&self) -> impl Iterator<Item = (NodeId, &Member)> {
        self.members.iter().map(|(node, member)| (*node, member))
    }

    /// Adds a node that a member named.
    fn add(&mut self, node: NodeId, disk: Incarnation) {
        let member = Member { incarnation: disk.0, ..Member::default() };
        self.members.entry(node).or_insert(member);
    }
}

/// What a member says of a checkpoint.
pub(super) struct Witness {
    pub(super) node: NodeId,
    /// How far it has applied the log.
    pub(super) applied: LogIndex,
    /// The state that the cluster agreed on there, if the member knows of it.
    pub(super) agreed: Option<StateDigest>,
}

/// What the members said lately of who is a member.
pub(super) struct Hearsay {
    network: Network,
    said: Mutex<Said>,
    /// One round of questions at a time.
    asking: tokio::sync::Mutex<()>,
    /// When a member was last asked what it knows of this node's log.
    confirmed: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Said {
    asked: Option<Instant>,
    members: BTreeMap<NodeId, (Incarnation, Instant)>,
}

impl Said {
    fn names(&self, node: NodeId, disk: &[u8]) -> bool {
        self.members
            .get(&node)
            .is_some_and(|(known, heard)| known.0 == disk && heard.elapsed() < BELIEVED_FOR)
    }

    fn is_fresh(&self) -> bool {
        self.asked.is_some_and(|asked| asked.elapsed() < ASK_INTERVAL)
    }
}

impl Hearsay {
    pub(super) fn new(network: Network) -> Self {
        let (asking, confirmed) = Default::default();
        Self { network, said: Mutex::default(), asking, confirmed }
    }

    /// Adds a stranger to the roster if a member names it. Waits for the answers, at most
    /// [`ANSWERS_WITHIN`] after the round before has ended.
    pub(super) async fn introduce(&self, roster: &mut Roster, node: NodeId, disk: Incarnation) {
        if self.is_named(node, disk) || self.ask(roster, node, disk).await {
            roster.add(node, disk);
        }
    }

    fn is_named(&self, node: NodeId, disk: Incarnation) -> bool {
        self.locked().names(node, &disk.0)
    }

    /// Asks all members side by side, until one names the node.
    async fn ask(&self, roster: &Roster, node: NodeId, disk: Incarnation) -> bool {
        let _turn = self.asking.lock().await;
        if self.is_named(node, disk) || self.locked().is_fresh() {
            return self.is_named(node, disk);
        }
        self.locked().asked = Some(Instant::now());
        let others = roster.members().filter(|(id, _)| *id != roster.this && *id != node);
        let question = |(id, member)| self.network.standing(id, member, ANSWERS_WITHIN);
        let mut answers: FuturesUnordered<_> = others.map(question).collect();
        while let Some(answer) = answers.next().await {
            let Ok(said) = answer else { continue };
            let mut known = self.locked();
            known.members.retain(|_, (_, heard)| heard.elapsed() < BELIEVED_FOR);
            let heard = Instant::now();
            known.members.extend(said.members.into_iter().map(|(id, disk)| (id, (disk, heard))));
            if known.names(node, &disk.0) {
                return true;
            }
        }
        false
    }

    /// How far a member itself says that this node had its log.
    pub(super) async fn known(
        &self,
        roster: &Roster,
        node: NodeId,
    ) -> Result<Option<Known>, Rejected> {
        let later = |reason: &str| Rejected::Failed(format!("node {node} {reason}"));
        let member = roster.member(node).ok_or_else(|| later("has no address to be asked at"))?;
        let mut last = self.confirmed.try_lock().map_err(|_| later("is being asked"))?;
        if last.is_some_and(|last| last.elapsed() < ASK_INTERVAL) {
            return Err(later("was just asked"));
        }
        let said = self.network.standing(node, member, ANSWERS_WITHIN).await;
        *last = Some(Instant::now());
        Ok(said?.known)
    }

    /// What the other members say of a checkpoint; those that do not answer, or apply nothing, are
    /// left out. And how many were asked.
    pub(super) async fn checkpoint(
        &self,
        roster: &Roster,
        sender: NodeId,
        at: LogIndex,
    ) -> (Vec<Witness>, usize) {
        let others = roster.members().filter(|(id, _)| *id != roster.this && *id != sender);
        let question = async |(node, member)| {
            let said = self.network.standing(node, member, ANSWERS_WITHIN).await.ok()?;
            let agreed = said.agreed.into_iter().find(|(index, _)| *index == at);
            let agreed = agreed.map(|(_, digest)| digest);
            said.parked.is_empty().then_some(Witness { node, applied: said.applied, agreed })
        };
        let answers = futures::future::join_all(others.map(question)).await;
        let asked = answers.len();
        (answers.into_iter().flatten().collect(), asked)
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Said> {
        self.said.lock().expect("nothing panics while it holds what was said")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership(members: &[(u64, u8)]) -> Membership {
        let member = |(id, disk): &(u64, u8)| {
            (NodeId(*id), Member { incarnation: [*disk; 16], ..Member::default() })
        };
        Membership { voters: Vec::new(), members: members.iter().map(member).collect() }
    }

    /// A node knows the members of its newest membership and of its newest committed one, by their
    /// disks, and the nodes that its operator trusts; before it is a member it knows that it joins.
    #[test]
    fn a_roster_knows_members_by_their_disks() {
        let (newest, committed) = (membership(&[(1, 1), (2, 2), (4, 4)]), membership(&[(3, 3)]));
        let roster = Roster::new(NodeId(1), [newest.clone(), committed], &[NodeId(9)], false);
        let rows = [
            (2, 2, Standing::Member),
            (3, 3, Standing::Member),
            (2, 3, Standing::OtherDisk),
            (9, 9, Standing::Member),
            (5, 5, Standing::Stranger),
        ];
        for (node, disk, expected) in rows {
            assert_eq!(roster.standing(NodeId(node), &[disk; 16]), expected, "node {node}");
        }
        assert!(!roster.is_joining());
        assert!(Roster::new(NodeId(7), [newest.clone()], &[], false).is_joining());
        assert!(!Roster::new(NodeId(7), [newest], &[], true).is_joining(), "it was removed");
    }
}
