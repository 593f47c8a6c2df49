//! What of a snapshot a machine can be rebuilt from, in this cluster or another: the modules, and
//! what the guests themselves exported. Images are for replicas, and are passed over.

use std::collections::BTreeMap;

use crate::machine::HostFailure;
use crate::machine::snapshot::content::{
    ExportHead, ImageHead, ModuleHead, Piece, SECTION_EXPORT, SECTION_EXPORT_END, SECTION_IMAGE,
    SECTION_MODULE, decode, malformed,
};
use crate::types::{MachineId, ModuleDigest};
use crate::wasm::Limits;

/// A machine as it stands in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedMachine {
    /// Its id, where it was.
    pub id: MachineId,
    /// Its name there.
    pub name: String,
    /// Its module.
    pub module: ModuleDigest,
    /// What its guest might use.
    pub limits: Limits,
    /// Its state as the guest exported it.
    pub export: SavedExport,
}

/// What there is of the export of a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SavedExport {
    /// Whether it can be restored from.
    pub state: ExportState,
    /// Version of the state.
    pub schema: u32,
    /// Count of its chunks.
    pub chunks: u64,
    /// Length of them all, in bytes.
    pub bytes: u64,
}

/// Whether an export is whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExportState {
    /// There is none: the machine was being restored itself.
    #[default]
    Absent,
    /// The guest failed before its end.
    BrokenOff,
    /// It is whole.
    Whole,
}

/// What a snapshot holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Bytes of each module that are in it.
    pub modules: BTreeMap<ModuleDigest, u64>,
    /// The machines by their ids.
    pub machines: BTreeMap<MachineId, SavedMachine>,
}

/// Notes what is in a snapshot as its pieces go by.
#[derive(Default)]
pub struct Survey {
    contents: Contents,
    place: Place,
}

/// Takes one module or export out of a snapshot as its pieces go by.
pub struct Extract {
    wanted: Wanted,
    place: Place,
}

/// What is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The bytes of a module.
    Module(ModuleDigest),
    /// The export of a machine, chunk by chunk.
    Export(MachineId),
}

/// Where in a snapshot the next piece stands.
#[derive(Default)]
enum Place {
    /// Before the first section, or behind a head that is of no interest.
    #[default]
    Elsewhere,
    /// At the head of a section of this kind.
    Head(u8),
    /// In the bytes of something.
    Inside(Wanted),
}

impl Survey {
    /// Notes the next piece.
    ///
    /// # Errors
    /// When it is not what can stand there.
    pub fn add(&mut self, piece: &Piece) -> Result<(), HostFailure> {
        match piece {
            Piece::Begin(kind) => self.place = Place::Head(*kind),
            Piece::Chunk(bytes) => match self.place {
                Place::Elsewhere => {}
                Place::Head(kind) => self.place = self.begin(kind, bytes)?,
                Place::Inside(what) => self.count(what, bytes.len())?,
            },
            Piece::End => {}
        }
        Ok(())
    }

    /// All that went by.
    pub fn finish(self) -> Contents {
        self.contents
    }

    fn begin(&mut self, kind: u8, head: &[u8]) -> Result<Place, HostFailure> {
        match kind {
            SECTION_MODULE => {
                let ModuleHead { digest, .. } = decode(head)?;
                self.contents.modules.insert(digest, 0);
                return Ok(Place::Inside(Wanted::Module(digest)));
            }
            SECTION_IMAGE => {
                let ImageHead { machine: id, name, module, limits, .. } = decode(head)?;
                let export = SavedExport::default();
                let machine = SavedMachine { id, name, module, limits, export };
                self.contents.machines.insert(id, machine);
            }
            SECTION_EXPORT => {
                let ExportHead { machine, schema, .. } = decode(head)?;
                let state = ExportState::BrokenOff;
                *self.export(machine)? = SavedExport { state, schema, ..SavedExport::default() };
                return Ok(Place::Inside(Wanted::Export(machine)));
            }
            SECTION_EXPORT_END => self.export(decode(head)?)?.state = ExportState::Whole,
            _ => {}
        }
        Ok(Place::Elsewhere)
    }

    fn count(&mut self, what: Wanted, length: usize) -> Result<(), HostFailure> {
        let length = u64::try_from(length).expect("a length in memory fits");
        match what {
            Wanted::Module(digest) => *self.contents.modules.entry(digest).or_default() += length,
            Wanted::Export(machine) => {
                let export = self.export(machine)?;
                export.chunks += 1;
                export.bytes += length;
            }
        }
        Ok(())
    }

    fn export(&mut self, machine: MachineId) -> Result<&mut SavedExport, HostFailure> {
        let machine = self.contents.machines.get_mut(&machine);
        machine
            .map(|machine| &mut machine.export)
            .ok_or_else(|| malformed("an export of a machine without an image"))
    }
}

impl Extract {
    /// Nothing has gone by yet.
    pub fn new(wanted: Wanted) -> Self {
        Self { wanted, place: Place::default() }
    }

    /// The next chunk of what is wanted, if this piece is one.
    ///
    /// # Errors
    /// When the piece is not what can stand there.
    pub fn take(&mut self, piece: Piece) -> Result<Option<Vec<u8>>, HostFailure> {
        match piece {
            Piece::Begin(kind) => self.place = Place::Head(kind),
            Piece::Chunk(bytes) => match self.place {
                Place::Head(kind) => self.place = self.begin(kind, &bytes)?,
                Place::Inside(_) => return Ok(Some(bytes)),
                Place::Elsewhere => {}
            },
            Piece::End => {}
        }
        Ok(None)
    }

    fn begin(&self, kind: u8, head: &[u8]) -> Result<Place, HostFailure> {
        let found = match kind {
            SECTION_MODULE => Wanted::Module(decode::<ModuleHead>(head)?.digest),
            SECTION_EXPORT => Wanted::Export(decode::<ExportHead>(head)?.machine),
            _ => return Ok(Place::Elsewhere),
        };
        Ok(if found == self.wanted { Place::Inside(found) } else { Place::Elsewhere })
    }
}
