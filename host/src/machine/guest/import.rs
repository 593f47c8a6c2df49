//! A machine's guest from its export, where the engine changes: a fresh guest takes in, under the
//! new engine, what the one before it serialized under the old.
//!
//! Invariant: every replica that imports makes the same calls with the same chunks, so that all
//! come to the same memory and the same fuel.

use bytes::Bytes;

use crate::machine::HostFailure;
use crate::machine::guest::thread::{GuestHandle, ImportPart};
use crate::machine::machines::{Machines, Running, describe, describe_failure};
use crate::machine::snapshot::content::{ExportHead, SECTION_EXPORT_END, Sections};
use crate::types::Outcome;
use crate::wasm::{Failure, Limits};

impl Machines {
    /// Starts a guest in the state of an export.
    ///
    /// # Errors
    /// `Import` where this engine can't run the module, or the guest does not take its export in:
    /// every replica of this engine comes to the same.
    pub(in crate::machine) async fn import_guest(
        &mut self,
        head: &ExportHead,
        limits: Limits,
        sections: &mut Sections,
    ) -> Result<(), HostFailure> {
        let refused = |why: String| {
            let name = &head.name;
            HostFailure::Import(format!("machine {name:?} cannot start from its export: {why}"))
        };
        let blueprint = self.blueprint(head.module, limits).await;
        let (blueprint, manifest) = blueprint.map_err(|failure| refused(failure.to_string()))?;
        let started = GuestHandle::start(&head.name, blueprint).await;
        let guest = started.map_err(|failure| match failure {
            Failure::Host(reason) => HostFailure::Stop(reason),
            failure => refused(describe_failure(&failure)),
        })?;
        import(&guest, head.schema, sections).await?.map_err(refused)?;
        self.running.insert(head.machine, Running { guest, manifest, limits });
        Ok(())
    }
}

/// Hands a guest all of an export, the last chunk as the last. The inner error says why the guest
/// has not its state.
async fn import(
    guest: &GuestHandle,
    schema: u32,
    sections: &mut Sections,
) -> Result<Result<(), String>, HostFailure> {
    let mut held = sections.chunk().await?;
    loop {
        let next = sections.chunk().await?;
        let last = next.is_none();
        if last && sections.next_kind() != Some(SECTION_EXPORT_END) {
            return Ok(Err("its export was broken off by a failure of its guest".to_owned()));
        }
        let bytes = Bytes::from(held.unwrap_or_default());
        if let Err(outcome) = guest.import(ImportPart { schema, bytes, last }).await? {
            return Ok(Err(describe_import(&outcome)));
        }
        if last {
            return Ok(Ok(()));
        }
        held = next;
    }
}

/// A sentence about a part of an export that a guest did not take in.
pub(super) fn describe_import(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Rejected(words) => {
            format!("the guest refuses it: {}", String::from_utf8_lossy(words))
        }
        Outcome::OutOfFuel { .. } => {
            format!("{}: it needs a larger --fuel-per-export-step", describe(outcome))
        }
        outcome => describe(outcome),
    }
}
