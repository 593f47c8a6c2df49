//! Makes a node's state another than the cluster's, behind its back: its newest snapshot is
//! written again, well formed, with other bytes in the memory of its guests.

use lockstep_host::storage::snapshot::{Part, Snapshot, SnapshotDir};

use crate::node::Node;

/// Section of a guest's memory: a head, then its blocks (docs/formats.md, "Snapshot sections").
const SECTION_IMAGE: u8 = 6;
/// Last section of a file: the digest of what is in those before.
const SECTION_DIGEST: u8 = 128;

type Sections = Vec<(u8, Vec<Vec<u8>>)>;

fn folder(node: &Node) -> SnapshotDir {
    SnapshotDir::open(&node.data_dir.join("snapshots")).expect("the snapshots can be listed")
}

fn read(snapshot: &Snapshot) -> Sections {
    let mut reader = snapshot.open();
    let mut sections = Sections::new();
    while let Some(part) = reader.next_part().expect("the snapshot is whole") {
        match part {
            Part::Section(kind) => sections.push((kind, Vec::new())),
            Part::Chunk(chunk) => {
                let (_, chunks) = sections.last_mut().expect("a chunk is of a section");
                chunks.push(chunk.to_vec());
            }
        }
    }
    sections
}

/// Replaces some bytes in the guests' memory, wherever they are, in the newest snapshot of a node
/// that does not run. The file says nothing of its digest then, so nobody notices before the next
/// checkpoint.
///
/// # Panics
/// When there is no such snapshot, it cannot be written, or the bytes are nowhere in it.
pub fn replace_in_memory(node: &Node, bytes: &[u8], by: &[u8]) {
    assert_eq!(bytes.len(), by.len(), "the memory keeps its length");
    let snapshot = folder(node).newest().expect("the node has a snapshot");
    let mut sections = read(&snapshot);
    let mut replaced = 0;
    let images = sections.iter_mut().filter(|(kind, _)| *kind == SECTION_IMAGE);
    for chunk in images.flat_map(|(_, chunks)| chunks) {
        for start in 0..chunk.len().saturating_sub(bytes.len() - 1) {
            if chunk[start..].starts_with(bytes) {
                chunk[start..start + by.len()].copy_from_slice(by);
                replaced += 1;
            }
        }
    }
    assert!(replaced > 0, "{bytes:?} is nowhere in the guests' memory");
    std::fs::remove_file(snapshot.path()).expect("the snapshot can be removed");
    let begun = folder(node).begin(snapshot.id().last, snapshot.meta());
    let mut writer = begun.expect("a snapshot can be written");
    for (kind, chunks) in sections.iter().filter(|(kind, _)| *kind != SECTION_DIGEST) {
        writer.section(*kind).expect("a section can be written");
        chunks.iter().for_each(|chunk| writer.chunk(chunk).expect("a chunk can be written"));
    }
    writer.finish().expect("the snapshot can be finished");
}
