//! What always holds of the tables: asserted after every entry that changes them and as a snapshot
//! is made of them, and checked as one is read back.
//!
//! A table that breaks one of these rules was changed by a fault of this program or of its memory.
//! The node must not go on from it.

use std::collections::BTreeSet;

use super::Tables;
use super::agreement::CHECKPOINTS_KEPT;
use super::cluster_limits::ClusterLimits;
use crate::config::limits::{
    MACHINES_MAX, MODULE_BYTES_MAX, MODULES_PARTIAL_MAX, MODULES_SPARE_MAX,
};
use crate::types::{LogIndex, check_machine_name};

impl Tables {
    /// Asserts every rule, as of the last applied entry.
    ///
    /// # Panics
    /// When a rule is broken.
    pub(in crate::machine) fn assert_whole(&self, applied: LogIndex) {
        if let Some(rule) = self.broken_rule(applied) {
            panic!(
                "a broken invariant of the tables at log index {applied}: not true is that {rule}"
            );
        }
    }

    /// The first rule that does not hold, as of the last applied entry.
    pub(in crate::machine) fn broken_rule(&self, applied: LogIndex) -> Option<&'static str> {
        let rules = self.machine_rules(applied).into_iter();
        let rules = rules.chain(self.module_rules(applied)).chain(self.agreement_rules(applied));
        rules.filter(|(holds, _)| !holds).map(|(_, rule)| rule).next()
    }

    fn machine_rules(&self, applied: LogIndex) -> [(bool, &'static str); 6] {
        let machines = || self.machines.values();
        let names: BTreeSet<&str> = machines().map(|machine| machine.name.as_str()).collect();
        let complete = |digest| {
            let module = self.modules.get(digest);
            module.is_some_and(|module| !module.is_partial())
        };
        [
            (self.machines.len() <= MACHINES_MAX, "there are at most so many machines as may be"),
            (names.len() == self.machines.len(), "no two machines have one name"),
            (
                names.iter().all(|name| check_machine_name(name).is_ok()),
                "each machine has a name that machines may have",
            ),
            (
                self.machines.keys().all(|id| (1..=applied).contains(&id.0)),
                "each machine was created by an entry that is applied",
            ),
            (
                machines().all(|machine| machine.limits.check().is_ok()),
                "each machine has limits that machines may have",
            ),
            (
                machines().all(|machine| complete(&machine.module)),
                "the module of each machine is staged whole",
            ),
        ]
    }

    fn module_rules(&self, applied: LogIndex) -> [(bool, &'static str); 5] {
        let modules = || self.modules.values();
        let limit = u64::try_from(MODULE_BYTES_MAX).expect("a constant that fits");
        let needed: BTreeSet<_> = self.machines.values().map(|machine| machine.module).collect();
        let partial = modules().filter(|module| module.is_partial()).count();
        let spare = self
            .modules
            .iter()
            .filter(|(digest, module)| !needed.contains(digest) && !module.is_partial());
        // Machines that are removed leave theirs, which stay until a checkpoint drops them.
        let spare_max = MODULES_SPARE_MAX + MODULES_PARTIAL_MAX + MACHINES_MAX;
        [
            (
                modules().all(|module| (1..=limit).contains(&module.length)),
                "each module has a length that modules may have",
            ),
            (
                modules().all(|module| (1..=module.length).contains(&module.staged)),
                "something of each module is staged, and no more than it has",
            ),
            (
                modules().all(|module| module.touched <= applied),
                "each module was touched last by an entry that is applied",
            ),
            (
                modules()
                    .map(|module| module.compile_work_max)
                    .chain([self.cluster_limits.compile_work_max])
                    .all(|compile_work_max| ClusterLimits { compile_work_max }.check().is_ok()),
                "the cluster and each module have limits that clusters may have",
            ),
            (
                partial <= MODULES_PARTIAL_MAX && spare.count() <= spare_max,
                "there are at most so many modules without a machine as may be",
            ),
        ]
    }

    fn agreement_rules(&self, applied: LogIndex) -> [(bool, &'static str); 6] {
        [
            (
                self.checkpoints.len() <= CHECKPOINTS_KEPT,
                "at most so many checkpoints are kept as may be",
            ),
            (
                self.checkpoints.keys().all(|index| (1..=applied).contains(index)),
                "each checkpoint is an entry that is applied",
            ),
            (
                self.sealed.as_ref().is_none_or(|sealed| (1..=applied).contains(&sealed.index)),
                "a seal is an entry that is applied",
            ),
            (
                self.sealed.as_ref().is_none_or(|sealed| {
                    self.engine_profile.as_ref().is_some_and(|profile| *profile != sealed.to)
                }),
                "a cluster is sealed for another engine profile than its own",
            ),
            (
                self.sealed.as_ref().is_none_or(|sealed| {
                    self.checkpoints.last_key_value().map(|(index, _)| *index) == Some(sealed.index)
                }),
                "the newest checkpoint of a sealed cluster is its seal",
            ),
            (
                self.sealed.is_none() || self.machines.values().all(|m| m.restoring.is_none()),
                "no machine of a sealed cluster is being restored",
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tables::seal::Sealed;
    use crate::machine::tables::{MachineRecord, ModuleRecord, Restoring};
    use crate::types::{MachineId, ModuleDigest};
    use crate::wasm::Limits;

    const APPLIED: LogIndex = 20;

    fn digest(number: usize) -> ModuleDigest {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_le_bytes());
        ModuleDigest(digest)
    }

    fn module() -> ModuleRecord {
        let compile_work_max = ClusterLimits::default().compile_work_max;
        ModuleRecord { length: 5, staged: 5, reports: [].into(), touched: 3, compile_work_max }
    }

    fn machine(name: &str) -> MachineRecord {
        let limits = Limits::default();
        MachineRecord { name: name.to_owned(), module: digest(1), limits, restoring: None }
    }

    /// Tables that are whole.
    fn whole() -> Tables {
        Tables {
            modules: [(digest(1), module())].into(),
            machines: [(MachineId(4), machine("a")), (MachineId(5), machine("b"))].into(),
            checkpoints: [(7, Default::default()), (9, Default::default())].into(),
            engine_profile: Some("old".to_owned()),
            sealed: Some(Sealed { index: 9, to: "new".to_owned() }),
            ..Tables::default()
        }
    }

    type Break = fn(&mut Tables);

    /// Each rule is broken by one change of tables that are whole, and named.
    fn check(rows: &[(Break, &str)]) {
        assert_eq!(whole().broken_rule(APPLIED), None);
        for (break_it, part) in rows {
            let mut tables = whole();
            break_it(&mut tables);
            // Among many machines some were created by entries that are not applied yet.
            let is_many = tables.machines.len() > MACHINES_MAX;
            let broken = tables.broken_rule(if is_many { LogIndex::MAX } else { APPLIED });
            assert!(broken.is_some_and(|rule| rule.contains(part)), "{part}: {broken:?}");
        }
    }

    /// What is wrong with machines and modules is named.
    #[test]
    fn broken_machines_and_modules_are_named() {
        check(&[
            (
                |tables| {
                    for number in 0..=u64::try_from(MACHINES_MAX).unwrap() {
                        let one = machine(&format!("m{number}"));
                        tables.machines.insert(MachineId(number + 1), one);
                    }
                },
                "so many machines",
            ),
            (
                |tables| tables.machines.get_mut(&MachineId(5)).unwrap().name = "a".into(),
                "one name",
            ),
            (|tables| tables.machines.get_mut(&MachineId(5)).unwrap().name = "".into(), "a name"),
            (|tables| drop(tables.machines.insert(MachineId(21), machine("c"))), "was created"),
            (|tables| drop(tables.machines.insert(MachineId(0), machine("c"))), "was created"),
            (
                |tables| {
                    let limits = &mut tables.machines.get_mut(&MachineId(4)).unwrap().limits;
                    limits.fuel_per_command = 0;
                },
                "limits",
            ),
            (|tables| tables.cluster_limits.compile_work_max = 0, "limits that clusters"),
            (|tables| tables.cluster_limits.compile_work_max = u64::MAX, "limits that clusters"),
            (
                |tables| tables.modules.get_mut(&digest(1)).unwrap().compile_work_max = 0,
                "limits that clusters",
            ),
            (|tables| tables.modules.get_mut(&digest(1)).unwrap().staged = 4, "staged whole"),
            (|tables| tables.modules.clear(), "staged whole"),
            (
                |tables| {
                    drop(tables.modules.insert(digest(2), ModuleRecord { length: 0, ..module() }))
                },
                "a length",
            ),
            (
                |tables| tables.modules.get_mut(&digest(1)).unwrap().staged = 6,
                "something of each module",
            ),
            (
                |tables| {
                    drop(tables.modules.insert(digest(2), ModuleRecord { staged: 0, ..module() }))
                },
                "something of each module",
            ),
            (|tables| tables.modules.get_mut(&digest(1)).unwrap().touched = 21, "touched last"),
            (
                |tables| {
                    for number in 0..=MODULES_PARTIAL_MAX {
                        let partial = ModuleRecord { staged: 1, ..module() };
                        tables.modules.insert(digest(10 + number), partial);
                    }
                },
                "without a machine",
            ),
        ]);
    }

    /// What is wrong with checkpoints and seals is named.
    #[test]
    fn broken_agreements_are_named() {
        check(&[
            (
                |tables| {
                    for index in 1..=5 {
                        tables.checkpoints.insert(index, Default::default());
                    }
                },
                "so many checkpoints",
            ),
            (|tables| drop(tables.checkpoints.insert(21, Default::default())), "each checkpoint"),
            (|tables| tables.sealed.as_mut().unwrap().index = 7, "newest checkpoint of a sealed"),
            (
                |tables| {
                    let half = Restoring { schema: 1, parts: 0 };
                    tables.machines.get_mut(&MachineId(4)).unwrap().restoring = Some(half);
                },
                "being restored",
            ),
            (|tables| tables.sealed.as_mut().unwrap().index = 21, "a seal"),
            (|tables| tables.engine_profile = Some("new".to_owned()), "another engine profile"),
            (|tables| tables.engine_profile = None, "another engine profile"),
        ]);
    }
}
