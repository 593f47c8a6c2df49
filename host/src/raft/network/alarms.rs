//! What is wrong between this node and its peers, as sentences for the operator, and as lines in
//! the log.
//!
//! Callers choose the node ids that they give. **Invariant:** what callers that are no members do
//! never takes the place of an alarm about a member, and neither the alarms nor the lines of the
//! log that they cause grow without bounds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::types::NodeId;

/// Alarms about members: a cluster has few, and each at most one for each [`Side`].
const MEMBER_ALARMS_MAX: usize = 256;
/// Strangers that are named one by one. Of all others only the number is kept.
const STRANGERS_MAX: usize = 8;
/// Length of a reason, in characters.
const REASON_CHARACTERS_MAX: usize = 400;
/// An alarm that is not raised again for so long is over: the peer was removed, or is down. One
/// that lasts is raised at each retry, many times a second.
const ALARM_DURATION: Duration = Duration::from_secs(30);
/// Lines of the log at once.
const LINES_MAX: u32 = 16;
/// Time after which one line more may be written.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// On which side of a connection a problem was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    /// The peer called, this node refused.
    Refused,
    /// This node called, the peer refused.
    RefusedBy,
    /// This node called, and the answer cannot be that of a node.
    Answer,
    /// The peer had no room on its disk for what this node sent.
    Full,
    /// They talk, and one of them must not apply what the other does.
    Profile,
}

impl Side {
    fn sentence(self, peer: NodeId, reason: &str) -> String {
        match self {
            Self::Refused => format!("node {peer} is refused: {reason}"),
            Self::RefusedBy => format!("node {peer} refuses this node: {reason}"),
            Self::Answer => format!("node {peer} answers what no node would: {reason}"),
            Self::Full => format!("node {peer} falls behind: {reason}"),
            Self::Profile => format!("the engine profile of node {peer} is {reason}"),
        }
    }
}

/// What is wrong between this node and one other.
struct Alarm {
    reason: String,
    raised: Instant,
}

impl Alarm {
    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.raised) > ALARM_DURATION
    }
}

/// Everything that is wrong.
pub(super) struct Alarms {
    members: BTreeMap<(NodeId, Side), Alarm>,
    strangers: BTreeMap<NodeId, Alarm>,
    /// Refused calls of strangers that are not named, and when the last one came.
    unnamed: Option<(u64, Instant)>,
    member_lines: Lines,
    stranger_lines: Lines,
}

impl Alarms {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            members: BTreeMap::new(),
            strangers: BTreeMap::new(),
            unnamed: None,
            member_lines: Lines::new(now),
            stranger_lines: Lines::new(now),
        }
    }

    /// Raises an alarm about a member; it is logged when it is new.
    pub(super) fn raise(&mut self, now: Instant, peer: NodeId, side: Side, reason: &str) {
        self.forget_old(now);
        let reason = printable(reason);
        let known = self.members.get(&(peer, side));
        if known.is_none() && self.members.len() >= MEMBER_ALARMS_MAX {
            return;
        }
        if known.is_none_or(|known| known.reason != reason) {
            self.member_lines.write(now, &side.sentence(peer, &reason));
        }
        self.members.insert((peer, side), Alarm { reason, raised: now });
    }

    /// A caller that is no member was refused.
    pub(super) fn raise_stranger(&mut self, now: Instant, caller: NodeId, reason: &str) {
        self.forget_old(now);
        let reason = printable(reason);
        let known = self.strangers.get(&caller);
        if known.is_none() && self.strangers.len() >= STRANGERS_MAX {
            let count = self.unnamed.map_or(0, |(count, _)| count);
            self.unnamed = Some((count.saturating_add(1), now));
            return;
        }
        if known.is_none_or(|known| known.reason != reason) {
            self.stranger_lines.write(now, &Side::Refused.sentence(caller, &reason));
        }
        self.strangers.insert(caller, Alarm { reason, raised: now });
    }

    /// What was wrong is right again.
    pub(super) fn clear(&mut self, peer: NodeId, side: Side) {
        self.members.remove(&(peer, side));
        if side == Side::Refused {
            self.strangers.remove(&peer);
        }
    }

    /// A sentence each, those about members first.
    pub(super) fn sentences(&mut self, now: Instant) -> Vec<String> {
        self.forget_old(now);
        let members = self.members.iter();
        let members = members.map(|((peer, side), alarm)| side.sentence(*peer, &alarm.reason));
        let strangers = self.strangers.iter();
        let strangers = strangers.map(|(peer, alarm)| Side::Refused.sentence(*peer, &alarm.reason));
        let unnamed = self.unnamed.iter();
        let unnamed = unnamed.map(|(count, _)| {
            format!("{count} calls under other node ids, which are no members', were refused")
        });
        members.chain(strangers).chain(unnamed).collect()
    }

    fn forget_old(&mut self, now: Instant) {
        self.members.retain(|_, alarm| !alarm.is_over(now));
        self.strangers.retain(|_, alarm| !alarm.is_over(now));
        let is_over = |last: Instant| now.duration_since(last) > ALARM_DURATION;
        self.unnamed = self.unnamed.filter(|(_, last)| !is_over(*last));
    }
}

/// Lines that go to the log at a limited rate.
struct Lines {
    left: u32,
    refilled: Instant,
    dropped: u64,
}

impl Lines {
    fn new(now: Instant) -> Self {
        Self { left: LINES_MAX, refilled: now, dropped: 0 }
    }

    fn write(&mut self, now: Instant, sentence: &str) {
        if !self.take(now) {
            self.dropped += 1;
            return;
        }
        match std::mem::take(&mut self.dropped) {
            0 => tracing::warn!("{sentence}"),
            dropped => tracing::warn!(dropped, "{sentence} (more lines like it were left out)"),
        }
    }

    /// Whether one line more may be written.
    fn take(&mut self, now: Instant) -> bool {
        let waited = now.duration_since(self.refilled);
        let passed = waited.as_millis() / LINE_INTERVAL.as_millis();
        if passed > 0 {
            let more = u32::try_from(passed).unwrap_or(LINES_MAX);
            self.left = self.left.saturating_add(more).min(LINES_MAX);
            self.refilled = now;
        }
        let is_allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        is_allowed
    }
}

/// A peer's text, fit for a log and a terminal.
fn printable(text: &str) -> String {
    let characters = text.chars().filter(|character| !character.is_control());
    characters.take(REASON_CHARACTERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many ids strangers make up: alarms about members stay, and come first; what is kept
    /// and what is logged of strangers is bounded, in bytes as well.
    #[test]
    fn strangers_hide_nothing_and_fill_nothing() {
        let now = Instant::now();
        let mut alarms = Alarms::new(now);
        for id in 0..8_531 {
            alarms.raise_stranger(now, NodeId(1_000 + id), &"x".repeat(10_000));
        }
        alarms.raise(now, NodeId(2), Side::RefusedBy, "its disk was wiped");
        let said = alarms.sentences(now);
        assert_eq!(said[0], "node 2 refuses this node: its disk was wiped");
        assert_eq!(said.len(), 1 + STRANGERS_MAX + 1);
        assert!(said.iter().map(String::len).sum::<usize>() < 5_000);
        assert!(said.last().unwrap().starts_with("8523 calls under other node ids"), "{said:?}");
        let said = alarms.sentences(now + 2 * ALARM_DURATION);
        assert!(said.is_empty(), "nobody raised them again: {said:?}");
    }

    /// A burst of lines is written, then one for each interval.
    #[test]
    fn lines_are_limited_in_rate() {
        let mut now = Instant::now();
        let mut lines = Lines::new(now);
        for (waited, expected) in [(0, 16), (3, 3), (1_000, 16)] {
            now += waited * LINE_INTERVAL;
            let written = (0..10_000).filter(|_| lines.take(now)).count();
            assert_eq!(written, expected, "after {waited} intervals");
        }
    }
}
