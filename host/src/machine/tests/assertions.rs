//! Assertions of release builds: each panics where its invariant is broken, and says which.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::machine::entry::proposal::StatePart;
use crate::machine::snapshot::content::{self, ImageHead, SECTION_IMAGE, SECTION_TABLES};
use crate::machine::tables::{MachineRecord, Tables};
use crate::types::MachineId;

/// What a broken invariant says.
fn said(broken: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(broken)).expect_err("nothing was asserted");
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast_ref::<&str>().expect("a panic says something").to_string(),
    }
}

fn batch(machine: u64, commands: usize) -> Batch {
    let machine = MachineId(machine);
    let command = || Command { machine, session: None, bytes: "x".into() };
    Batch::new(machine, &std::iter::repeat_with(command).take(commands).collect::<Vec<_>>())
}

/// Tables with one module, whole, touched at 9, and one machine on it.
fn tables() -> Tables {
    let digest = ModuleDigest([1; 32]);
    let module =
        ModuleRecord { length: 1, staged: 1, reports: [].into(), touched: 9, compile_work_max: 1 };
    let record = MachineRecord {
        name: "m".into(),
        module: digest,
        limits: Limits::default(),
        restoring: Some(Restoring { schema: 1, parts: 2 }),
    };
    Tables {
        modules: [(digest, module)].into(),
        machines: [(MachineId(4), record)].into(),
        checkpoints: [(8, CheckpointRecord::default())].into(),
        ..Tables::default()
    }
}

/// A batch is written as it can be read: with commands, and with no more than an entry has.
#[test]
fn batches_are_written_as_they_can_be_read() {
    let max = limits::ENTRY_COMMANDS_MAX;
    assert_eq!(batch(1, max).count(), max);
    assert!(said(|| drop(batch(1, max + 1))).contains("what is written can be read"));
    assert!(said(|| drop(batch(1, 0))).contains("a batch has commands"));
}

/// What is shown of the machines never goes back, and stands under its own name.
#[test]
fn what_is_shown_goes_on() {
    let directory = Directory::default();
    directory.advance(5, 100);
    directory.advance(5, 100);
    directory.advance(6, 101);
    assert!(said(|| directory.advance(5, 101)).contains("applied went from 6 to 5"));
    assert!(said(|| directory.advance(7, 100)).contains("the time shown went from 101 to 100"));
    let published = Published {
        id: MachineId(1),
        name: "a".into(),
        module: ModuleDigest([1; 32]),
        manifest: None,
        limits: Limits::default(),
        active_limits: None,
        guest: None,
        restoring: None,
    };
    let view = |name: &str| View {
        machines: [(name.to_owned(), published.clone())].into(),
        ..View::default()
    };
    directory.publish(view("a"));
    assert!(said(|| directory.publish(view("b"))).contains("under their own names"));
}

/// Entries change the tables in their order.
#[test]
fn tables_change_in_order() {
    let remove = |index| drop(tables().remove_machine(index, MachineId(4)));
    remove(9);
    assert!(said(|| remove(8)).contains("entries are applied in order"));
    let mut bare = tables();
    bare.modules.clear();
    let removed = || drop(bare.remove_machine(9, MachineId(4)));
    assert!(said(removed).contains("no machine is without one"));
    assert!(said(|| tables().note_checkpoint(8)).contains("checkpoint 8 follows"));
    let part = |number| StatePart { machine: MachineId(4), number, bytes: vec![], last: false };
    tables().note_part(&part(2));
    assert!(said(|| tables().note_part(&part(3))).contains("parts are checked"));
}

/// A state is not gone on from when what runs, what is staged and what the tables tell differ.
#[tokio::test]
async fn what_runs_is_what_the_tables_tell() {
    let mut node = Node::new();
    node.create("counter", "counter").await;
    let live = |node: &mut Node| node.machines.go_live(node.index);
    live(&mut node);
    let (id, record) = node.machines.tables.machines.pop_first().unwrap();
    assert!(said(|| live(&mut node)).contains("exactly the machines of the tables run"));
    node.machines.tables.machines.insert(id, record.clone());
    let smaller = Limits { reply_bytes_max: 1, ..record.limits };
    let other = MachineRecord { limits: smaller, ..record.clone() };
    node.machines.tables.machines.insert(id, other);
    assert!(said(|| live(&mut node)).contains("limits of"));
    node.machines.tables.machines.insert(id, record.clone());
    node.machines.staging.insert(record.module, vec!["x".into()]);
    assert!(said(|| live(&mut node)).contains("pieces here and in the tables differ"));
    node.machines.staging.clear();
    live(&mut node);
}

/// A snapshot whose parts do not fit together is refused in words: a damaged file, or a peer, may
/// have made it so.
#[tokio::test]
async fn a_snapshot_that_does_not_fit_is_refused() {
    let mut node = Node::new();
    node.create("counter", "counter").await;
    let digest = ModuleDigest([9; 32]);
    let module =
        ModuleRecord { length: 5, staged: 2, reports: [].into(), touched: 1, compile_work_max: 1 };
    node.machines.tables.modules.insert(digest, module);
    node.machines.staging.insert(digest, vec!["ab".into()]);
    let mut pieces = node.pieces().await;
    assert!(node.restored(pieces.clone()).await.is_ok());
    let staged = pieces.iter().position(|piece| *piece == Piece::Chunk(b"ab".to_vec()));
    pieces[staged.expect("the piece of the module is there")] = Piece::Chunk(b"abc".to_vec());
    let refused = node.restored(pieces).await.err().map(|error| error.to_string());
    assert!(refused.is_some_and(|text| text.contains("not all that its tables tell of module")));
}

/// Writes the first chunk of a section of this kind anew, after a change of what it holds.
fn rewrite<T>(pieces: &mut [Piece], kind: u8, change: impl FnOnce(&mut T))
where
    T: serde::Serialize + serde::de::DeserializeOwned,
{
    let section = pieces.iter().position(|piece| *piece == Piece::Begin(kind));
    let head = &mut pieces[section.expect("the section is there") + 1];
    let Piece::Chunk(bytes) = head else { panic!("a section begins with a chunk") };
    let mut value = content::decode::<T>(bytes).unwrap();
    change(&mut value);
    *head =
        Piece::Chunk(bincode::serde::encode_to_vec(value, bincode::config::standard()).unwrap());
}

/// A snapshot with limits that no machine, module or cluster can have is refused in words, before
/// any guest starts under them: a damaged file, or a foreign one, may hold any.
#[tokio::test]
async fn limits_that_cannot_be_are_refused_in_a_snapshot() {
    let mut node = Node::new();
    node.create("counter", "counter").await;
    let whole = node.pieces().await;
    let refused = async |pieces: Vec<Piece>, source| {
        let restored = node.restored_in(environment(), source, pieces).await;
        let Some(HostFailure::Stop(reason)) = restored.err() else { panic!("it is not refused") };
        reason
    };
    for (place, limit) in LIMITS.iter().enumerate() {
        for value in [limit.min.checked_sub(1), Some(limit.max + 1), Some(u64::MAX)] {
            let Some(value) = value else { continue };
            let mut values = Limits::default().values();
            values[place] = value;
            let limits = Limits::from_values(values);
            let (mut image, mut tables) = (whole.clone(), whole.clone());
            rewrite(&mut image, SECTION_IMAGE, |head: &mut ImageHead| head.limits = limits);
            rewrite(&mut tables, SECTION_TABLES, |tables: &mut Tables| {
                tables.machines.values_mut().for_each(|machine| machine.limits = limits);
            });
            for source in [Source::Images, Source::Exports] {
                let reason = refused(image.clone(), source).await;
                let said = format!("{} must be {} to {}", limit.name, limit.min, limit.max);
                assert!(reason.contains(&said), "{source:?}: {reason}");
                let reason = refused(tables.clone(), source).await;
                assert!(reason.contains("has limits that machines may have"), "{reason}");
            }
        }
    }
    for compile_work_max in [0, u64::MAX] {
        let (mut cluster, mut module) = (whole.clone(), whole.clone());
        rewrite(&mut cluster, SECTION_TABLES, |tables: &mut Tables| {
            tables.cluster_limits = ClusterLimits { compile_work_max };
        });
        rewrite(&mut module, SECTION_TABLES, |tables: &mut Tables| {
            let modules = tables.modules.values_mut();
            modules.for_each(|module| module.compile_work_max = compile_work_max);
        });
        for pieces in [cluster, module] {
            let reason = refused(pieces, Source::Images).await;
            assert!(reason.contains("limits that clusters may have"), "{reason}");
        }
    }
}
