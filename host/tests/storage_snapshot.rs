//! Snapshot files: what is written comes back, half of it is never visible, damage is named.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::path::Path;

use bytes::Bytes;
use lockstep_host::storage::Error;
use lockstep_host::storage::snapshot::{Part, Snapshot, SnapshotDir, SnapshotId};
use lockstep_host::types::{LogId, NodeId};

fn log_id(index: u64) -> LogId {
    LogId { term: 3, node: NodeId(7), index }
}

/// Kinds of sections, each with its chunks.
type Sections = Vec<(u8, Vec<Vec<u8>>)>;

/// Chunks of two sections, one of which is empty, with text that compresses and bytes that don't.
fn sections() -> Sections {
    let mut seed = 1u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed.to_be_bytes()[0]
    })
    .take(5000)
    .collect();
    vec![
        (1, vec![b"lockstep ".repeat(3000), noise, vec![], b"end".to_vec()]),
        (9, vec![]),
        (1, vec![vec![0; 100_000]]),
    ]
}

fn write(dir: &SnapshotDir, last: Option<LogId>) -> Snapshot {
    let mut writer = dir.begin(last, b"membership").unwrap();
    for (kind, chunks) in sections() {
        writer.section(kind).unwrap();
        chunks.iter().for_each(|chunk| writer.chunk(chunk).unwrap());
    }
    writer.finish().unwrap()
}

fn read(snapshot: &Snapshot) -> Result<Sections, Error> {
    let mut reader = snapshot.open();
    let mut sections = Sections::new();
    while let Some(part) = reader.next_part()? {
        match part {
            Part::Section(kind) => sections.push((kind, Vec::new())),
            Part::Chunk(chunk) => sections.last_mut().unwrap().1.push(chunk.to_vec()),
        }
    }
    Ok(sections)
}

fn file_names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What is written comes back after a reopen: log id, description, sections and chunk boundaries.
#[test]
fn a_snapshot_survives_a_reopen() {
    let folder = tempfile::tempdir().unwrap();
    let id = *write(&SnapshotDir::open(folder.path()).unwrap(), Some(log_id(41))).id();
    let dir = SnapshotDir::open(folder.path()).unwrap();
    let snapshot = dir.newest().unwrap();
    assert_eq!(*snapshot.id(), id);
    assert_eq!(snapshot.id().last, Some(log_id(41)));
    assert_eq!(snapshot.meta().as_ref(), b"membership");
    assert_eq!(read(&snapshot).unwrap(), sections());
    assert_eq!(dir.find(&id).unwrap().path(), snapshot.path());
}

/// The state before the first entry has no log id, and its snapshot is read as any other.
#[test]
fn a_snapshot_of_no_entry_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let snapshot = write(&SnapshotDir::open(folder.path()).unwrap(), None);
    assert_eq!(read(&snapshot).unwrap(), sections());
    assert_eq!(snapshot.id().last, None);
}

/// A writer that is dropped leaves nothing, and a start removes what a crash left.
#[test]
fn a_half_written_snapshot_is_never_visible() {
    let folder = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(folder.path()).unwrap();
    let mut writer = dir.begin(Some(log_id(1)), b"").unwrap();
    writer.section(1).unwrap();
    writer.chunk(&[1; 3000]).unwrap();
    assert_eq!(dir.newest().map(|snapshot| *snapshot.id()), None);
    drop(writer);
    assert_eq!(file_names(folder.path()), Vec::<String>::new());

    let writer = dir.begin(Some(log_id(1)), b"").unwrap();
    std::mem::forget(writer);
    assert_eq!(file_names(folder.path()).len(), 1);
    assert!(SnapshotDir::open(folder.path()).unwrap().newest().is_none());
    assert_eq!(file_names(folder.path()), Vec::<String>::new());
}

/// A chunk needs a section, and has a limit.
#[test]
fn a_chunk_out_of_place_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(folder.path()).unwrap();
    let mut writer = dir.begin(None, b"").unwrap();
    assert!(matches!(writer.chunk(b"x"), Err(Error::Refused(_))));
    writer.section(1).unwrap();
    let too_long = vec![0; lockstep_host::storage::snapshot::CHUNK_BYTES_MAX + 1];
    assert!(matches!(writer.chunk(&too_long), Err(Error::Refused(_))));
}

/// A late build never replaces a newer snapshot, and a second build of one keeps the first.
#[test]
fn newest_goes_by_log_id() {
    let folder = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(folder.path()).unwrap();
    write(&dir, Some(log_id(100)));
    write(&dir, Some(log_id(99)));
    assert_eq!(dir.newest().unwrap().id().last, Some(log_id(100)));

    let mut writer = dir.begin(Some(log_id(100)), b"another").unwrap();
    writer.section(1).unwrap();
    assert_eq!(writer.finish().unwrap().meta().as_ref(), b"membership");
    assert_eq!(dir.list().len(), 2);
}

/// Retention keeps the newest, and breaks no read that is under way.
#[test]
fn retention_leaves_open_handles_readable() {
    let folder = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(folder.path()).unwrap();
    let oldest = write(&dir, Some(log_id(1)));
    for index in 2..6 {
        write(&dir, Some(log_id(index)));
    }
    dir.retain(|snapshot| snapshot.id().last >= Some(log_id(4))).unwrap();
    let kept: Vec<_> = dir.list().iter().map(|snapshot| snapshot.id().last).collect();
    assert_eq!(kept, [Some(log_id(4)), Some(log_id(5))]);
    assert_eq!(file_names(folder.path()).len(), 2);
    assert_eq!(read(&oldest).unwrap(), sections());
}

fn raw_bytes(snapshot: &Snapshot, offset: u64) -> Vec<u8> {
    snapshot.raw_chunk(offset, usize::MAX).unwrap().into()
}

/// A transfer goes on where it broke, and the copy equals the original byte for byte.
#[test]
fn a_broken_transfer_is_resumed() {
    let source = tempfile::tempdir().unwrap();
    let target = tempfile::tempdir().unwrap();
    let original = write(&SnapshotDir::open(source.path()).unwrap(), Some(log_id(8)));
    let dir = SnapshotDir::open(target.path()).unwrap();

    let mut incoming = dir.receive(*original.id()).unwrap();
    assert_eq!(incoming.offset(), 0);
    incoming.append(&raw_bytes(&original, 0)[..1000]).unwrap();
    drop(incoming);

    let mut incoming = dir.receive(*original.id()).unwrap();
    assert_eq!(incoming.offset(), 1000);
    for chunk in raw_bytes(&original, incoming.offset()).chunks(777) {
        incoming.append(chunk).unwrap();
    }
    let copy = incoming.finish().unwrap();
    assert_eq!(copy.id(), original.id());
    assert_eq!(read(&copy).unwrap(), sections());
    assert_eq!(file_names(target.path()).len(), 1);
    assert_eq!(SnapshotDir::open(target.path()).unwrap().list().len(), 1);
}

/// A snapshot that is far longer than what is buffered or synced at once comes through whole.
#[test]
fn a_long_snapshot_comes_through() {
    let source = tempfile::tempdir().unwrap();
    let target = tempfile::tempdir().unwrap();
    let mut writer = SnapshotDir::open(source.path()).unwrap().begin(None, b"").unwrap();
    writer.section(1).unwrap();
    let chunk = |number: u64| -> Vec<u8> {
        let words =
            (0..131_072).map(|word: u64| (word + number).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        words.flat_map(u64::to_be_bytes).collect()
    };
    (0..20).for_each(|number| writer.chunk(&chunk(number)).unwrap());
    assert!(writer.written_bytes() > 10 << 20, "it did not compress away");
    let original = writer.finish().unwrap();

    let mut incoming = SnapshotDir::open(target.path()).unwrap().receive(*original.id()).unwrap();
    loop {
        let chunk = original.raw_chunk(incoming.offset(), 1 << 20).unwrap();
        if chunk.is_empty() {
            break;
        }
        incoming.append(&chunk).unwrap();
    }
    let copy = incoming.finish().unwrap();
    let mut reader = copy.open();
    assert_eq!(reader.next_part().unwrap(), Some(Part::Section(1)));
    for number in 0..20 {
        let expected = Some(Part::Chunk(chunk(number).into()));
        assert!(reader.next_part().unwrap() == expected, "chunk {number}");
    }
    assert_eq!(reader.next_part().unwrap(), None);
}

/// A transfer that is short can go on; one of another file is refused and forgotten; one that
/// another replaces leaves nothing.
#[test]
fn a_wrong_transfer_is_refused() {
    let source = tempfile::tempdir().unwrap();
    let target = tempfile::tempdir().unwrap();
    let original = write(&SnapshotDir::open(source.path()).unwrap(), Some(log_id(8)));
    let bytes = raw_bytes(&original, 0);
    let dir = SnapshotDir::open(target.path()).unwrap();

    let mut incoming = dir.receive(*original.id()).unwrap();
    incoming.append(&bytes[..bytes.len() - 1]).unwrap();
    assert!(matches!(incoming.append(&[0, 0]), Err(Error::Refused(_))));
    assert!(matches!(incoming.finish(), Err(Error::Refused(_))));
    assert_eq!(dir.receive(*original.id()).unwrap().offset(), original.id().length - 1);

    let other = SnapshotId { file_crc32c: original.id().file_crc32c ^ 1, ..*original.id() };
    let mut incoming = dir.receive(other).unwrap();
    assert_eq!(incoming.offset(), 0);
    incoming.append(&bytes).unwrap();
    assert!(matches!(incoming.finish(), Err(Error::Damaged { .. })));
    assert_eq!(file_names(target.path()), Vec::<String>::new());

    let mut damaged = bytes;
    damaged[500] ^= 4;
    let mut incoming = dir.receive(*original.id()).unwrap();
    incoming.append(&damaged).unwrap();
    assert!(matches!(incoming.finish(), Err(Error::Damaged { .. })));
    assert!(dir.newest().is_none());
}

/// A flipped bit is found wherever it is, and so is a file that was cut. Every byte of the ends
/// is tried, where the fields are, and a sample of the chunks between.
#[test]
fn damage_is_found_wherever_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(folder.path()).unwrap();
    let path = write(&dir, Some(log_id(8))).path().to_owned();
    let whole = std::fs::read(&path).unwrap();
    let attempt = || -> Result<(), Error> {
        SnapshotDir::open(folder.path())?.newest().expect("it keeps its name").verify()
    };
    let ends = |position: &usize| *position < 90 || position.is_multiple_of(41);
    let footer = whole.len() - 30..whole.len();
    for position in (0..footer.start).filter(ends).chain(footer) {
        let mut damaged = whole.clone();
        damaged[position] ^= 1 << (position % 8);
        std::fs::write(&path, &damaged).unwrap();
        let error = attempt().expect_err(&format!("flip at {position} was not seen"));
        assert!(matches!(&error, Error::Damaged { file, .. } if *file == path), "{error}");
    }
    for length in (0..whole.len()).step_by(97) {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(matches!(attempt(), Err(Error::Damaged { .. })), "cut to {length} was not seen");
    }
    std::fs::write(&path, &whole).unwrap();
    attempt().unwrap();
}

/// A chunk is checked before it is given out, so that nothing is ever made of a damaged one.
#[test]
fn a_damaged_chunk_is_not_given_out() {
    let folder = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(folder.path()).unwrap();
    let mut writer = dir.begin(Some(log_id(8)), b"").unwrap();
    writer.section(1).unwrap();
    writer.chunk(b"first").unwrap();
    writer.chunk(b"second").unwrap();
    let path = writer.finish().unwrap().path().to_owned();
    let mut bytes = std::fs::read(&path).unwrap();
    let position = bytes.windows(6).position(|window| window == b"second").unwrap();
    bytes[position] ^= 1;
    std::fs::write(&path, bytes).unwrap();

    let mut reader = SnapshotDir::open(folder.path()).unwrap().newest().unwrap().open();
    assert_eq!(reader.next_part().unwrap(), Some(Part::Section(1)));
    assert_eq!(reader.next_part().unwrap(), Some(Part::Chunk(Bytes::from_static(b"first"))));
    let error = reader.next_part().unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
}

/// Blocks that are whole but out of place are found at the end of the file.
#[test]
fn exchanged_chunks_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(folder.path()).unwrap();
    let mut writer = dir.begin(Some(log_id(8)), b"").unwrap();
    writer.section(1).unwrap();
    writer.chunk(b"chunk a").unwrap();
    writer.chunk(b"chunk b").unwrap();
    let path = writer.finish().unwrap().path().to_owned();
    let mut bytes = std::fs::read(&path).unwrap();
    let (footer, block) = (24, 16 + 7);
    let end = bytes.len() - footer;
    let (first, second) = bytes[end - 2 * block..end].split_at_mut(block);
    first.swap_with_slice(second);
    std::fs::write(&path, bytes).unwrap();
    let error = SnapshotDir::open(folder.path()).unwrap().newest().unwrap().verify().unwrap_err();
    assert!(error.to_string().contains("whole file"), "{error}");
}

/// A version that this one does not know is refused as such, not called damaged.
#[test]
fn an_unknown_version_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(folder.path()).unwrap();
    let path = write(&dir, Some(log_id(8))).path().to_owned();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8] = 9;
    let checksum = crc32c::crc32c(&bytes[..40]);
    bytes[40..44].copy_from_slice(&checksum.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let error = SnapshotDir::open(folder.path()).unwrap_err();
    assert!(error.to_string().contains("format 9"), "{error}");
}

/// A snapshot is given up, as on a full disk, before it takes the room that must stay free; it
/// leaves nothing behind.
#[test]
fn a_snapshot_leaves_room() {
    let folder = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(folder.path()).unwrap().keeping_free(u64::MAX);
    let error = dir.begin(Some(log_id(1)), b"").err().expect("there is no such disk").into_io();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// The beginning of a section that claims bytes is damage, not what a writer leaves; a chunk of
/// another section than it stands in as well.
#[test]
fn blocks_that_no_writer_leaves_are_damage() {
    let folder = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(folder.path()).unwrap();
    let path = write(&dir, Some(log_id(8))).path().to_owned();
    let whole = std::fs::read(&path).unwrap();
    let meta = u32::from_le_bytes(whole[36..40].try_into().unwrap());
    let first = 44 + usize::try_from(meta).unwrap() + 4;
    assert_eq!(whole[first..first + 3], [1, 1, 0], "the first section begins");
    let second = first + 16;
    assert_eq!(whole[second..second + 2], [2, 1], "its first chunk");
    let stored = u32::from_le_bytes(whole[second + 4..second + 8].try_into().unwrap());
    let stored = usize::try_from(stored).unwrap();
    for (block, body, change, expected) in [
        (first, 0, 8, "the beginning of a section has bytes"),
        (second, stored, 1, "a chunk is not of the section that it stands in"),
    ] {
        let mut bytes = whole.clone();
        bytes[block + change] = 7;
        let sum = crc32c::crc32c(&bytes[block..block + 12]);
        let sum = crc32c::crc32c_append(sum, &bytes[block + 16..block + 16 + body]);
        bytes[block + 12..block + 16].copy_from_slice(&sum.to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let error = Snapshot::open_file(&path).unwrap().verify().unwrap_err().to_string();
        assert!(error.contains("is damaged") && error.contains(expected), "{error}");
    }
}
