//! The change of the engine while a cluster runs (decision 0009): the seal and its end.
//!
//! From a `Seal` on nothing is written, so that replicas of two engine profiles can stand beside
//! each other: those of the old one on their images, those of the new one on the exports that were
//! agreed on at the seal. The next `EngineProfile` decides which of the two goes on.
//!
//! Invariant: an entry that writes is applied by replicas of one engine profile alone.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::machine::entry::proposal::Proposal;
use crate::machine::machines::Machines;
use crate::machine::tables::{Refusal, Tables};
use crate::types::{LogIndex, Membership, short};

/// An engine change under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Index of the `Seal`, at which every node takes a snapshot.
    pub index: LogIndex,
    /// The engine profile that the cluster shall go on with.
    pub to: String,
}

impl fmt::Display for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, to } = self;
        write!(f, "the cluster is sealed for engine profile {} since index {index}", short(to))
    }
}

impl Tables {
    /// Begins an engine change.
    fn seal(&mut self, index: LogIndex, to: String) -> Result<(), Refusal> {
        let bad = |reason: &str| Err(Refusal::BadSeal(reason.to_owned()));
        match &self.engine_profile {
            None => return bad("the log has no engine profile yet: try again"),
            Some(profile) if *profile == to => return bad("the cluster has this engine profile"),
            Some(_) => {}
        }
        // What is half in has no export.
        if let Some(half) = self.machines.values().find(|record| record.restoring.is_some()) {
            let name = &half.name;
            return bad(&format!("machine {name} is being restored: wait for it, or remove it"));
        }
        assert!(self.sealed.is_none(), "while sealed, a second seal is refused: {index}");
        self.note_checkpoint(index);
        self.sealed = Some(Sealed { index, to });
        Ok(())
    }

    /// Takes the engine profile of a log without one, and ends an engine change: by the profile
    /// that it leads to, once the exports were agreed on, or by the one before.
    fn decide_profile(&mut self, profile: String) -> Result<(), Refusal> {
        let Some(Sealed { index, to }) = &self.sealed else {
            self.engine_profile.get_or_insert(profile);
            return Ok(());
        };
        let is_agreed = self.checkpoints.get(index).is_some_and(|record| record.agreed.is_some());
        if *to == profile && !is_agreed {
            let reason = format!("the voters have not agreed on their states at {index} yet");
            return Err(Refusal::BadSeal(reason));
        }
        if *to != profile && self.engine_profile.as_ref() != Some(&profile) {
            let reason = format!("the engine changes to {}, not {}", short(to), short(&profile));
            return Err(Refusal::BadSeal(reason));
        }
        self.engine_profile = Some(profile);
        self.sealed = None;
        Ok(())
    }
}

impl Machines {
    /// The engine change under way.
    pub fn sealed(&self) -> Option<&Sealed> {
        self.tables.sealed.as_ref()
    }

    /// Why an entry is refused before it is looked at. While sealed there is no checkpoint either:
    /// replicas of two profiles would make different ones.
    pub(in crate::machine) fn refuse(&self, proposal: &Proposal) -> Option<Refusal> {
        let is_write = proposal.is_write();
        if let Some(reason) = self.halted.clone().filter(|_| is_write) {
            return Some(Refusal::Halted(reason));
        }
        let sealed = self.sealed().filter(|_| is_write || *proposal == Proposal::Checkpoint)?;
        Some(Refusal::Sealed(sealed.to_string()))
    }

    pub(in crate::machine) fn seal(
        &mut self,
        index: LogIndex,
        to: String,
        membership: &Membership,
    ) -> Result<(), Refusal> {
        self.tables.seal(index, to)?;
        tracing::info!(
            index,
            "sealed for an engine change: nothing is written until it is decided"
        );
        self.judge(membership);
        Ok(())
    }

    pub(in crate::machine) fn decide_profile(&mut self, profile: String) -> Result<(), Refusal> {
        let was_sealed = self.sealed().is_some();
        self.tables.decide_profile(profile)?;
        if was_sealed {
            tracing::info!(profile = self.engine_profile(), "the engine change is decided");
        }
        self.publish();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tables::agreement::CheckpointReport;
    use crate::machine::tables::{MachineRecord, Restoring};
    use crate::types::{MachineId, ModuleDigest, NodeId, StateDigest};
    use crate::wasm::Limits;

    fn membership() -> Membership {
        let voters = [1, 2, 3].map(NodeId);
        Membership {
            voters: vec![voters.into()],
            members: voters.map(|node| (node, Default::default())).into(),
        }
    }

    /// Tables with profile `old`, sealed at 10 for `new`; with the reports of so many voters.
    fn sealed(reports: u64) -> Tables {
        let mut tables = Tables::default();
        tables.decide_profile("old".to_owned()).unwrap();
        tables.seal(10, "new".to_owned()).unwrap();
        for node in (1..=reports).map(NodeId) {
            let report = CheckpointReport { index: 10, node, digest: StateDigest([9; 32]) };
            tables.note_report(report, &membership());
        }
        assert_eq!(tables.judge(&membership()), None);
        tables
    }

    /// A seal is ended by the profile it leads to, once a majority agreed on the exports, or by the
    /// one before, at any time; no other, and not before.
    #[test]
    fn the_next_profile_decides() {
        let rows = [
            ("new", 0, Err("have not agreed")),
            ("new", 1, Err("have not agreed")),
            ("new", 2, Ok("new")),
            ("old", 0, Ok("old")),
            ("old", 3, Ok("old")),
            ("other", 3, Err("changes to new, not other")),
        ];
        for (profile, reports, expected) in rows {
            let mut tables = sealed(reports);
            let before = tables.clone();
            match (tables.decide_profile(profile.to_owned()), expected) {
                (Ok(()), Ok(now)) => {
                    assert_eq!(tables.engine_profile.as_deref(), Some(now));
                    assert_eq!(tables.sealed, None);
                }
                (Err(refusal), Err(part)) => {
                    assert!(refusal.to_string().contains(part), "{profile}: {refusal}");
                    assert_eq!(tables, before, "{profile} changes nothing");
                }
                (result, _) => panic!("{profile} with {reports} reports: {result:?}"),
            }
            let after = tables.clone();
            if after.sealed.is_none() {
                tables.decide_profile("late".to_owned()).unwrap();
                assert_eq!(tables, after, "once it is decided, a late one changes nothing");
            }
        }
    }

    /// A seal needs a profile to leave, and another to go to.
    #[test]
    fn a_seal_needs_two_profiles() {
        let mut tables = Tables::default();
        let refused = |tables: &mut Tables, part: &str| {
            let before = tables.clone();
            let refusal = tables.seal(10, "new".to_owned()).unwrap_err().to_string();
            assert!(refusal.contains(part), "{refusal}");
            assert_eq!(*tables, before);
        };
        refused(&mut tables, "no engine profile yet");
        tables.decide_profile("new".to_owned()).unwrap();
        refused(&mut tables, "has this engine profile");
    }

    /// A machine whose state is half in has no export that the new engine could start from.
    #[test]
    fn a_seal_waits_for_a_restore() {
        let mut tables = Tables::default();
        tables.decide_profile("old".to_owned()).unwrap();
        let record = MachineRecord {
            name: "half".to_owned(),
            module: ModuleDigest([1; 32]),
            limits: Limits::default(),
            restoring: Some(Restoring { schema: 1, parts: 3 }),
        };
        tables.machines.insert(MachineId(4), record);
        let refusal = tables.seal(10, "new".to_owned()).unwrap_err().to_string();
        assert!(refusal.contains("half is being restored"), "{refusal}");
        tables.machines.clear();
        tables.seal(10, "new".to_owned()).unwrap();
    }
}
