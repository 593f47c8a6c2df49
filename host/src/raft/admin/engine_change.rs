//! What operators ask when the engine shall change: seal the cluster, or take the seal back.
//!
//! Everything that would leave the cluster sealed and stuck is looked for before the seal is
//! proposed: an operator who is refused has lost nothing.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::machine::{CheckpointRecord, Directory, Environment, Proposal, Source, View};
use crate::raft::ask::error::Error;
use crate::raft::ask::replica::Replica;
use crate::raft::store::snapshots::content;
use crate::types::{LogIndex, NodeId, StateDigest, short};

/// A voter answers within this time that it is there and applies.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// Voters report on the checkpoint before a seal within this time.
const REPORTS_WITHIN: Duration = Duration::from_secs(30);

impl Replica {
    /// Stops writes and has every node take the snapshot that a build of engine profile `to` starts
    /// from; the log index of it. `without_absent` seals also where a voter can't be reached or
    /// has not reported its state.
    ///
    /// # Errors
    /// `Refused` with the reason and the repair where the change could not be completed: a voter is
    /// missing or parked, states differ, or a guest cannot export its state or take it in. Nothing
    /// has changed then.
    pub async fn seal(
        &self,
        to: &str,
        without_absent: bool,
        deadline: Instant,
    ) -> Result<LogIndex, Error> {
        self.check_writable()?;
        check_sealable(&self.shared.directory.view(), to)?;
        if !without_absent {
            self.check_voters().await?;
        }
        let index = self.checkpoint(deadline).await.map_err(before_seal)?;
        if let Some(failure) = self.shared.snapshots.alarms().export_failures().first() {
            return Err(Error::Refused(format!(
                "{failure}. The next engine starts from exports: mend or remove the machine first"
            )));
        }
        self.wait_reported(index, without_absent, deadline.min(Instant::now() + REPORTS_WITHIN))
            .await?;
        tokio::time::timeout_at(deadline.into(), self.rehearse())
            .await
            .map_err(|_| before_seal(Error::DeadlineBeforeProposal))??;
        let seal = Proposal::Seal { to: to.to_owned() };
        self.write(&seal, deadline).await.map(|(index, _)| index)
    }

    /// Ends the engine change under way by the engine profile before it.
    ///
    /// # Errors
    /// `Refused` where there is none, or it was completed meanwhile.
    pub async fn unseal(&self, deadline: Instant) -> Result<(), Error> {
        self.check_leader()?;
        let view = self.shared.directory.view();
        let (Some(_), Some(before)) = (&view.sealed, &view.engine_profile) else {
            return Err(Error::Refused("the cluster is not sealed".to_owned()));
        };
        self.write(&Proposal::EngineProfile(before.clone()), deadline).await?;
        match &self.shared.directory.view().engine_profile {
            Some(now) if now != before => Err(Error::Refused(format!(
                "the cluster goes on with engine profile {} already",
                short(now)
            ))),
            _ => Ok(()),
        }
    }

    /// Refuses while a voter is away or parked.
    async fn check_voters(&self) -> Result<(), Error> {
        let membership = self.membership();
        for node in membership.voter_ids() {
            if node == self.shared.local.node_id() {
                continue;
            }
            let member = membership.members.get(&node).expect("a voter is a member");
            let asked = self.shared.network.could_lead(node, member, ANSWERS_WITHIN).await;
            asked.map_err(|reason| absent(node, &reason.to_string()))?;
        }
        Ok(())
    }

    /// Waits until every voter, or a majority, has reported the same state of a checkpoint.
    async fn wait_reported(
        &self,
        index: LogIndex,
        majority: bool,
        deadline: Instant,
    ) -> Result<(), Error> {
        let mut views = self.shared.directory.watch();
        loop {
            let view = views.borrow_and_update().clone();
            let record = view.checkpoints.get(&index).cloned().unwrap_or_default();
            let missing = missing_report(&record, &self.membership().voter_ids());
            if record.agreed.is_some() && (majority || missing.is_none()) {
                return Ok(());
            }
            match tokio::time::timeout_at(deadline.into(), views.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Error::ShuttingDown),
                Err(_) => return Err(not_reported(index, missing)),
            }
        }
    }

    /// Has every guest take in its export of the newest agreed snapshot, in an instance that is
    /// thrown away.
    async fn rehearse(&self) -> Result<(), Error> {
        let Some(snapshot) = self.shared.snapshots.agreed() else {
            return Err(Error::Refused("no checkpoint was agreed on".to_owned()));
        };
        let environment = Environment {
            directory: Directory::default().into(),
            ..self.shared.environment.clone()
        };
        let imported = content::restore(environment, &snapshot, Source::Exports).await;
        imported.map(drop).map_err(|failure| {
            let text = format!("{failure}. Mend or remove the machine first; nothing was changed");
            Error::Refused(text)
        })
    }
}

/// What a deadline that passed before the seal was proposed means for who asked for it.
fn before_seal(error: Error) -> Error {
    match error {
        Error::DeadlineBeforeProposal | Error::DeadlineAfterProposal => Error::Refused(
            "what goes before a seal took longer than --timeout; nothing was sealed".to_owned(),
        ),
        error => error,
    }
}

/// Refuses early what the apply of a seal would refuse of a cluster that is written to.
fn check_sealable(view: &View, to: &str) -> Result<(), Error> {
    if let Some((name, _)) = view.machines.iter().find(|(_, machine)| machine.restoring.is_some()) {
        let reason = "is being restored: wait for it, or remove it";
        return Err(Error::Refused(format!("machine {name} {reason}")));
    }
    match &view.engine_profile {
        Some(profile) if profile == to => Err(Error::Refused(format!(
            "the cluster runs engine profile {} already: restart its nodes with that build one by \
             one, without a pause",
            short(to)
        ))),
        _ => Ok(()),
    }
}

/// A voter that has not reported, or another state than was agreed on.
fn missing_report(record: &CheckpointRecord, voters: &BTreeSet<NodeId>) -> Option<NodeId> {
    let fits = |digest: &StateDigest| record.agreed.is_none_or(|agreed| agreed == *digest);
    voters.iter().find(|node| !record.reports.get(node).is_some_and(fits)).copied()
}

fn not_reported(index: LogIndex, missing: Option<NodeId>) -> Error {
    match missing {
        Some(node) => {
            absent(node, &format!("it has not reported the state of the others at {index}"))
        }
        None => Error::Refused(format!("the voters came to different states at {index}")),
    }
}

fn absent(node: NodeId, reason: &str) -> Error {
    Error::Refused(format!(
        "voter {node} would miss the change: {reason}. Bring it back, remove it by `lockstep \
         cluster remove {node}`, or give --without-absent: it needs `lockstep repair` by the new \
         build then"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Missing is who has not reported, or not what was agreed on; of others only voters count.
    #[test]
    fn who_has_not_reported_is_named() {
        let digest = |letter: char| StateDigest([u8::try_from(letter).unwrap(); 32]);
        let rows = [
            ("", None, Some(1)),
            ("1a 2a", Some('a'), Some(3)),
            ("1a 2a 4a", Some('a'), Some(3)),
            ("1a 2a 3a", Some('a'), None),
            ("1a 2b 3a", Some('a'), Some(2)),
            ("1a 2b", None, Some(3)),
            ("1a 2b 3c", None, None),
        ];
        for (reports, agreed, expected) in rows {
            let report = |text: &str| {
                let (node, letter) = text.split_at(1);
                (NodeId(node.parse().unwrap()), digest(letter.parse().unwrap()))
            };
            let reports = reports.split_whitespace().map(report).collect();
            let record = CheckpointRecord { reports, agreed: agreed.map(digest) };
            let voters = [1, 2, 3].map(NodeId).into();
            assert_eq!(missing_report(&record, &voters), expected.map(NodeId), "{record:?}");
        }
    }

    /// Refused early is what would change nothing, or cannot be.
    #[test]
    fn what_cannot_be_sealed_is_refused_early() {
        let view = View { engine_profile: Some("old".to_owned()), ..View::default() };
        assert_eq!(check_sealable(&view, "new"), Ok(()));
        let refused = check_sealable(&view, "old").unwrap_err().to_string();
        assert!(refused.contains("without a pause"), "{refused}");
    }
}
