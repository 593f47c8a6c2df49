//! How a machine is rebuilt from an export: begun on the leader, then part by part. Whoever
//! restores knows the number of each part, so that one whose fate is unknown can be sent again,
//! also to another leader.

use std::time::Instant;

use super::error::Error;
use super::replica::Replica;
use super::status::MachineStatus;
use crate::machine::proposal::StatePart;
use crate::machine::{Limits, Proposal, Response, check_schema};
use crate::types::{ModuleDigest, check_machine_name};

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
        check_machine_name(name).map_err(|reason| Error::Invalid(reason.to_owned()))?;
        self.check_leader()?;
        self.shared.space.check()?;
        self.wait_ready(module, deadline).await?;
        self.check_importable(module, schema).await?;
        let begin = Proposal::BeginRestore { name: name.to_owned(), module, limits, schema };
        match self.write(&begin, deadline).await? {
            (_, Response::MachineCreated(_)) => self.machine(name),
            (index, other) => panic!("entry {index} begins a restore and answered {other:?}"),
        }
    }

    /// Looks at the module here before anything reaches the log.
    async fn check_importable(&self, module: ModuleDigest, schema: u32) -> Result<(), Error> {
        let environment = self.shared.environment.clone();
        let compile =
            move || environment.compiled.get(&environment.engine, &*environment.library, module);
        let compiled = tokio::task::spawn_blocking(compile)
            .await
            .map_err(|error| Error::ModuleRefused(format!("compiling it panicked: {error}")))?
            .map_err(Error::ModuleNotReady)?;
        Ok(check_schema(compiled.manifest(), schema)?)
    }

    /// Hands a machine that is being restored a part of its state. One that is in already changes
    /// nothing.
    pub async fn import_state(&self, part: StatePart, deadline: Instant) -> Result<(), Error> {
        self.check_leader()?;
        self.shared.space.check()?;
        self.write(&Proposal::ImportState(part), deadline).await.map(drop)
    }
}
