//! What this node has lately heard of a leader: when entries or a heartbeat of it were last
//! accepted, and whether it is known to lead no more.
//!
//! openraft keeps the name of the last leader for ever, since that is part of its vote. A name
//! alone is of no use to a client or an operator: what counts is whether that leader still speaks.
//!
//! **Invariant:** only what openraft accepted counts as heard, never what a peer merely sent.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::types::NodeId;

/// When a leader was last heard, and which leader is doubted.
pub struct Heard {
    last: Mutex<Last>,
    doubted: watch::Sender<Option<NodeId>>,
}

#[derive(Clone, Copy)]
struct Last {
    leader: Option<NodeId>,
    /// When it was heard; the start of this node where no leader was.
    at: Instant,
    /// It is known to lead no more since: its process has ended, or it said so.
    gone: bool,
}

impl Default for Heard {
    fn default() -> Self {
        let last = Last { leader: None, at: Instant::now(), gone: false };
        Self { last: Mutex::new(last), doubted: watch::Sender::new(None) }
    }
}

impl Heard {
    /// openraft accepted entries or a heartbeat of `leader`.
    pub(super) fn note(&self, leader: NodeId) {
        self.note_at(leader, Instant::now());
    }

    fn note_at(&self, leader: NodeId, at: Instant) {
        *self.last() = Last { leader: Some(leader), at, gone: false };
    }

    /// The stream of entries of a peer has ended, for whatever reason.
    pub(super) fn stream_ended(&self, peer: NodeId) {
        self.doubted.send_replace(Some(peer));
    }

    /// Another node would stand for election: it hears no leader.
    pub(super) fn another_stands(&self) {
        let leader = self.last().leader;
        self.doubted.send_replace(leader);
    }

    /// Tells of each peer that may lead no more.
    pub fn doubted(&self) -> watch::Receiver<Option<NodeId>> {
        self.doubted.subscribe()
    }

    /// `leader` leads no more: nothing is to be expected of it.
    pub fn note_gone(&self, leader: NodeId) {
        let mut last = self.last();
        last.gone |= last.leader == Some(leader);
    }

    /// Whether `leader` was heard within this time, and is not known to be gone.
    pub fn hears(&self, leader: NodeId, within: Duration) -> bool {
        self.hears_at(leader, within, Instant::now())
    }

    fn hears_at(&self, leader: NodeId, within: Duration, now: Instant) -> bool {
        let last = *self.last();
        let silence = now.saturating_duration_since(last.at);
        last.leader == Some(leader) && !last.gone && silence <= within
    }

    /// For how long no leader was heard.
    pub fn silence(&self) -> Duration {
        self.last().at.elapsed()
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().expect("nothing panics while it holds the lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHIN: Duration = Duration::from_secs(1);
    const LEADER: NodeId = NodeId(1);

    /// A leader is heard for as long as it was said, unless it is gone, or another is heard.
    #[test]
    fn a_leader_is_heard_for_a_while() {
        let heard = Heard::default();
        let start = Instant::now();
        let hears = |after: Duration| heard.hears_at(LEADER, WITHIN, start + after);
        assert!(!hears(Duration::ZERO), "nobody has spoken");
        heard.note_at(LEADER, start);
        assert!(hears(WITHIN));
        assert!(!hears(WITHIN + Duration::from_millis(1)), "it has been silent for too long");
        heard.note_gone(NodeId(2));
        assert!(hears(WITHIN), "another is gone");
        heard.note_gone(LEADER);
        assert!(!hears(Duration::ZERO), "it is gone");
        heard.note_at(LEADER, start);
        assert!(hears(WITHIN), "it is back");
        heard.note_at(NodeId(2), start);
        assert!(!hears(Duration::ZERO), "another leads");
    }

    /// Each doubt is told, also when it is about the same leader again.
    #[tokio::test]
    async fn doubts_are_told() {
        let heard = Heard::default();
        let mut doubted = heard.doubted();
        heard.note(LEADER);
        for turn in 0..4 {
            if turn % 2 == 0 {
                heard.stream_ended(LEADER);
            } else {
                heard.another_stands();
            }
            doubted.changed().await.expect("it is there");
            assert_eq!(*doubted.borrow_and_update(), Some(LEADER));
        }
    }
}
