//! How far each peer is known to have had its log, and what a node makes of what its peers know
//! (docs/decisions/0013-a-log-that-went-back.md).
//!
//! A peer that acknowledged an entry has it on disk, and one that granted its vote has that.
//! Whoever got such an answer remembers it as long as its process lives, and says so in each hello.
//! The peer compares that with its log: if it has less, an old folder was put back, or its disk
//! lost what was synced. Such a node must never vote or acknowledge again.
//!
//! **Invariant:** a node that has just started votes only once it has asked its peers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

use lockstep_proto::peer;
use tokio::sync::watch;

use crate::storage::{Log, LogState};
use crate::types::{LogId, Member, NodeId, Term};

/// How far a node had its log, as another one knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The term in which it acknowledged or voted: its vote is of this term, or a later one.
    pub term: Term,
    /// The last entry that it acknowledged in that term.
    pub last: Option<LogId>,
}

impl Known {
    /// Whether a log that stands so has lost some of that. A vote of a later term may have let
    /// another leader remove entries, and then there is nothing to say.
    pub fn is_lost_by(&self, log: &LogState) -> bool {
        let voted = log.vote.map_or(0, |vote| vote.term);
        voted < self.term || (voted == self.term && log.last < self.last)
    }

    /// As it goes over the wire.
    pub(super) fn encode(self) -> peer::KnownLog {
        let Self { term, last } = self;
        let last =
            last.map(|id| peer::LastEntry { term: id.term, node: id.node.0, index: id.index });
        peer::KnownLog { term, last }
    }

    /// What a peer says.
    pub(super) fn decode(known: &peer::KnownLog) -> Self {
        let last = known.last.as_ref().map(|last| LogId {
            term: last.term,
            node: NodeId(last.node),
            index: last.index,
        });
        Self { term: known.term, last }
    }
}

/// Whether this node may vote yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Votes {
    /// It has just started, and asks its peers first.
    Held,
    /// An end of its log was cut. It votes only for nodes that have what its peers have.
    From(Option<LogId>),
    /// It votes as any other.
    Free,
}

impl Votes {
    /// Whether a node whose log ends so may get this node's vote, itself included.
    pub fn may_go_to(&self, last: Option<LogId>) -> bool {
        match self {
            Self::Held => false,
            Self::From(floor) => last >= *floor,
            Self::Free => true,
        }
    }
}

/// What this process knows of the logs of its peers, and its own log as they see it.
#[derive(Debug)]
pub(super) struct KnownLogs {
    of_peers: Mutex<BTreeMap<(NodeId, [u8; 16]), Known>>,
    /// This node's own log; none in tests of the network alone.
    own: OnceLock<Log>,
    /// Why this node may not take part any more, once a peer knew better.
    went_back: OnceLock<String>,
    votes: watch::Sender<Votes>,
    /// A leader has reached this node since it started.
    is_led: AtomicBool,
}

impl Default for KnownLogs {
    fn default() -> Self {
        Self {
            of_peers: Mutex::default(),
            own: OnceLock::new(),
            went_back: OnceLock::new(),
            votes: watch::Sender::new(Votes::Free),
            is_led: AtomicBool::new(false),
        }
    }
}

impl KnownLogs {
    fn of_peers(&self) -> MutexGuard<'_, BTreeMap<(NodeId, [u8; 16]), Known>> {
        self.of_peers.lock().expect("no holder panics")
    }

    /// Compares this log with what peers know, and holds votes back until they were asked.
    pub(super) fn watch(&self, log: Log) {
        assert!(self.own.set(log).is_ok(), "a node has one log");
        self.votes.send_replace(Votes::Held);
    }

    /// A peer acknowledged, or voted for this node.
    pub(super) fn note(&self, peer: NodeId, member: &Member, heard: Known) {
        let mut of_peers = self.of_peers();
        let known = of_peers.entry((peer, member.incarnation)).or_default();
        if heard.term > known.term {
            *known = heard;
        } else if heard.term == known.term {
            known.last = known.last.max(heard.last);
        }
    }

    /// What is known of a peer on this disk.
    pub(super) fn of(&self, peer: NodeId, incarnation: [u8; 16]) -> Option<Known> {
        self.of_peers().get(&(peer, incarnation)).copied()
    }

    /// Why this node may not take part any more, if so.
    pub(super) fn went_back(&self) -> Option<&str> {
        self.went_back.get().map(String::as_str)
    }

    /// Where this node's own log stands.
    pub(super) fn own(&self) -> Option<LogState> {
        self.own.get()?.state().ok()
    }

    /// Compares this node's log with what `peer` knows of it; the reason when it has less.
    pub(super) fn compare(&self, this: NodeId, peer: NodeId, known: Known) -> Result<(), String> {
        let lost = self.own().filter(|log| known.is_lost_by(log));
        if let Some(log) = lost {
            let text = describe(this, peer, known, &log);
            if self.went_back.set(text.clone()).is_ok() {
                tracing::error!("{text}");
                self.votes.send_replace(Votes::Held);
            }
        }
        self.went_back().map_or(Ok(()), |text| Err(text.to_owned()))
    }

    /// A leader has reached this node, and said what it knows of this log.
    pub(super) fn set_led(&self) {
        if !self.is_led.swap(true, Ordering::Relaxed) {
            self.set_votes(Votes::Free);
        }
    }

    /// Whether a leader has reached this node since it started.
    pub(super) fn is_led(&self) -> bool {
        self.is_led.load(Ordering::Relaxed)
    }

    /// Lets this node vote, unless its log went back.
    pub(super) fn set_votes(&self, votes: Votes) {
        if self.went_back().is_none() {
            self.votes.send_if_modified(|now| std::mem::replace(now, votes) != votes);
        }
    }

    /// Whether this node may vote, and a way to wait for that.
    pub(super) fn votes(&self) -> watch::Receiver<Votes> {
        self.votes.subscribe()
    }
}

fn describe(this: NodeId, peer: NodeId, known: Known, log: &LogState) -> String {
    let entry =
        |last: Option<LogId>| last.map_or("no entry".to_owned(), |id| format!("entry {id}"));
    let (had, has) = (entry(known.last), entry(log.last));
    format!(
        "the log of node {this} went back: node {peer} knows that it had {had} in term {}, and now \
         it ends with {has} and a vote of term {}. An old data folder or an old log was put back, \
         or the disk lost what was synced. Repair: remove node {this}, start it with a new id on \
         an empty folder, add it",
        known.term,
        log.vote.map_or(0, |vote| vote.term)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Vote;

    fn id(term: Term, index: u64) -> Option<LogId> {
        Some(LogId { term, node: NodeId(1), index })
    }

    /// Less than what was acknowledged is a loss, unless a vote of a later term may explain it.
    #[test]
    fn a_loss_is_told_from_what_a_later_leader_removed() {
        let known = Known { term: 5, last: id(5, 100) };
        for (voted, last, is_lost) in [
            (5, id(5, 100), false),
            (5, id(5, 101), false),
            (5, id(5, 99), true),
            (5, None, true),
            (5, id(4, 200), true),
            (4, id(4, 200), true),
            (4, id(5, 100), true),
            (6, id(5, 99), false),
            (6, id(6, 50), false),
        ] {
            let vote = Some(Vote { term: voted, node: NodeId(1), committed: true });
            let log = LogState { vote, last, ..LogState::default() };
            assert_eq!(known.is_lost_by(&log), is_lost, "voted in {voted}, ends with {last:?}");
        }
        assert!(known.is_lost_by(&LogState::default()));
        assert!(!Known::default().is_lost_by(&LogState::default()));
    }

    /// What is known only grows, and belongs to one disk of the peer.
    #[test]
    fn what_is_known_grows() {
        let logs = KnownLogs::default();
        let member = |disk| Member {
            peer_addr: "a:1".to_owned(),
            client_addr: "a:2".to_owned(),
            incarnation: [disk; 16],
        };
        for (term, last) in [(3, id(3, 7)), (3, id(3, 5)), (2, id(2, 9))] {
            logs.note(NodeId(2), &member(1), Known { term, last });
        }
        let expected = Known { term: 3, last: id(3, 7) };
        assert_eq!(logs.of(NodeId(2), [1; 16]), Some(expected));
        assert_eq!(logs.of(NodeId(2), [2; 16]), None);
        let known = Known { term: 4, last: None };
        logs.note(NodeId(2), &member(1), known);
        assert_eq!(logs.of(NodeId(2), [1; 16]), Some(known), "a later term begins anew");
        assert_eq!(Known::decode(&known.encode()), known);
        assert_eq!(Known::decode(&expected.encode()), expected);
    }

    /// A node whose log was cut votes for those alone that have what its peers have.
    #[test]
    fn votes_are_held_back() {
        assert!(!Votes::Held.may_go_to(id(9, 9)));
        assert!(Votes::Free.may_go_to(None));
        let floor = Votes::From(id(5, 10));
        assert!(floor.may_go_to(id(5, 10)) && floor.may_go_to(id(6, 1)));
        assert!(!floor.may_go_to(id(5, 9)) && !floor.may_go_to(None));
    }
}
