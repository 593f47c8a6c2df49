//! How the state of a machine comes in from an export: part by part, each an entry of its own, so
//! that every node gives its guest the same parts between the same entries.

use bytes::Bytes;

use crate::machine::entry::proposal::StatePart;
use crate::machine::guest::import::describe_import;
use crate::machine::guest::thread::ImportPart;
use crate::machine::machines::Machines;
use crate::machine::tables::Refusal;
use crate::machine::{HostFailure, Response};
use crate::types::LogIndex;
use crate::wasm::Manifest;

impl Machines {
    /// Hands a machine that is being restored the next part of its state. A guest that doesn't
    /// take it in costs the machine.
    pub(in crate::machine) async fn import(
        &mut self,
        index: LogIndex,
        part: StatePart,
    ) -> Result<Response, HostFailure> {
        let schema = match self.tables.check_part(&part) {
            Ok(Some(schema)) => schema,
            Ok(None) => return Ok(Response::Nothing),
            Err(refusal) => return Ok(Response::Refused(refusal)),
        };
        self.tables.note_part(&part);
        let StatePart { machine, number, bytes, last } = part;
        assert_eq!(self.tables.is_restoring(&machine), !last, "the last part ends a restore");
        let guest = &self.running[&machine].guest;
        let part = ImportPart { schema, bytes: Bytes::from(bytes), last };
        guest.imports_at(index);
        let imported = guest.import(part).await?;
        let response = match imported {
            Ok(()) => Response::Nothing,
            Err(outcome) => {
                let record = self.tables.machines.remove(&machine);
                let running = self.running.remove(&machine);
                assert!(record.is_some() && running.is_some(), "{machine:?} was there until now");
                Response::ImportFailed(format!("part {number}: {}", describe_import(&outcome)))
            }
        };
        self.publish();
        Ok(response)
    }
}

/// Whether a module takes in states of this version.
pub fn check_schema(manifest: &Manifest, schema: u32) -> Result<(), Refusal> {
    if manifest.importable_schemas.contains(&schema) {
        return Ok(());
    }
    let schemas: Vec<_> = manifest.importable_schemas.iter().map(u32::to_string).collect();
    let (name, schemas) = (&manifest.name, schemas.join(", "));
    let reason =
        format!("guest {name} does not import states of schema {schema}, only of {schemas}");
    Err(Refusal::SchemaNotImportable(reason))
}
