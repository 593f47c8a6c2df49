//! What the nodes said of their states at checkpoints, and what follows from it.
//!
//! All of it is replicated, so all nodes come to the same conclusion at the same entry. A digest
//! is agreed on once a majority of the voters reported it; two majorities cannot be. While voters
//! differ and none of their digests has a majority, nobody knows which state is right: writes
//! stop. A node that reports nothing delays nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::machine::tables::Tables;
use crate::types::{LogIndex, Membership, NodeId, StateDigest};

/// Checkpoints whose reports are kept: a report on an older one changes nothing any more.
pub const CHECKPOINTS_KEPT: usize = 4;

/// What a node says of its snapshot of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointReport {
    /// Index of the checkpoint's entry.
    pub index: LogIndex,
    /// Who says so.
    pub node: NodeId,
    /// Digest of the state that the snapshot holds.
    pub digest: StateDigest,
}

/// A checkpoint and what was said of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRecord {
    /// The last report of each node, learners included.
    pub reports: BTreeMap<NodeId, StateDigest>,
    /// What a majority of the voters reported. Once there, it stays.
    pub agreed: Option<StateDigest>,
}

impl CheckpointRecord {
    /// The digest that a majority of each voter set reported.
    fn majority(&self, membership: &Membership) -> Option<StateDigest> {
        let digests: BTreeSet<&StateDigest> = self.reports.values().collect();
        let has_majority = |digest: &&StateDigest| {
            let votes = self.reports.iter().filter(|(_, reported)| reported == digest);
            membership.is_majority(&votes.map(|(node, _)| *node).collect())
        };
        digests.into_iter().find(has_majority).copied()
    }

    /// Voters differ and nobody knows who is right.
    fn is_split(&self, membership: &Membership) -> bool {
        let voters = membership.voter_ids();
        let mut reports = self.reports.iter().filter(|(node, _)| voters.contains(node));
        let first = reports.next();
        self.agreed.is_none() && reports.any(|(_, digest)| first.is_some_and(|f| f.1 != digest))
    }
}

impl Tables {
    /// Notes that all nodes take a snapshot at `index`.
    pub fn note_checkpoint(&mut self, index: LogIndex) {
        let last = self.checkpoints.last_key_value().map(|(last, _)| *last);
        assert!(last < Some(index), "checkpoint {index} follows {last:?}");
        self.checkpoints.insert(index, CheckpointRecord::default());
        while self.checkpoints.len() > CHECKPOINTS_KEPT {
            self.checkpoints.pop_first();
        }
    }

    /// Notes what a member says of a checkpoint; one that is no longer kept is passed over.
    pub fn note_report(&mut self, report: CheckpointReport, membership: &Membership) {
        if let Some(record) = self.checkpoints.get_mut(&report.index)
            && membership.members.contains_key(&report.node)
        {
            record.reports.insert(report.node, report.digest);
        }
    }

    /// Settles what the voters agree on, and returns why writes must stop, if they must.
    pub fn judge(&mut self, membership: &Membership) -> Option<String> {
        for record in self.checkpoints.values_mut() {
            record.agreed = record.agreed.or_else(|| record.majority(membership));
            assert!(
                record.agreed.is_none() || !record.reports.is_empty(),
                "nothing is agreed on that nobody reported"
            );
        }
        // What was agreed on later settles what was open before.
        let mut open =
            self.checkpoints.iter().rev().take_while(|(_, record)| record.agreed.is_none());
        let (index, record) = open.find(|(_, record)| record.is_split(membership))?;
        let said: Vec<String> =
            record.reports.iter().map(|(node, digest)| format!("node {node} {digest}")).collect();
        Some(format!(
            "the voters came to different states at checkpoint {index}, and no majority agrees: {}",
            said.join(", ")
        ))
    }
}

/// Nodes whose last report on a checkpoint that was agreed on is another, and on which.
pub fn divergent(checkpoints: &BTreeMap<LogIndex, CheckpointRecord>) -> BTreeMap<NodeId, LogIndex> {
    let mut last = BTreeMap::new();
    for (index, record) in checkpoints {
        let Some(agreed) = &record.agreed else { continue };
        for (node, digest) in &record.reports {
            last.insert(*node, (*index, digest != agreed));
        }
    }
    let differs = last.into_iter().filter(|(_, (_, differs))| *differs);
    differs.map(|(node, (index, _))| (node, index)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(letter: char) -> StateDigest {
        StateDigest([u8::try_from(letter).unwrap(); 32])
    }

    fn membership(sets: &[&[u64]], learners: &[u64]) -> Membership {
        let voters: Vec<BTreeSet<NodeId>> =
            sets.iter().map(|set| set.iter().copied().map(NodeId).collect()).collect();
        let learners = learners.iter().copied().map(NodeId);
        let members = voters.iter().flatten().copied().chain(learners);
        let members = members.map(|node| (node, Default::default())).collect();
        Membership { voters, members }
    }

    /// What the voters agree on, and whether writes stop, after these reports on checkpoint 10:
    /// `1a 2b` is node 1 with digest a, then node 2 with b.
    fn check(membership: &Membership, reports: &str, agreed: Option<char>, halted: bool) {
        let mut tables = Tables::default();
        tables.note_checkpoint(10);
        let mut reason = None;
        for report in reports.split_whitespace() {
            let (node, letter) = report.split_at(1);
            let node = NodeId(node.parse().unwrap());
            let digest = digest(letter.parse().unwrap());
            tables.note_report(CheckpointReport { index: 10, node, digest }, membership);
            reason = tables.judge(membership);
        }
        assert_eq!(tables.checkpoints[&10].agreed, agreed.map(digest), "{reports}");
        assert_eq!(reason.is_some(), halted, "{reports}: {reason:?}");
    }

    /// A majority decides; voters that differ without one stop the writes; who is absent delays
    /// nothing; learners and strangers do not count.
    #[test]
    fn a_majority_decides() {
        let one = membership(&[&[1]], &[]);
        let two = membership(&[&[1, 2]], &[]);
        let three = membership(&[&[1, 2, 3]], &[4]);
        let joint = membership(&[&[1, 2, 3], &[3, 4, 5]], &[]);
        let rows = [
            (&one, "1a", Some('a'), false),
            (&two, "1a", None, false),
            (&two, "1a 2a", Some('a'), false),
            (&two, "1a 2b", None, true),
            (&two, "1a 2b 2a", Some('a'), false),
            (&three, "1a", None, false),
            (&three, "1a 2a", Some('a'), false),
            (&three, "1a 2b", None, true),
            (&three, "1a 2b 3b", Some('b'), false),
            (&three, "1a 2b 3c", None, true),
            (&three, "1a 2a 3b", Some('a'), false),
            (&three, "1a 4b", None, false),
            (&three, "4b 1a 2a", Some('a'), false),
            (&three, "1a 9a", None, false),
            (&joint, "1a 2a 3a", None, false),
            (&joint, "1a 2a 3a 4a", Some('a'), false),
            (&joint, "1a 2a 4b 5b", None, true),
        ];
        for (membership, reports, agreed, halted) in rows {
            check(membership, reports, agreed, halted);
        }
    }

    /// Writes that stopped go on when a later checkpoint is agreed on, and when the voter that
    /// differs is removed.
    #[test]
    fn writes_go_on() {
        let both = membership(&[&[1, 2]], &[]);
        let report = |index, node, letter| CheckpointReport {
            index,
            node: NodeId(node),
            digest: digest(letter),
        };
        let mut tables = Tables::default();
        tables.note_checkpoint(10);
        tables.note_report(report(10, 1, 'a'), &both);
        tables.note_report(report(10, 2, 'b'), &both);
        let reason = tables.judge(&both).unwrap();
        assert!(reason.contains("checkpoint 10") && reason.contains("node 2"), "{reason}");
        tables.note_checkpoint(20);
        assert!(tables.judge(&both).is_some(), "a checkpoint without reports settles nothing");

        let mut later = tables.clone();
        later.note_report(report(20, 1, 'c'), &both);
        later.note_report(report(20, 2, 'c'), &both);
        assert_eq!(later.judge(&both), None);

        assert_eq!(tables.judge(&membership(&[&[1]], &[])), None);
        assert_eq!(tables.checkpoints[&10].agreed, Some(digest('a')));
        assert_eq!(divergent(&tables.checkpoints), [(NodeId(2), 10)].into());
    }

    /// Reports are kept of the newest checkpoints alone, and a later report of a node, after its
    /// repair, takes the place of the one before.
    #[test]
    fn reports_are_bounded_and_replaced() {
        let three = membership(&[&[1, 2, 3]], &[]);
        let mut tables = Tables::default();
        (0..10).for_each(|index| tables.note_checkpoint(index));
        assert_eq!(tables.checkpoints.keys().copied().collect::<Vec<_>>(), [6, 7, 8, 9]);
        let mut report = |node, letter| {
            let report = CheckpointReport { index: 9, node: NodeId(node), digest: digest(letter) };
            tables.note_report(report, &three);
            tables.judge(&three);
            divergent(&tables.checkpoints).into_keys().collect::<Vec<_>>()
        };
        assert!(report(1, 'a').is_empty() && report(2, 'a').is_empty());
        assert_eq!(report(3, 'b'), [NodeId(3)]);
        assert!(report(3, 'a').is_empty());
    }
}
