//! What every node of a cluster keeps to, beside the limits of machines. It stands in the log and
//! in the tables, since nodes that kept to different limits would admit different modules.

use serde::{Deserialize, Serialize};

use super::{Refusal, Tables};
use crate::config::limits::{COMPILE_WORK_MAX_DEFAULT, COMPILE_WORK_MAX_MAX, COMPILE_WORK_MAX_MIN};
use crate::wasm::InvalidLimit;

/// The limits of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterLimits {
    /// Work that compiling a module may take by estimate. It acts on modules that are uploaded from
    /// then on; those that are in stay.
    pub compile_work_max: u64,
}

impl Default for ClusterLimits {
    fn default() -> Self {
        Self { compile_work_max: COMPILE_WORK_MAX_DEFAULT }
    }
}

impl ClusterLimits {
    /// Refuses what no cluster can have.
    ///
    /// # Errors
    /// The limit, with its bounds.
    pub fn check(&self) -> Result<(), InvalidLimit> {
        let (name, value) = ("compile_work_max", self.compile_work_max);
        let (min, max) = (COMPILE_WORK_MAX_MIN, COMPILE_WORK_MAX_MAX);
        if (min..=max).contains(&value) {
            return Ok(());
        }
        Err(InvalidLimit { name, value, min, max })
    }
}

impl Tables {
    /// Sets the limits of the cluster.
    pub fn set_cluster_limits(&mut self, limits: ClusterLimits) -> Result<(), Refusal> {
        limits.check()?;
        self.cluster_limits = limits;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::entry::proposal::{ModuleChunk, ModuleReport};
    use crate::types::{Member, Membership, ModuleDigest, NodeId};

    fn set(tables: &mut Tables, compile_work_max: u64) -> Result<(), Refusal> {
        tables.set_cluster_limits(ClusterLimits { compile_work_max })
    }

    fn stage(tables: &mut Tables, index: u64, offset: u64) -> u64 {
        let digest = ModuleDigest([1; 32]);
        if offset == 0 {
            tables.begin_again(&digest);
        }
        let chunk = ModuleChunk { digest, length: 2, offset, bytes: vec![0] };
        tables.stage(index, &chunk).unwrap();
        tables.modules[&digest].compile_work_max
    }

    /// Only what a cluster can have is set, and else nothing changes.
    #[test]
    fn limits_are_bounded() {
        let mut tables = Tables::default();
        for value in [0, COMPILE_WORK_MAX_MAX + 1, u64::MAX] {
            let refusal = set(&mut tables, value).unwrap_err().to_string();
            let said = format!("compile_work_max must be 1 to 600000, and {value} is not");
            assert_eq!(refusal, said);
        }
        assert_eq!(tables, Tables::default());
        set(&mut tables, COMPILE_WORK_MAX_MAX).unwrap();
        assert_eq!(tables.cluster_limits.compile_work_max, COMPILE_WORK_MAX_MAX);
    }

    /// A module keeps the limit under which its first piece came in, on every node, whenever that
    /// compiles it; one that was refused and is uploaded again comes under the limit of that time.
    #[test]
    fn a_module_keeps_its_limit() {
        let mut tables = Tables::default();
        set(&mut tables, 2_000).unwrap();
        assert_eq!(stage(&mut tables, 1, 0), 2_000);
        set(&mut tables, 3_000).unwrap();
        assert_eq!(stage(&mut tables, 2, 1), 2_000);
        let again = stage(&mut tables, 3, 0);
        assert_eq!(again, 2_000, "it is there, and nobody has refused it");
        let failure = Some("it is too much".to_owned());
        let digest = ModuleDigest([1; 32]);
        let membership = Membership {
            voters: vec![[NodeId(2)].into()],
            members: [(NodeId(2), Member::default())].into(),
        };
        tables.report(ModuleReport { digest, node: NodeId(2), failure }, &membership);
        assert_eq!(stage(&mut tables, 4, 0), 3_000);
        assert!(tables.modules[&digest].reports.is_empty());
        assert!(tables.modules[&digest].is_partial());
    }
}
