//! What one guest does outside of its commands, and what the host does for it that takes long,
//! disturbs nobody: another machine's commands are answered meanwhile, nobody else leads, no node
//! is started again, and all nodes come to the same state.

use std::time::Duration;

use lockstep_client::{Consistency, Outcome, reason};
use lockstep_proto::v1::{Limits, StatusReply};
use lockstep_tests::cluster::{Cluster, Plan, SOON};
use lockstep_tests::load::Load;
use lockstep_tests::program;
use lockstep_tests::wait::until;

use crate::hostility::equal_digests;

/// Writers of the good load.
const WRITERS: u64 = 8;
/// Writes that are answered at least while something long goes on.
const MEANWHILE_MIN: u64 = 20;
/// How long a call of a guest with a large memory, or a long compilation, may take.
const LONG: Duration = Duration::from_secs(400);
/// Fuel for a command that fills 128 MiB.
const MUCH_FUEL: &str = "10000000000";
/// Functions without code, which take a node as long to compile as any admitted module does.
const EMPTY_FUNCTIONS: usize = 90_000;

/// A cluster under a good load, and how it was before.
struct Watched {
    cluster: Cluster,
    load: Load,
    before: Vec<StatusReply>,
}

impl Watched {
    async fn start(name: &str) -> Self {
        let cluster = Plan::new(3).start().await;
        let mut load = Load::start(&cluster, name, WRITERS);
        load.progress(MEANWHILE_MIN, SOON).await;
        let before = cluster.statuses().await;
        Self { cluster, load, before }
    }

    async fn create(&self, machine: &str, flags: &[&str]) -> program::Ran {
        let guest = program::guest(machine).display().to_string();
        self.cluster.run(&[&["machine", "create", machine, &guest], flags].concat()).await
    }

    /// Says that nothing has happened to the nodes or the good load.
    async fn end(mut self) {
        self.load.progress(MEANWHILE_MIN, SOON).await;
        for (before, now) in self.before.iter().zip(self.cluster.statuses().await) {
            let id = now.node_id;
            assert_eq!((now.term, now.leader_id), (before.term, before.leader_id), "node {id}");
        }
        let report = self.load.finish().await;
        report.check(&self.cluster.client()).await;
        self.cluster.level(&self.cluster.ids(), SOON).await;
        equal_digests(&self.cluster).await;
        for id in self.cluster.ids() {
            assert!(self.cluster.node_mut(id).runs(), "node {id} was never started again");
        }
    }
}

/// Guests that fail where no command does: one that calls the host before it has started is
/// refused, one with a table that its machine has no room for is not run, one that traps as it is
/// exported is in the snapshot without its export.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_fail_outside_of_commands() {
    let watched = Watched::start("outside").await;
    let early = watched.create("call-at-start", &[]).await;
    early.refused(&["does not start", "its start function trapped"]);
    let large = watched.create("large-table", &[]).await;
    large.refused(&["table"]);
    watched.create("large-table", &["--table-elements", "1000000"]).await.ok();
    let client = watched.cluster.client().with_timeout(SOON);
    let echoed = client.execute("large-table", "echo").await.expect("it has the table now");
    assert_eq!(echoed.reply, "echo");

    watched.create("hostile", &[]).await.ok();
    client.execute("hostile", "trap at export").await.expect("it is yet to trap");
    equal_digests(&watched.cluster).await;
    for id in watched.cluster.ids() {
        let alarm = |status: &StatusReply| {
            let named = |alarm: &String| alarm.contains("hostile") && alarm.contains("export");
            status.alarms.iter().any(named).then_some(())
        };
        watched.cluster.node(id).says("the export failed", SOON, alarm).await;
    }
    let good = client.execute("hostile", "count").await.expect("it goes on");
    assert_eq!(good.reply, "1");
    watched.end().await;
}

/// A query that writes is answered from a copy: whatever it did is gone, on every node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_that_writes_changes_nothing() {
    let watched = Watched::start("writes").await;
    watched.create("hostile", &[]).await.ok();
    let client = watched.cluster.client().with_timeout(SOON);
    for turn in 1..=5_u32 {
        for consistency in [Consistency::Linearizable, Consistency::Stale] {
            let asked = client.query("hostile", "count", consistency).await;
            let (asked, next) = (asked.expect("it is answered").reply, turn.to_string());
            assert!(asked == next || consistency == Consistency::Stale, "{asked:?}, not {next}");
        }
        let counted = client.execute("hostile", "count").await.expect("it is answered");
        assert_eq!(counted.reply, turn.to_string(), "the queries are not counted");
        let failed = client.execute("hostile", "remember and trap").await.expect_err("it traps");
        let failed = (failed.outcome, failed.reason.as_str());
        assert_eq!(failed, (Outcome::AppliedError, reason::GUEST_TRAP));
    }
    watched.end().await;
}

/// While 896 MiB of a guest are imaged and written to a snapshot on every node, heartbeats go on:
/// the same node leads in the same term, and another machine's commands are answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_snapshot_moves_no_leader() {
    let watched = Watched::start("large").await;
    watched.create("hostile", &["--fuel-per-command", MUCH_FUEL]).await.ok();
    let client = watched.cluster.client().with_timeout(LONG);
    for _ in 0..7 {
        client.execute("hostile", "grow").await.expect("there is memory");
    }
    for id in watched.cluster.ids() {
        until("a node to hold it, too", LONG, async || {
            let bytes = watched.cluster.node(id).resident_bytes();
            if bytes > 896 << 20 { Ok(()) } else { Err(format!("node {id} has {bytes} bytes")) }
        })
        .await;
    }
    let before = watched.load.acknowledged();
    equal_digests(&watched.cluster).await;
    let meanwhile = watched.load.acknowledged() - before;
    assert!(meanwhile >= MEANWHILE_MIN, "{meanwhile} writes were answered meanwhile");
    watched.end().await;
}

/// While a module that is as costly as is admitted is compiled on every node, heartbeats go on:
/// the same node leads in the same term, and another machine's commands are answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_compilation_moves_no_leader() {
    let watched = Watched::start("compile").await;
    let client = watched.cluster.client().with_timeout(LONG);
    let before = watched.load.acknowledged();
    let digest = client.upload_module(costly_module()).await.expect("every node compiles it");
    let meanwhile = watched.load.acknowledged() - before;
    client.create_machine("costly", digest, Limits::default()).await.expect("it is ready");
    assert!(meanwhile >= MEANWHILE_MIN, "{meanwhile} writes were answered meanwhile");
    assert_eq!(client.execute("costly", "3").await.expect("it runs").reply, "3");
    watched.end().await;
}

/// The counter with a core module beside it that does nothing but take long to compile.
pub(crate) fn costly_module() -> Vec<u8> {
    let types = [1, 0x60, 0, 0];
    let functions = [length(EMPTY_FUNCTIONS), vec![0; EMPTY_FUNCTIONS]].concat();
    let bodies = [length(EMPTY_FUNCTIONS), [2, 0, 0x0b].repeat(EMPTY_FUNCTIONS)].concat();
    let sections = [section(1, &types), section(3, &functions), section(10, &bodies)].concat();
    let module = [b"\0asm\x01\0\0\0", &sections[..]].concat();
    let counter = std::fs::read(program::guest("counter")).expect("it can be read");
    [counter, section(1, &module)].concat()
}

fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [vec![id], length(content.len()), content.to_vec()].concat()
}

/// A length as WebAssembly writes it: seven bits a byte, the lowest first (LEB128).
fn length(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(number & 0x7f).expect("seven bits fit");
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}
