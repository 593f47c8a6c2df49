//! Engine changes: what a sealed cluster refuses, and what another engine makes of its exports.

use super::*;
use crate::machine::snapshot::content::{SECTION_EXPORT_END, SECTION_IMAGE};
use crate::types::StateDigest;
use crate::wasm::Engine;

const SET: &str = "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n";
const GET: &str = "*2\r\n$3\r\nGET\r\n$1\r\nk\r\n";

/// A node of another build.
fn other_environment() -> Environment {
    let engine = Engine::of_another_build().unwrap();
    Environment { profile: engine.profile().to_owned(), engine, ..environment() }
}

/// The profile of this build.
fn profile() -> String {
    environment().profile
}

impl Node {
    /// Seals the cluster for a profile; this node is the only voter, and reports.
    async fn seal(&mut self, to: &str) {
        self.apply(Proposal::EngineProfile(profile())).await;
        assert_eq!(self.apply(Proposal::Seal { to: to.to_owned() }).await, Response::Nothing);
        let digest = StateDigest([1; 32]);
        let report = CheckpointReport { index: self.index, node: NodeId(1), digest };
        assert_eq!(self.apply(Proposal::CheckpointReport(report)).await, Response::Nothing);
    }
}

/// While sealed, what writes is refused, a checkpoint and a second seal too; what nodes say of
/// themselves is not. Taken back, all goes on, and the refused left no trace.
#[tokio::test]
async fn a_sealed_cluster_writes_nothing() {
    let mut node = Node::new();
    let counter = node.create("counter", "counter").await;
    let module = node.machines.tables.machines[&counter].module;
    assert_eq!(node.execute(counter, &["1"]).await, [accepted("1")]);
    node.seal("next").await;
    let before = node.pieces().await;
    let command = Command { machine: counter, session: None, bytes: "1".into() };
    let chunk = ModuleChunk { digest: ModuleDigest([9; 32]), length: 9, offset: 0, bytes: vec![1] };
    let limits = LimitsChange { reply_bytes_max: Some(5), ..LimitsChange::default() };
    let refused = [
        Proposal::Commands { time_ms: 99, batches: vec![Batch::new(counter, &[command])] },
        Proposal::Tick { time_ms: 99 },
        Proposal::StageModule(chunk),
        create_proposal("other", module),
        Proposal::RemoveMachine { machine: counter },
        Proposal::SetLimits { machine: counter, change: limits },
        Proposal::Checkpoint,
        Proposal::Seal { to: "another".to_owned() },
    ];
    for proposal in refused {
        let response = node.apply(proposal.clone()).await;
        assert!(matches!(response, Response::Refused(Refusal::Sealed(_))), "{proposal:?}");
    }
    assert!(node.pieces().await == before, "what is refused changes nothing");
    node.membership.members.insert(NodeId(2), Member::default());
    let report = ModuleReport { digest: module, node: NodeId(2), failure: None };
    assert_eq!(node.apply(Proposal::ModuleReady(report)).await, Response::Nothing);
    assert_eq!(node.machines.tables.modules[&module].reports.len(), 2);

    node.apply(Proposal::EngineProfile(profile())).await;
    assert_eq!(node.machines.sealed(), None);
    assert_eq!(node.execute(counter, &["1"]).await, [accepted("2")]);
}

/// Replicas of another engine that start from the exports are equal to each other, to the byte and
/// in fuel, not to those before, and hold what was written; also after a snapshot of their own.
#[tokio::test]
async fn another_engine_starts_from_exports() {
    let mut node = Node::new();
    let counter = node.create("counter", "counter").await;
    let kv = node.create("kv", "guest-kv").await;
    node.execute(counter, &["40", "1"]).await;
    for _ in 0..9 {
        node.execute(kv, &[SET]).await;
    }
    let next = other_environment();
    assert_ne!(next.profile, profile());
    node.seal(&next.profile).await;
    let sealed = node.pieces().await;

    let mut captured = Vec::new();
    for _ in 0..2 {
        let imported = node.restored_in(other_environment(), Source::Exports, sealed.clone()).await;
        let mut replica = imported.unwrap();
        assert_eq!(replica.machines.tables, node.machines.tables);
        replica.apply(Proposal::EngineProfile(next.profile.clone())).await;
        assert_eq!(replica.execute(counter, &["1"]).await, [accepted("42")]);
        assert_eq!(replica.execute(kv, &[GET]).await, [accepted("$1\r\nv\r\n")]);
        let pieces = replica.pieces().await;
        let again = replica.restored_in(other_environment(), Source::Images, pieces.clone()).await;
        assert!(again.unwrap().pieces().await == pieces);
        captured.push(pieces);
    }
    assert!(captured[0] == captured[1], "replicas of the new engine differ");

    let images = |pieces: &[Piece]| -> Vec<Piece> {
        let at = pieces.iter().position(|piece| *piece == Piece::Begin(SECTION_IMAGE)).unwrap();
        pieces[at..at + 2].to_vec()
    };
    assert!(images(&captured[0]) != images(&sealed), "another engine counts other fuel");
}

/// Where a machine cannot start from its export, nothing is restored, and the machine is named.
#[tokio::test]
async fn what_cannot_be_taken_over_is_named() {
    let mut node = Node::new();
    let hostile = node.create("hostile", "hostile").await;
    node.execute(hostile, &["flood at export"]).await;
    let expected = "machine \"hostile\" cannot start from its export: its export was broken off";
    refuses(&mut node, expected).await;

    node.apply(Proposal::RemoveMachine { machine: hostile }).await;
    let kv = node.create("kv", "guest-kv").await;
    node.execute(kv, &[SET]).await;
    let whole = node.pieces().await;
    let end = whole.iter().position(|piece| *piece == Piece::Begin(SECTION_EXPORT_END)).unwrap();
    for (at, expected) in [(end - 1, "the guest refuses it"), (end, "was broken off")] {
        let mut damaged = whole.clone();
        if at == end {
            damaged.drain(end..end + 2);
        } else {
            damaged[at] = Piece::Chunk(b"no state of this guest".to_vec());
        }
        let imported = node.restored_in(other_environment(), Source::Exports, damaged).await;
        assert_import_failed(imported, expected);
    }
    let change = LimitsChange { memory_bytes_max: Some(64 << 10), ..LimitsChange::default() };
    node.apply(Proposal::SetLimits { machine: kv, change }).await;
    refuses(&mut node, "machine \"kv\" cannot start from its export").await;
}

async fn refuses(node: &mut Node, expected: &str) {
    let pieces = node.pieces().await;
    let imported = node.restored_in(other_environment(), Source::Exports, pieces).await;
    assert_import_failed(imported, expected);
}

fn assert_import_failed(imported: Result<Node, HostFailure>, expected: &str) {
    match imported.map(drop) {
        Err(HostFailure::Import(why)) => assert!(why.contains(expected), "{why}"),
        other => panic!("{other:?}, and {expected} was expected"),
    }
}
