//! The apply path on real guests, without a log: what entries come to, and that a captured state
//! comes back as it was.

mod assertions;
mod queries;
mod restores;
mod seal;

use std::sync::{Arc, OnceLock};

use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, mpsc};

use super::*;
use crate::config::limits;
use crate::machine::entry::proposal::{ModuleChunk, ModuleReport};
use crate::machine::snapshot::content::Piece;
use crate::types::{ClusterId, Command, Member, Membership, ModuleDigest, NodeId};
use crate::wasm;

/// A node's machines, and the index of the entry that was applied last.
struct Node {
    machines: Machines,
    membership: Membership,
    index: u64,
}

fn environment() -> Environment {
    Environment {
        cluster: Arc::new(OnceLock::from(ClusterId([7; 16]))),
        engine: wasm::tests::ENGINE.clone(),
        profile: wasm::tests::ENGINE.profile().to_owned(),
        library: Arc::new(MemoryLibrary::default()),
        history: Arc::new(MemoryHistory::default()),
        compiled: Arc::new(CompiledModules::default()),
        compiling: Arc::new(Semaphore::new(1)),
        directory: Arc::new(Directory::default()),
    }
}

impl Node {
    fn new() -> Self {
        let membership = Membership {
            voters: vec![[NodeId(1)].into()],
            members: [(NodeId(1), Member::default())].into(),
        };
        Self { machines: Machines::empty(environment()), membership, index: 0 }
    }

    async fn apply(&mut self, proposal: Proposal) -> Response {
        self.index += 1;
        let applied = self
            .machines
            .apply(self.index, proposal, &self.membership)
            .await
            .map(|applied| applied.response);
        applied.expect("the host does not fail in these tests")
    }

    /// Stages a guest in chunks and says that this node has compiled it.
    async fn stage(&mut self, guest: &str) -> ModuleDigest {
        let bytes = wasm::tests::component(guest);
        let digest = ModuleDigest(Sha256::digest(&bytes).into());
        for (number, piece) in bytes.chunks(limits::MODULE_CHUNK_BYTES / 16).enumerate() {
            let offset = u64::try_from(number * limits::MODULE_CHUNK_BYTES / 16).unwrap();
            let length = u64::try_from(bytes.len()).unwrap();
            let chunk = ModuleChunk { digest, length, offset, bytes: piece.to_vec() };
            assert_eq!(self.apply(Proposal::StageModule(chunk)).await, Response::Nothing);
        }
        let report = ModuleReport { digest, node: NodeId(1), failure: None };
        assert_eq!(self.apply(Proposal::ModuleReady(report)).await, Response::Nothing);
        digest
    }

    async fn create(&mut self, name: &str, guest: &str) -> MachineId {
        let module = self.stage(guest).await;
        match self.apply(create_proposal(name, module)).await {
            Response::MachineCreated(id) => id,
            other => panic!("{other:?}"),
        }
    }

    /// Applies one entry with one batch for `machine`.
    async fn execute(&mut self, machine: MachineId, commands: &[&str]) -> Vec<Outcome> {
        self.execute_all(vec![batch(machine, commands)]).await
    }

    async fn execute_all(&mut self, batches: Vec<Batch>) -> Vec<Outcome> {
        match self.apply(Proposal::Commands { time_ms: 5, batches }).await {
            Response::Commands(outcomes) => outcomes,
            other => panic!("{other:?}"),
        }
    }

    /// Everything a snapshot of this node would hold, and what could not be exported.
    async fn capture(&mut self) -> (Vec<Piece>, Vec<String>) {
        let frozen = self.machines.freeze().await.expect("the host does not fail in these tests");
        let (sender, mut receiver) = mpsc::channel(1);
        let sent = frozen.send(sender, Box::new(|_| false)).unwrap();
        let mut pieces = Vec::new();
        while let Some(piece) = receiver.recv().await {
            pieces.push(piece);
        }
        let failures = sent.await.unwrap().expect("the host does not fail in these tests");
        (pieces, failures)
    }

    async fn pieces(&mut self) -> Vec<Piece> {
        self.capture().await.0
    }

    /// A node that has nothing but the pieces.
    async fn restored(&self, pieces: Vec<Piece>) -> Result<Self, HostFailure> {
        self.restored_in(environment(), Source::Images, pieces).await
    }

    async fn restored_in(
        &self,
        environment: Environment,
        source: Source,
        pieces: Vec<Piece>,
    ) -> Result<Self, HostFailure> {
        let (sender, receiver) = mpsc::channel(1);
        let send = async move {
            for piece in pieces.into_iter().filter(|piece| *piece != Piece::End) {
                if sender.send(Ok(piece)).await.is_err() {
                    return;
                }
            }
        };
        let restored = Machines::restore(environment, source, receiver);
        let (machines, ()) = tokio::join!(restored, send);
        Ok(Self { machines: machines?, membership: self.membership.clone(), index: self.index })
    }
}

fn create_proposal(name: &str, module: ModuleDigest) -> Proposal {
    Proposal::CreateMachine { name: name.to_owned(), module, limits: Limits::default() }
}

fn batch(machine: MachineId, commands: &[&str]) -> Batch {
    let bytes = |command: &&str| command.as_bytes().to_vec().into();
    let command = |command| Command { machine, session: None, bytes: bytes(command) };
    Batch::new(machine, &commands.iter().map(command).collect::<Vec<_>>())
}

fn accepted(reply: &'static str) -> Outcome {
    Outcome::Accepted(reply.as_bytes().into())
}

/// Every command of an entry gets the guest's own answer to that very command, refusals too.
#[tokio::test]
async fn commands_get_what_the_guest_answered() {
    let mut node = Node::new();
    let counter = node.create("counter", "counter").await;
    let outcomes = node.execute(counter, &["1", "41", "x", "-2"]).await;
    let refused = Outcome::Rejected("not a whole number".as_bytes().into());
    assert_eq!(outcomes, [accepted("1"), accepted("42"), refused, accepted("40")]);
}

/// A command for a machine that is not there is answered so, and disturbs nobody.
#[tokio::test]
async fn commands_for_an_absent_machine_say_so() {
    let mut node = Node::new();
    let counter = node.create("counter", "counter").await;
    assert_eq!(node.execute(MachineId(99), &["1"]).await, [Outcome::NoSuchMachine]);
    assert_eq!(node.apply(Proposal::RemoveMachine { machine: counter }).await, Response::Nothing);
    assert_eq!(node.execute(counter, &["1"]).await, [Outcome::NoSuchMachine]);
    let gone = Response::Refused(Refusal::NoSuchMachine);
    assert_eq!(node.apply(Proposal::RemoveMachine { machine: counter }).await, gone);
}

/// A command that fails costs itself and nothing else: not the commands before and after it
/// in its entry, not the state, and not the machine's next entries.
#[tokio::test]
async fn a_failing_command_costs_itself_alone() {
    let commands = ["unreachable", "long reply", "spin", "remember and trap", "no replies"];
    let mut node = Node::new();
    let hostile = node.create("hostile", "hostile").await;
    let counter = node.create("counter", "counter").await;
    assert_eq!(node.execute(hostile, &["remember 1"]).await, [accepted("remember 1=1 ")]);
    for command in commands {
        let outcomes = node.execute(hostile, &["before", command, "after"]).await;
        assert_eq!((&outcomes[0], &outcomes[2]), (&accepted("before"), &accepted("after")));
        assert!(!matches!(outcomes[1], Outcome::Accepted(_)), "{command}: {outcomes:?}");
        let alone = node.execute(hostile, &[command]).await;
        assert_eq!(alone[0], outcomes[1], "{command} fails alone as it does among others");
    }
    assert_eq!(node.execute(hostile, &["remember 1"]).await, [accepted("remember 1=2 ")]);
    assert_eq!(node.execute(counter, &["3"]).await, [accepted("3")]);
}

/// The replies to an entry are bounded over all its machines: what comes after them is not
/// executed, and the next entry has room again.
#[tokio::test]
async fn an_entry_ends_with_its_room_for_replies() {
    let mut node = Node::new();
    let hostile = node.create("hostile", "hostile").await;
    let counter = node.create("counter", "counter").await;
    let big = [&["big"; 14][..], &["after"]].concat();
    let fits = vec![batch(hostile, &big), batch(counter, &["1"])];
    assert_eq!(node.execute_all(fits).await[14..], [accepted("after"), accepted("1")]);
    let big = [&["big"; 30][..], &["after"]].concat();
    let outcomes = node.execute_all(vec![batch(hostile, &big), batch(counter, &["1"])]).await;
    assert!(matches!(outcomes[0], Outcome::Accepted(_)), "{:?}", outcomes[0]);
    assert_eq!(outcomes[30..], [Outcome::NotReached, Outcome::NotReached]);
    assert_eq!(node.execute(counter, &["1"]).await, [accepted("2")]);
}

/// A guest whose export fails is told of, and the snapshot is whole by its image.
#[tokio::test]
async fn a_failing_export_is_an_alarm() {
    let mut node = Node::new();
    let hostile = node.create("hostile", "hostile").await;
    let counter = node.create("counter", "counter").await;
    node.execute(counter, &["5"]).await;
    node.execute(hostile, &["remember me", "flood at export"]).await;
    let (pieces, failures) = node.capture().await;
    let expected = "snapshots hold no export of machine hostile: the guest trapped: \
                    the guest broke its contract: \
                    an export chunk has 262145 bytes, and 262144 were asked for";
    assert_eq!(failures, [expected]);
    let mut restored = node.restored(pieces).await.unwrap();
    assert_eq!(restored.execute(hostile, &["remember me"]).await, [accepted("remember me=2 ")]);
    assert_eq!(restored.execute(counter, &["1"]).await, [accepted("6")]);
}

/// Limits set by an entry hold from the next one on, and come back from a snapshot with the state,
/// also where that is larger than they allow.
#[tokio::test]
async fn limits_are_part_of_the_state() {
    let mut node = Node::new();
    let kv = node.create("kv", "guest-kv").await;
    let set = "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n";
    assert_eq!(node.execute(kv, &[set]).await, [accepted("+OK\r\n")]);
    let change = LimitsChange {
        reply_bytes_max: Some(5),
        memory_bytes_max: Some(64 << 10),
        ..LimitsChange::default()
    };
    let expected = Limits::default().with(&change);
    let entry = Proposal::SetLimits { machine: kv, change };
    assert_eq!(node.apply(entry).await, Response::Nothing);
    let pieces = node.pieces().await;
    for mut node in [node.restored(pieces).await.unwrap(), node] {
        node.machines.go_live(node.index);
        let view = node.machines.environment.directory.view();
        let seen = &view.machines["kv"];
        assert_eq!((seen.limits, seen.active_limits), (expected, Some(expected)));
        assert_eq!(node.execute(kv, &[set]).await, [accepted("+OK\r\n")]);
        let get = "*2\r\n$3\r\nGET\r\n$1\r\nk\r\n";
        let too_large = Outcome::TooLarge { length: 7, limit: 5 };
        assert_eq!(node.execute(kv, &[get]).await, [too_large]);
    }
}

/// A guest that holds more memory than it was limited to since is brought back all the same, from
/// its image and the calls since, when a command fails and from a snapshot.
#[tokio::test]
async fn a_guest_over_its_limit_is_brought_back() {
    let mut node = Node::new();
    let module = node.stage("hostile").await;
    let limits = Limits { memory_bytes_max: 32 << 20, ..Limits::default() };
    let entry = Proposal::CreateMachine { name: "hostile".to_owned(), module, limits };
    let Response::MachineCreated(hostile) = node.apply(entry).await else { panic!("refused") };
    node.execute(hostile, &["eat memory"]).await;
    let held = node.machines.running[&hostile].guest.memory_bytes();
    assert!(held > 16 << 20, "{held}");
    let change = LimitsChange { memory_bytes_max: Some(1 << 20), ..LimitsChange::default() };
    let entry = Proposal::SetLimits { machine: hostile, change };
    assert_eq!(node.apply(entry).await, Response::Nothing);
    assert_eq!(node.execute(hostile, &["echo"]).await, [accepted("echo")]);
    let pieces = node.pieces().await;
    for mut node in [node.restored(pieces).await.unwrap(), node] {
        let outcomes = node.execute(hostile, &["echo", "unreachable", "grow too far"]).await;
        assert_eq!(outcomes[0], accepted("echo"));
        assert!(matches!(&outcomes[1], Outcome::Trapped(_)), "{outcomes:?}");
        assert_eq!(outcomes[2], accepted("4294967295"), "it gets no more");
        assert_eq!(node.machines.running[&hostile].guest.memory_bytes(), held);
    }
}

/// An entry with limits that no machine can have changes nothing, whoever proposed it; nor does
/// one for a machine that is not there.
#[tokio::test]
async fn impossible_limits_are_refused() {
    let mut node = Node::new();
    let counter = node.create("counter", "counter").await;
    let before = node.machines.tables.clone();
    let change = LimitsChange { fuel_per_command: Some(5), ..LimitsChange::default() };
    let reason = "fuel_per_command must be 1000000 to 100000000000, and 5 is not";
    let refused = Response::Refused(Refusal::InvalidLimits(reason.to_owned()));
    let entry = Proposal::SetLimits { machine: counter, change };
    assert_eq!(node.apply(entry).await, refused);
    let module = before.machines[&counter].module;
    let limits = Limits::default().with(&change);
    let entry = Proposal::CreateMachine { name: "other".to_owned(), module, limits };
    assert_eq!(node.apply(entry).await, refused);
    let entry = Proposal::SetLimits { machine: MachineId(99), change: LimitsChange::default() };
    assert_eq!(node.apply(entry).await, Response::Refused(Refusal::NoSuchMachine));
    assert_eq!(node.machines.tables, before);
}

/// A machine whose guest cannot start within its limits is not created.
#[tokio::test]
async fn a_guest_that_does_not_fit_its_limits_is_refused() {
    let mut node = Node::new();
    let module = node.stage("counter").await;
    let limits = Limits { memory_bytes_max: 64 << 10, ..Limits::default() };
    let entry = Proposal::CreateMachine { name: "small".to_owned(), module, limits };
    let Response::Refused(Refusal::ModuleNotReady(reason)) = node.apply(entry).await else {
        panic!("it is created")
    };
    assert!(reason.contains("the guest does not start") && reason.contains("memory"), "{reason}");
    assert!(node.machines.tables.machines.is_empty());
}

/// A module half staged, machines and their states come back from a capture as they were.
#[tokio::test]
async fn a_captured_state_comes_back_whole() {
    let mut node = Node::new();
    let counter = node.create("counter", "counter").await;
    node.execute(counter, &["1", "2"]).await;
    let half =
        ModuleChunk { digest: ModuleDigest([3; 32]), length: 10, offset: 0, bytes: vec![1, 2, 3] };
    node.apply(Proposal::StageModule(half)).await;
    let pieces = node.pieces().await;
    let mut restored = node.restored(pieces.clone()).await.unwrap();
    assert_eq!(restored.machines.tables, node.machines.tables);
    assert_eq!(restored.machines.staging, node.machines.staging);
    assert_eq!(restored.pieces().await, pieces);
    assert_eq!(restored.execute(counter, &["4"]).await, [accepted("7")]);
}

/// A snapshot that lacks any of its sections is refused, whichever it is.
#[tokio::test]
async fn a_snapshot_without_a_section_is_refused() {
    let mut node = Node::new();
    let counter = node.create("counter", "counter").await;
    node.execute(counter, &["1"]).await;
    let pieces = node.pieces().await;
    let begins = |piece: &Piece| matches!(piece, Piece::Begin(_));
    let sections = pieces.iter().filter(|piece| begins(piece)).count();
    assert_eq!(sections, 5, "module, image, export, its end, tables");
    // Those of the export are for people and for other clusters.
    for left_out in [0, 1, 4] {
        let mut number = 0_usize;
        let rest = pieces.iter().filter(|piece| {
            number += usize::from(begins(piece));
            number != left_out + 1
        });
        let restored = node.restored(rest.cloned().collect()).await;
        assert!(restored.is_err(), "without section {left_out}");
    }
}

/// A machine is not created on a module that a voter has not compiled, and the voter is named.
#[tokio::test]
async fn a_voter_that_cannot_run_a_module_is_named() {
    let mut node = Node::new();
    node.membership.voters = vec![[NodeId(1), NodeId(2)].into()];
    node.membership.members.insert(NodeId(2), Member::default());
    let module = node.stage("counter").await;
    let create = create_proposal("c", module);
    let refusal = |response: Response| match response {
        Response::Refused(Refusal::ModuleNotReady(reason)) => reason,
        other => panic!("{other:?}"),
    };
    assert!(refusal(node.apply(create.clone()).await).ends_with("yet: 2"));
    let failure = Some("no memory".to_owned());
    let report = ModuleReport { digest: module, node: NodeId(2), failure };
    node.apply(Proposal::ModuleReady(report)).await;
    assert_eq!(refusal(node.apply(create).await), "node 2 cannot run it: no memory");
}

/// Nobody reports on a module but members: others' reports are passed over, however many.
#[tokio::test]
async fn only_members_report_on_modules() {
    let mut node = Node::new();
    let module = node.stage("counter").await;
    for stranger in 2..100 {
        let report = ModuleReport { digest: module, node: NodeId(stranger), failure: None };
        node.apply(Proposal::ModuleReady(report)).await;
    }
    let reports = &node.machines.tables.modules[&module].reports;
    assert!(reports.keys().all(|id| *id == NodeId(1)), "{reports:?}");
}

/// Names that could be mistaken for something else, and names that are taken, are refused.
#[tokio::test]
async fn odd_and_taken_names_are_refused() {
    let mut node = Node::new();
    node.create("kv", "counter").await;
    let module = *node.machines.tables.modules.keys().next().unwrap();
    for name in ["", "a b", "a/b", "-a", "é", &"a".repeat(65)] {
        let create = create_proposal(name, module);
        let response = node.apply(create).await;
        assert!(matches!(response, Response::Refused(Refusal::InvalidName(_))), "{name:?}");
    }
    let create = create_proposal("kv", module);
    let taken = Response::Refused(Refusal::NameTaken("kv".to_owned()));
    assert_eq!(node.apply(create).await, taken);
}

/// A module whose bytes are not those of its digest is forgotten, and can be uploaded again.
#[tokio::test]
async fn a_module_of_another_digest_is_forgotten() {
    let mut node = Node::new();
    let digest = ModuleDigest([9; 32]);
    let chunk = ModuleChunk { digest, length: 3, offset: 0, bytes: vec![1, 2, 3] };
    let response = node.apply(Proposal::StageModule(chunk)).await;
    assert!(matches!(response, Response::Refused(Refusal::BadChunk(_))), "{response:?}");
    assert!(node.machines.tables.modules.is_empty());
}
