//! Machines that are rebuilt from exports, entry by entry.

use super::*;
use crate::machine::entry::proposal::StatePart;
use crate::machine::snapshot::backup::{Contents, ExportState, Extract, Survey, Wanted};
use crate::machine::snapshot::content::SECTION_EXPORT;

/// Some hundred thousand bytes, so that an export has several chunks.
const VALUE_BYTES: usize = 80_000;
const EXISTS: &str = "*2\r\n$6\r\nEXISTS\r\n$1\r\n8\r\n";

/// A node with a machine `kv` that holds the keys 0 to 8.
async fn node_with_keys() -> (Node, MachineId) {
    let mut node = Node::new();
    let kv = node.create("kv", "guest-kv").await;
    let value = "v".repeat(VALUE_BYTES);
    for key in 0..9 {
        let set = format!("*3\r\n$3\r\nSET\r\n$1\r\n{key}\r\n${VALUE_BYTES}\r\n{value}\r\n");
        assert_eq!(node.execute(kv, &[&set]).await, [accepted("+OK\r\n")]);
    }
    (node, kv)
}

fn surveyed(pieces: &[Piece]) -> Contents {
    let mut survey = Survey::default();
    pieces.iter().for_each(|piece| survey.add(piece).unwrap());
    survey.finish()
}

fn extracted(pieces: &[Piece], wanted: Wanted) -> Vec<Vec<u8>> {
    let mut extract = Extract::new(wanted);
    pieces.iter().cloned().filter_map(|piece| extract.take(piece).unwrap()).collect()
}

/// The parts in which an export enters a machine.
fn parts(machine: MachineId, chunks: &[Vec<u8>]) -> Vec<Proposal> {
    let part = |(number, bytes): (usize, &Vec<u8>)| {
        let last = number + 1 == chunks.len();
        let number = u64::try_from(number).unwrap();
        Proposal::ImportState(StatePart { machine, number, bytes: bytes.clone(), last })
    };
    chunks.iter().enumerate().map(part).collect()
}

impl Node {
    async fn begin_restore(&mut self, name: &str, guest: &str, schema: u32) -> Response {
        let module = self.stage(guest).await;
        let (name, limits) = (name.to_owned(), Limits::default());
        self.apply(Proposal::BeginRestore { name, module, limits, schema }).await
    }

    /// A machine to take in what `guest` exports.
    async fn restore(&mut self, name: &str, guest: &str) -> MachineId {
        match self.begin_restore(name, guest, 1).await {
            Response::MachineCreated(id) => id,
            other => panic!("{other:?}"),
        }
    }
}

/// A machine rebuilt from the export in a snapshot is equal on a node that took it in at one go
/// and on one that was restored from a snapshot between any two parts; it holds what the exported
/// one held, and is hidden until it is complete.
#[tokio::test]
async fn a_machine_is_rebuilt_from_an_export() {
    let (mut source, kv) = node_with_keys().await;
    let pieces = source.pieces().await;
    let chunks = extracted(&pieces, Wanted::Export(kv));
    assert!(chunks.len() > 2, "an export of {} chunks shows little", chunks.len());

    let mut node = Node::new();
    let machine = node.restore("again", "guest-kv").await;
    let pieces = node.pieces().await;
    let mut restarted = node.restored(pieces).await.unwrap();
    for part in parts(machine, &chunks) {
        assert_eq!(node.execute(machine, &[EXISTS]).await, [Outcome::NoSuchMachine]);
        restarted.index = node.index;
        node.machines.go_live(node.index);
        let seen = node.machines.environment.directory.view().machines["again"].clone();
        assert!(seen.guest.is_none() && seen.restoring.is_some(), "{seen:?}");
        assert_eq!(node.apply(part.clone()).await, Response::Nothing);
        assert_eq!(restarted.apply(part).await, Response::Nothing);
        let pieces = restarted.pieces().await;
        let is_export = |piece: &Piece| *piece == Piece::Begin(SECTION_EXPORT);
        let complete = node.machines.tables.machines[&machine].restoring.is_none();
        assert_eq!(pieces.iter().any(is_export), complete, "half a state is no backup");
        restarted = restarted.restored(pieces).await.unwrap();
    }
    assert_eq!(node.execute(machine, &[EXISTS]).await, [accepted(":1\r\n")]);
    restarted.index = node.index - 1;
    assert_eq!(restarted.execute(machine, &[EXISTS]).await, [accepted(":1\r\n")]);
    assert_eq!(restarted.pieces().await, node.pieces().await);
    assert_eq!(extracted(&node.pieces().await, Wanted::Export(machine)), chunks);
}

/// A part that is in already changes nothing; one that is out of order, too long, or for a machine
/// that takes none in, is refused and changes nothing.
#[tokio::test]
async fn parts_come_in_order_and_once() {
    let (mut source, kv) = node_with_keys().await;
    let chunks = extracted(&source.pieces().await, Wanted::Export(kv));
    let mut node = Node::new();
    let machine = node.restore("again", "guest-kv").await;
    let parts = parts(machine, &chunks);
    assert_eq!(node.apply(parts[0].clone()).await, Response::Nothing);
    let before = node.pieces().await;
    assert_eq!(node.apply(parts[0].clone()).await, Response::Nothing, "it is in already");
    let refused = |reason: &str| Response::Refused(Refusal::BadPart(reason.to_owned()));
    let early = refused("part 2 came, and part 1 is the next");
    assert_eq!(node.apply(parts[2].clone()).await, early);
    let bytes = vec![0; limits::IMPORT_PART_BYTES_MAX + 1];
    let long = StatePart { machine, number: 1, bytes, last: false };
    let reason = refused("a part has 524289 bytes, the limit is 524288");
    assert_eq!(node.apply(Proposal::ImportState(long)).await, reason);
    let nobody = StatePart { machine: MachineId(99), number: 0, bytes: vec![], last: true };
    let gone = Response::Refused(Refusal::NoSuchMachine);
    assert_eq!(node.apply(Proposal::ImportState(nobody)).await, gone);
    assert_eq!(node.pieces().await, before);
    for part in &parts[1..] {
        assert_eq!(node.apply(part.clone()).await, Response::Nothing);
    }
    let complete = Response::Refused(Refusal::NotRestoring("again".to_owned()));
    assert_eq!(node.apply(parts.last().unwrap().clone()).await, complete);
    assert_eq!(node.execute(machine, &[EXISTS]).await, [accepted(":1\r\n")]);
}

/// An export that the guest does not take in, damaged or cut short, costs the machine that was to
/// have it, and nothing else.
#[tokio::test]
async fn a_refused_export_leaves_nothing() {
    let (mut node, kv) = node_with_keys().await;
    node.stage("guest-kv").await;
    let before = node.pieces().await;
    let chunks = extracted(&before, Wanted::Export(kv));
    let mut damaged = chunks.clone();
    damaged[1][7] ^= 1;
    let cut = &chunks[..chunks.len() - 1];
    let rows = [(&damaged[..], "checksum"), (cut, "the export ends early")];
    for (chunks, part_of_reason) in rows {
        let machine = node.restore("again", "guest-kv").await;
        let mut parts = parts(machine, chunks);
        let last = parts.pop().unwrap();
        for part in parts {
            assert_eq!(node.apply(part).await, Response::Nothing);
        }
        let Response::ImportFailed(reason) = node.apply(last.clone()).await else {
            panic!("it was taken in")
        };
        assert!(reason.contains(": the guest refuses it: "), "{reason}");
        assert!(reason.contains(part_of_reason), "{reason}");
        let gone = Response::Refused(Refusal::NoSuchMachine);
        assert_eq!(node.apply(last).await, gone);
        assert_eq!(node.pieces().await, before);
    }
}

/// A module is not given a state of a version that it doesn't import.
#[tokio::test]
async fn a_schema_that_is_not_imported_is_refused() {
    let mut node = Node::new();
    node.stage("guest-kv").await;
    let before = node.pieces().await;
    let reason = "guest guest-kv does not import states of schema 7, only of 1";
    let refused = Response::Refused(Refusal::SchemaNotImportable(reason.to_owned()));
    assert_eq!(node.begin_restore("again", "guest-kv", 7).await, refused);
    assert_eq!(node.pieces().await, before);
}

/// What is in a snapshot is told with what of it can be restored.
#[tokio::test]
async fn a_snapshot_is_surveyed() {
    let (mut node, kv) = node_with_keys().await;
    let hostile = node.create("hostile", "hostile").await;
    node.execute(hostile, &["flood at export"]).await;
    let half = node.restore("half", "guest-kv").await;
    let pieces = node.pieces().await;
    let contents = surveyed(&pieces);
    let component = wasm::tests::component("guest-kv");
    let module = ModuleDigest(Sha256::digest(&component).into());
    assert_eq!(contents.modules[&module], component.len() as u64);
    assert_eq!(extracted(&pieces, Wanted::Module(module)).concat(), component);
    let chunks = extracted(&pieces, Wanted::Export(kv));
    let whole = contents.machines[&kv].export;
    assert_eq!((whole.state, whole.schema), (ExportState::Whole, 1));
    assert_eq!(whole.chunks, chunks.len() as u64);
    assert_eq!(whole.bytes, chunks.concat().len() as u64);
    assert_eq!(contents.machines[&kv].name, "kv");
    assert_eq!(contents.machines[&hostile].export.state, ExportState::BrokenOff);
    assert_eq!(contents.machines[&half].export.state, ExportState::Absent);
}
