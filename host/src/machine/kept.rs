//! The last good state of a parked machine, carried from snapshot to snapshot, so that purging the
//! log never takes what a later repair could start from.
//!
//! Nothing here is restored into a guest. **Invariant:** only an export that was complete is
//! carried.

use std::collections::BTreeSet;

use tokio::sync::mpsc;

use super::HostFailure;
use super::content::{Piece, SECTION_EXPORT, SECTION_EXPORT_END, SECTION_KEPT, Sections, send};
use super::content::{export_end_of, machine_of_export};
use crate::types::MachineId;

/// Begins to read the snapshot before this one, from its start; it can be read more than once.
pub type Previous = Box<dyn Fn() -> mpsc::Receiver<Result<Piece, String>> + Send + Sync>;

/// Sends on what the previous snapshot holds of the machines in `parked`.
pub(super) async fn carry(
    parked: &BTreeSet<MachineId>,
    previous: &Previous,
    pieces: &mpsc::Sender<Piece>,
) -> Result<(), HostFailure> {
    let complete = complete_exports(parked, previous()).await?;
    let mut sections = Sections::new(previous());
    let mut ordinal = 0_usize;
    while let Some((_, head)) = sections.begin().await? {
        let wanted = complete.contains(&ordinal);
        ordinal += 1;
        if wanted {
            send(pieces, Piece::Begin(SECTION_KEPT)).await?;
            send(pieces, Piece::Chunk(head.clone())).await?;
        }
        while let Some(chunk) = sections.chunk().await? {
            if wanted {
                send(pieces, Piece::Chunk(chunk)).await?;
            }
        }
        if wanted {
            send(pieces, Piece::Begin(SECTION_EXPORT_END)).await?;
            send(pieces, Piece::Chunk(export_end_of(machine_of_export(&head)?))).await?;
        }
    }
    Ok(())
}

/// Which sections, counted from 0, hold a complete export of one of the machines.
async fn complete_exports(
    parked: &BTreeSet<MachineId>,
    previous: mpsc::Receiver<Result<Piece, String>>,
) -> Result<BTreeSet<usize>, HostFailure> {
    let mut sections = Sections::new(previous);
    let mut complete = BTreeSet::new();
    let mut candidate = None;
    let mut ordinal = 0;
    while let Some((kind, head)) = sections.begin().await? {
        match kind {
            SECTION_EXPORT | SECTION_KEPT => {
                candidate = parked.contains(&machine_of_export(&head)?).then_some(ordinal);
            }
            SECTION_EXPORT_END => complete.extend(candidate.take()),
            _ => candidate = None,
        }
        while sections.chunk().await?.is_some() {}
        ordinal += 1;
    }
    Ok(complete)
}
