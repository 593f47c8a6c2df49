//! How a machine is rebuilt from an export: begun on the leader, then part by part. Whoever
//! restores knows the number of each part, so that one whose fate is unknown can be sent again,
//! also to another leader.

use std::time::Instant;

use crate::machine::entry::proposal::StatePart;
use crate::machine::{Limits, Proposal, check_schema};
use crate::raft::ask::error::Error;
use crate::raft::ask::replica::Replica;
use crate::raft::ask::status::MachineStatus;
use crate::types::ModuleDigest;

impl Replica {
    /// Creates a machine on an uploaded module, to take in a state of `schema`.
    pub async fn begin_restore(
        &self,
        name: &str,
        module: ModuleDigest,
        limits: Limits,
        schema: u32,
        deadline: Instant,
    ) -> Result<MachineStatus, Error> {
        self.check_creatable(name, module, deadline).await?;
        self.check_importable(module, schema).await?;
        let begin = Proposal::BeginRestore { name: name.to_owned(), module, limits, schema };
        self.write_machine(name, &begin, deadline).await
    }

    /// Looks at the module here before anything reaches the log.
    async fn check_importable(&self, module: ModuleDigest, schema: u32) -> Result<(), Error> {
        let compiled = self.shared.environment.compile(module, u64::MAX).await;
        let compiled = compiled
            .map_err(|error| Error::ModuleRefused(format!("compiling it panicked: {error}")))?
            .map_err(Error::ModuleNotReady)?;
        Ok(check_schema(compiled.manifest(), schema)?)
    }

    /// Hands a machine that is being restored a part of its state. One that is in already changes
    /// nothing.
    pub async fn import_state(&self, part: StatePart, deadline: Instant) -> Result<(), Error> {
        self.check_writable()?;
        self.write(&Proposal::ImportState(part), deadline).await.map(drop)
    }
}
