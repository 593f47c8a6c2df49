//! Who may talk to this node: the handshake that goes before everything else.
//!
//! It keeps apart what addresses cannot: another cluster, another node, the same node id on
//! another disk, another version, a node that is no member (decision 0011). Another engine is let
//! in, and shown. It authenticates nobody: the peer port belongs on a trusted network.
//!
//! **Invariant:** nothing of a peer reaches openraft before its hello was accepted.
//! **Invariant:** a node that is a member hears members alone.
//! **Invariant:** the cluster of a node is set once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use lockstep_proto::peer::Hello;
use tokio::sync::watch;

use super::alarms::{Alarms, Side};
use super::heard::Heard;
use super::known::{Known, KnownLogs, Votes};
use super::refusal::Refusal;
use super::roster::{Roster, Standing};
use crate::raft::duties::stall::Stalls;
use crate::storage::Log;
use crate::types::{ClusterId, Incarnation, LogId, Member, NodeId};

/// Version of the messages between nodes and of log entries.
pub const PROTOCOL_VERSION: u32 = 1;

/// Nodes whose engine is known at once: joining nodes hear whoever calls.
const PROFILES_MAX: usize = 64;

/// What is kept of an engine profile, which has 64 digits where a node of ours says it.
const PROFILE_CHARACTERS_MAX: usize = 128;

/// What a peer said of its engine is believed for so long: it may be restarted with another.
const PROFILE_DURATION: Duration = Duration::from_secs(2);

/// Persists the cluster this node joins; the reason when it cannot. It may block.
pub type Adopt = Box<dyn Fn(ClusterId) -> Result<(), String> + Send + Sync>;

/// What a peer said of its engine.
struct Profile {
    text: String,
    seen: Instant,
}

/// This node, as far as its peers are concerned.
pub struct Local {
    node_id: NodeId,
    incarnation: Incarnation,
    profile: String,
    cluster: OnceLock<ClusterId>,
    adopt: Mutex<Adopt>,
    alarms: Mutex<Alarms>,
    profiles: Mutex<BTreeMap<NodeId, Profile>>,
    heard: Heard,
    stalls: Stalls,
    logs: KnownLogs,
    /// A member said that this node was removed.
    removed: AtomicBool,
}

impl Local {
    /// `cluster` is what the identity file says, `adopt` writes it there.
    pub fn new(
        node_id: NodeId,
        incarnation: Incarnation,
        profile: String,
        cluster: Option<ClusterId>,
        adopt: Adopt,
    ) -> Arc<Self> {
        Arc::new(Self {
            node_id,
            incarnation,
            profile,
            cluster: cluster.map(OnceLock::from).unwrap_or_default(),
            adopt: Mutex::new(adopt),
            alarms: Mutex::new(Alarms::new(Instant::now())),
            profiles: Mutex::default(),
            heard: Heard::default(),
            stalls: Stalls::default(),
            logs: KnownLogs::default(),
            removed: AtomicBool::new(false),
        })
    }

    /// This node's id.
    pub fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// What this node has lately heard of a leader.
    pub fn heard(&self) -> &Heard {
        &self.heard
    }

    /// Whether the member that was called last said that this node was removed.
    pub fn was_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    /// What this node waits for in vain.
    pub fn stalls(&self) -> &Stalls {
        &self.stalls
    }

    /// The cluster, once this node is in one.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.cluster.get().copied()
    }

    /// Joins `cluster` for good, persisting it first; does nothing when it is in it already. It
    /// blocks: call it off the async workers.
    ///
    /// # Errors
    /// When the node is in another cluster or its disk fails.
    pub fn join(&self, cluster: ClusterId) -> Result<(), String> {
        let adopt = self.adopt.lock().expect("nothing panics while it adopts");
        match self.cluster() {
            Some(present) if present == cluster => Ok(()),
            Some(present) => Err(format!("this node is in cluster {present}")),
            None => {
                adopt(cluster)?;
                self.cluster.set(cluster).expect("only the holder of `adopt` sets it");
                Ok(())
            }
        }
    }

    /// Compares `log` with what peers know of it from now on, and holds votes back until they were
    /// asked (`duties::rejoin`).
    pub fn watch_log(&self, log: Log) {
        self.logs.watch(log);
    }

    /// Where this node's log ends.
    pub fn last(&self) -> Option<LogId> {
        self.logs.own()?.last
    }

    /// Why this node may not take part any more, if its log went back.
    pub fn went_back(&self) -> Option<&str> {
        self.logs.went_back()
    }

    /// Compares this node's log with what a peer knows of it.
    ///
    /// # Errors
    /// Why this node may not take part any more.
    pub fn compare(&self, peer: NodeId, known: Known) -> Result<(), String> {
        self.logs.compare(self.node_id, peer, known)
    }

    /// Lets this node vote.
    pub fn set_votes(&self, votes: Votes) {
        self.logs.set_votes(votes);
    }

    /// A leader has reached this node.
    pub(super) fn set_led(&self) {
        self.logs.set_led();
    }

    /// Whether a leader has reached this node since it started.
    pub fn is_led(&self) -> bool {
        self.logs.is_led()
    }

    /// Whether this node may vote.
    pub fn votes(&self) -> watch::Receiver<Votes> {
        self.logs.votes()
    }

    /// A peer acknowledged up to `heard.last`, or voted for this node.
    pub(super) fn note_log(&self, peer: NodeId, member: &Member, heard: Known) {
        self.logs.note(peer, member, heard);
    }

    /// What the sender of a hello says that this node had in its log, if the log has it no more.
    pub(super) fn lost(&self, hello: &Hello) -> Option<Known> {
        let known = hello.known.as_ref().map(Known::decode)?;
        self.logs.own().filter(|log| known.is_lost_by(log)).map(|_| known)
    }

    /// How far the sender of a hello is known to have had its log.
    pub(super) fn known_of(&self, hello: &Hello) -> Option<Known> {
        let disk = <[u8; 16]>::try_from(&hello.from_incarnation[..]).ok()?;
        self.logs.of(NodeId(hello.from_node), disk)
    }

    /// The hello for a node; `None` while this node is in no cluster, and so may call nobody, and
    /// once its log went back.
    pub(super) fn hello(&self, to: NodeId, member: &Member) -> Option<Hello> {
        if self.went_back().is_some() {
            return None;
        }
        Some(Hello {
            cluster_id: self.cluster()?.0.to_vec().into(),
            from_node: self.node_id.0,
            from_incarnation: self.incarnation.0.to_vec().into(),
            to_node: to.0,
            to_incarnation: member.incarnation.to_vec().into(),
            protocol_version: PROTOCOL_VERSION,
            engine_profile: self.profile.clone(),
            known: self.logs.of(to, member.incarnation).map(Known::encode),
        })
    }

    /// Whether a hello is in order but for its sender, whom the roster does not name: then it is
    /// worth asking who that is.
    pub(super) fn stranger(
        &self,
        hello: &Hello,
        roster: &Roster,
        was_removed: impl Fn(NodeId) -> bool,
    ) -> Option<(NodeId, Incarnation)> {
        let disk = Incarnation::from_slice(&hello.from_incarnation)?;
        match self.check(hello, roster, was_removed) {
            Err(Refusal::Stranger { node }) => Some((node, disk)),
            _ => None,
        }
    }

    /// Decides whether the sender of `hello` may talk to this node, and tells who it is.
    /// `was_removed` looks up whether a node was a member once.
    pub(super) async fn admit(
        self: &Arc<Self>,
        hello: Option<&Hello>,
        roster: &Roster,
        was_removed: impl Fn(NodeId) -> bool,
    ) -> Result<NodeId, Refusal> {
        let hello = hello.ok_or(Refusal::Nameless)?;
        let from = NodeId(hello.from_node);
        let checked = match self.check(hello, roster, was_removed) {
            Ok(cluster) => self.check_cluster(from, cluster).await,
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = checked {
            return Err(self.refuse(from, refusal, roster));
        }
        // The fault is here, and has an alarm of its own.
        if let Some(reason) = self.went_back() {
            return Err(Refusal::WentBack(reason.to_owned()));
        }
        self.clear(from, Side::Refused);
        self.saw_profile(from, &hello.engine_profile);
        Ok(from)
    }

    /// Shows the operator that a call of `from` was refused.
    pub(super) fn refuse(&self, from: NodeId, refusal: Refusal, roster: &Roster) -> Refusal {
        let (mut alarms, now) = (self.locked_alarms(), Instant::now());
        if roster.names(from) {
            alarms.raise(now, from, Side::Refused, &refusal.to_string());
        } else {
            alarms.raise_stranger(now, from, &refusal.to_string());
        }
        drop(alarms);
        refusal
    }

    /// Everything but the cluster, which it returns.
    fn check(
        &self,
        hello: &Hello,
        roster: &Roster,
        was_removed: impl Fn(NodeId) -> bool,
    ) -> Result<ClusterId, Refusal> {
        let (theirs, ours) = (hello.protocol_version, PROTOCOL_VERSION);
        if theirs != ours {
            return Err(Refusal::Version { theirs, ours });
        }
        let cluster = ClusterId::from_slice(&hello.cluster_id).ok_or(Refusal::Nameless)?;
        let (from, to) = (NodeId(hello.from_node), NodeId(hello.to_node));
        if from == self.node_id {
            return Err(Refusal::Namesake { node: from });
        }
        if to != self.node_id {
            return Err(Refusal::OtherNode { meant: to, this: self.node_id });
        }
        if hello.to_incarnation != self.incarnation.0.as_slice() {
            return Err(Refusal::OtherDisk { node: to });
        }
        if let Some(ours) = self.cluster().filter(|ours| *ours != cluster) {
            return Err(Refusal::OtherCluster { node: from, theirs: cluster, ours });
        }
        match roster.standing(from, &hello.from_incarnation) {
            Standing::Member => Ok(cluster),
            Standing::OtherDisk => Err(Refusal::CallersDisk { node: from }),
            Standing::Stranger if was_removed(from) => Err(Refusal::Removed { node: from }),
            Standing::Stranger if roster.is_joining() => Ok(cluster),
            Standing::Stranger => Err(Refusal::Stranger { node: from }),
        }
    }

    /// A node in no cluster follows whoever means it, id and disk: only a node that was told to
    /// add it knows both.
    async fn check_cluster(
        self: &Arc<Self>,
        node: NodeId,
        theirs: ClusterId,
    ) -> Result<(), Refusal> {
        if self.cluster().is_none() {
            let local = self.clone();
            let joined = tokio::task::spawn_blocking(move || local.join(theirs)).await;
            let joined = joined.unwrap_or_else(|error| Err(error.to_string()));
            if self.cluster().is_none() {
                let reason = joined.err().unwrap_or_default();
                return Err(Refusal::NotAdopted { cluster: theirs, reason });
            }
            tracing::info!(cluster = %theirs, by = %node, "joined a cluster");
        }
        // Two callers of two clusters may have come at once, and one of them was first.
        match self.cluster() {
            Some(ours) if ours != theirs => Err(Refusal::OtherCluster { node, theirs, ours }),
            _ => Ok(()),
        }
    }

    /// `peer` refused a call of this node.
    pub(super) fn refused_by(&self, peer: NodeId, reason: &str) {
        let removed = Refusal::Removed { node: self.node_id }.to_string();
        self.removed.store(reason == removed, Ordering::Relaxed);
        self.raise(peer, Side::RefusedBy, reason);
    }

    /// `peer` accepted a call of this node.
    pub(super) fn accepted_by(&self, peer: NodeId) {
        self.removed.store(false, Ordering::Relaxed);
        self.clear(peer, Side::RefusedBy);
    }

    /// `peer` answered what no node of this version answers.
    pub(super) fn answered_badly(&self, peer: NodeId, reason: &str) {
        self.raise(peer, Side::Answer, reason);
    }

    /// `peer` has no room for entries or a snapshot.
    pub(super) fn full(&self, peer: NodeId, reason: &str) {
        self.raise(peer, Side::Full, reason);
    }

    /// `peer` takes entries.
    pub(super) fn takes_entries(&self, peer: NodeId) {
        self.clear(peer, Side::Full);
    }

    /// A peer of another engine profile is let in, because it keeps the log as well as any; one of
    /// the two is parked, and both show it.
    pub(super) fn saw_profile(&self, peer: NodeId, theirs: &str) {
        self.note_profile(peer, theirs);
        if theirs == self.profile {
            return self.clear(peer, Side::Profile);
        }
        let theirs: String = theirs.chars().take(PROFILE_CHARACTERS_MAX).collect();
        self.raise(peer, Side::Profile, &format!("{theirs}, that of this node {}", self.profile));
    }

    fn note_profile(&self, peer: NodeId, theirs: &str) {
        let mut profiles = self.profiles.lock().expect("nothing panics while it holds them");
        profiles.retain(|_, profile| profile.seen.elapsed() < PROFILE_DURATION);
        if profiles.len() < PROFILES_MAX || profiles.contains_key(&peer) {
            let text = theirs.chars().take(PROFILE_CHARACTERS_MAX).collect();
            profiles.insert(peer, Profile { text, seen: Instant::now() });
        }
    }

    /// Whether a node runs a build of this engine profile, as far as it said so lately; this node
    /// itself always does so.
    pub fn runs(&self, node: NodeId, profile: &str) -> bool {
        if node == self.node_id {
            return self.profile == profile;
        }
        let profiles = self.profiles.lock().expect("nothing panics while it holds them");
        let known = profiles.get(&node);
        known.is_some_and(|p| p.text == profile && p.seen.elapsed() < PROFILE_DURATION)
    }

    /// Hash of all that must be equal for replicas to stay equal.
    pub fn profile(&self) -> &str {
        &self.profile
    }

    /// What is wrong between this node and its peers, a sentence each. A sentence goes when the
    /// peer is talked to again, or when nobody has tried for a while.
    pub fn alarms(&self) -> Vec<String> {
        let own = self.went_back();
        let own = own.map(|reason| format!("this node is out of the cluster: {reason}"));
        own.into_iter().chain(self.locked_alarms().sentences(Instant::now())).collect()
    }

    fn raise(&self, peer: NodeId, side: Side, reason: &str) {
        self.locked_alarms().raise(Instant::now(), peer, side, reason);
    }

    fn clear(&self, peer: NodeId, side: Side) {
        self.locked_alarms().clear(peer, side);
    }

    fn locked_alarms(&self) -> MutexGuard<'_, Alarms> {
        self.alarms.lock().expect("nothing panics while it holds the alarms")
    }
}
