//! What this node remembers of the agreement on its snapshots: which of them are what the cluster
//! agreed on, and for which one it is quarantined. From that follows which one may be given to a
//! peer, which are kept, and up to where the log may go. It touches no file.

use std::collections::BTreeSet;
use std::sync::Mutex;

use tokio::sync::watch;

use super::index;
use crate::machine::CHECKPOINTS_KEPT;
use crate::storage::snapshot::Snapshot;
use crate::types::LogIndex;

/// Snapshots kept of those that the cluster agreed on: the newest, and the one before it, up to
/// which the log is purged.
const AGREED_KEPT: usize = 2;

/// The memory of agreement.
#[derive(Debug)]
pub(super) struct Agreement {
    /// Indexes of snapshots that are what the cluster agreed on.
    agreed: watch::Sender<BTreeSet<LogIndex>>,
    /// The snapshot that this node is quarantined for; it stays until a repair.
    evidence: Mutex<Option<LogIndex>>,
}

impl Agreement {
    /// What may be believed at a start, of snapshots at these `indexes`, beside a log that was
    /// purged up to `purged` and ends with `last`.
    ///
    /// What was agreed on is in the tables, but they come back only with the log. Until then it
    /// is known of what the log has been purged for, and of what a peer sent ahead of the log.
    pub(super) fn at_start(
        indexes: &[LogIndex],
        purged: Option<LogIndex>,
        last: Option<LogIndex>,
    ) -> Self {
        let ahead = indexes.iter().max().copied().filter(|newest| Some(*newest) > last);
        let floor = indexes.iter().filter(|index| Some(**index) <= purged).max();
        // Where what the log was purged for is gone, a repair has put in place what is here.
        let floor = floor.or(indexes.iter().min().filter(|_| purged.is_some())).copied();
        let agreed = watch::Sender::new(ahead.into_iter().chain(floor).collect());
        Self { agreed, evidence: Mutex::default() }
    }

    pub(super) fn watch(&self) -> watch::Receiver<BTreeSet<LogIndex>> {
        self.agreed.subscribe()
    }

    pub(super) fn add(&self, at: LogIndex) {
        self.agreed.send_if_modified(|all| all.insert(at));
    }

    /// As [`Self::add`], and wakes whoever waits for news in any case.
    pub(super) fn adopt(&self, at: Option<LogIndex>) {
        self.agreed.send_modify(|all| all.extend(at));
    }

    pub(super) fn remove(&self, at: LogIndex) {
        self.agreed.send_if_modified(|all| all.remove(&at));
    }

    /// Forgets snapshots that are gone. Nobody waits for that.
    pub(super) fn forget(&self, gone: &BTreeSet<LogIndex>) {
        self.agreed.send_if_modified(|all| {
            all.retain(|index| !gone.contains(index));
            false
        });
    }

    pub(super) fn keep_evidence(&self, at: LogIndex) {
        *self.evidence.lock().expect("no holder panics") = Some(at);
    }

    /// The newest of these, in their order, that was agreed on and is not known to be damaged.
    pub(super) fn newest_sound(&self, list: &[Snapshot]) -> Option<Snapshot> {
        let agreed = self.agreed.borrow();
        list.iter().rfind(|snapshot| is_sound(snapshot) && is_in(&agreed, snapshot)).cloned()
    }

    /// The newest of these that was agreed on, damaged or not.
    pub(super) fn newest(&self, list: &[Snapshot]) -> Option<Snapshot> {
        let agreed = self.agreed.borrow();
        list.iter().rfind(|snapshot| is_in(&agreed, snapshot)).cloned()
    }

    /// Up to where the log may be purged: the snapshot before the newest that was agreed on. The
    /// log must lead on from a sound one.
    pub(super) fn purgeable(&self, list: &[Snapshot]) -> Option<LogIndex> {
        purgeable(&self.agreed.borrow(), list)
    }

    /// Indexes of these that nothing needs any more: those older than the agreed ones kept, and of
    /// those that are not agreed on yet, those that no report can be about any more.
    pub(super) fn unneeded(&self, list: &[Snapshot]) -> BTreeSet<LogIndex> {
        let listed: BTreeSet<LogIndex> = list.iter().filter_map(index).collect();
        // A damaged one stays as long as it is no older than those that are needed.
        let agreed = self.agreed.borrow();
        let oldest = purgeable(&agreed, list);
        let (settled, open): (Vec<LogIndex>, Vec<LogIndex>) =
            listed.iter().partition(|index| agreed.contains(index));
        let newest_settled = settled.last().copied();
        let settled =
            settled.into_iter().filter(|index| oldest.is_none_or(|oldest| *index >= oldest));
        let open = open.into_iter().rev().take(CHECKPOINTS_KEPT);
        let open = open.filter(|index| Some(*index) > newest_settled);
        let evidence = *self.evidence.lock().expect("no holder panics");
        let kept: BTreeSet<LogIndex> = settled.chain(open).chain(evidence).collect();
        assert!(oldest.is_none_or(|oldest| kept.contains(&oldest)), "the log leads on from it");
        listed.difference(&kept).copied().collect()
    }
}

fn purgeable(agreed: &BTreeSet<LogIndex>, list: &[Snapshot]) -> Option<LogIndex> {
    let sound = list.iter().filter(|snapshot| is_sound(snapshot)).filter_map(index);
    sound.filter(|index| agreed.contains(index)).rev().nth(AGREED_KEPT - 1)
}

fn is_sound(snapshot: &Snapshot) -> bool {
    snapshot.damage().is_none()
}

fn is_in(agreed: &BTreeSet<LogIndex>, snapshot: &Snapshot) -> bool {
    index(snapshot).is_some_and(|index| agreed.contains(&index))
}
