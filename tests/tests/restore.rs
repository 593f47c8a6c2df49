//! Machines that are rebuilt from the exports in snapshots: `lockstep restore`, and what happens
//! while one is under way.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use bytes::Bytes;
use lockstep_client::{Client, Consistency, Outcome, Restore, reason};
use lockstep_host::node::Backup;
use lockstep_proto::v1::{BeginRestoreRequest, CheckpointReport, Machine};
use lockstep_tests::cluster::{Cluster, Plan, SOON};
use lockstep_tests::load::{self, Load};
use lockstep_tests::wait::until;
use lockstep_tests::{files, kv, program};
use rustix::process::{Pid, Signal, kill_process};

/// The name of machines that are restored beside the live one.
const COPY: &str = "copy";
/// 2100-01-01, in milliseconds.
const LATER_MS: u64 = 4_102_444_800_000;

/// Takes a checkpoint, and waits until all nodes came to the same state there.
async fn equal_checkpoint(cluster: &Cluster) {
    let said = cluster.run(&["snapshot"]).await.ok();
    let index: u64 = said.split(' ').find_map(|word| word.parse().ok()).expect("it has an index");
    for node in &cluster.nodes {
        node.says("all came to the same state", SOON, |status| {
            let checkpoint = status.checkpoints.iter().find(|found| found.index == index)?;
            let equal = |report: &CheckpointReport| report.digest == checkpoint.agreed;
            let all = checkpoint.reports.len() == cluster.nodes.len();
            (all && checkpoint.reports.iter().all(equal) && status.alarms.is_empty()).then_some(())
        })
        .await;
    }
}

/// Takes a checkpoint; the leader's snapshot of it.
async fn snapshot(cluster: &Cluster) -> PathBuf {
    cluster.run(&["snapshot"]).await.ok();
    let leader = cluster.leader().await;
    newest_snapshot(cluster, leader)
}

fn newest_snapshot(cluster: &Cluster, id: u64) -> PathBuf {
    let listed = files::list(&cluster.node(id).data_dir.join("snapshots"));
    let is_snapshot = |file: &PathBuf| file.extension().is_some_and(|end| end == "snapshot");
    listed.into_iter().rfind(is_snapshot).expect("there is a snapshot")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

/// Calls `lockstep restore` for a cluster.
async fn restore(cluster: &Cluster, file: &Path, flags: &[&str]) -> program::Ran {
    cluster.run(&[&["restore", text(file)], flags].concat()).await
}

async fn machines(cluster: &Cluster) -> Vec<Machine> {
    cluster.client().list_machines().await.expect("they are listed")
}

/// Asks the copy for a key.
async fn read_copy(client: &Client, key: &str, consistency: Consistency) -> Option<String> {
    let answered = client.query(COPY, kv::text(&format!("GET {key}")), consistency).await;
    kv::value(&answered.unwrap_or_else(|error| panic!("cannot read {key}: {error}")).reply)
}

/// 20,000 keys, some of which end later and some that have ended, come back in a new cluster of
/// three nodes from the snapshot of a lone node that is gone, and so does the machine beside
/// them; the nodes are equal, and what they export is what was exported.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_rebuilt_in_a_new_cluster() {
    const KEYS: u64 = 20_000;
    let kept = lockstep_tests::folder::Folder::new();
    let file = kept.path().join("backup");
    let old = Plan::new(1).start().await;
    load::fill(&old.client(), "key", KEYS).await;
    let later = format!("SET later 1 PXAT {LATER_MS}");
    for line in [&later, "SET ended 1 PX 1", "SET ends 1 PX 6000"] {
        assert_eq!(old.kv(line).await.ok(), "OK");
    }
    old.create_machine("counter", &program::guest("counter")).await.ok();
    old.run(&["exec", "--machine", "counter", "41"]).await.ok();
    std::fs::copy(snapshot(&old).await, &file).expect("a snapshot can be copied");
    drop(old);
    let listed = program::run(["restore", text(&file), "--list"]).await.ok();
    program::assert_holds("the list", &listed, &["kv ", "complete"]);

    let new = Plan::new(3).start().await;
    restore(&new, &file, &[]).await.refused(&["a machine named \"kv\" exists already"]);
    new.run(&["machine", "remove", kv::MACHINE]).await.ok();
    let restored = restore(&new, &file, &[]).await;
    assert_eq!(restored.err, "", "there is no bar where nobody looks");
    let parts =
        ["machine kv is restored (id ", "bytes of state", "machine counter is restored (id "];
    program::assert_holds("it", &restored.ok(), &parts);
    new.level(&[1, 2, 3], SOON).await;
    for node in &new.nodes {
        let client = node.client();
        assert_eq!(load::count(&client, "key", KEYS, Consistency::Stale).await, KEYS);
        let value = load::read(&client, "key-777", Consistency::Stale).await;
        assert_eq!(value.as_deref(), Some("key-777"));
    }
    assert_eq!(new.kv("GET later").await.ok(), "\"1\"");
    assert_eq!(new.kv("GET ended").await.ok(), "(nil)");
    until("a key to end as it would have", SOON, async || {
        let value = load::read(&new.client(), "ends", Consistency::Linearizable).await;
        value.map_or(Ok(()), Err)
    })
    .await;
    assert_eq!(new.run(&["exec", "--machine", "counter", "1"]).await.ok(), "42");
    equal_checkpoint(&new).await;
    let again = snapshot(&new).await;
    let listed_again = program::run(["restore", text(&again), "--list"]).await.ok();
    assert_eq!(row_of(&listed_again, "kv"), row_of(&listed, "kv"));
    load::write(&new.client(), "key-777", "changed").await;
}

/// The line about a machine in what `--list` prints.
fn row_of(listed: &str, machine: &str) -> String {
    let row = listed.lines().find(|line| line.split(' ').next() == Some(machine));
    row.unwrap_or_else(|| panic!("no {machine} in {listed}")).to_owned()
}

/// A machine is restored under another name beside the live one, which is written to meanwhile;
/// neither disturbs the other, and the copy can have other limits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_restored_beside_the_live_one() {
    const KEYS: u64 = 3_000;
    let cluster = Plan::new(3).start().await;
    load::fill(&cluster.client(), "key", KEYS).await;
    let file = snapshot(&cluster).await;
    load::write(&cluster.client(), "key-1", "changed-since").await;
    let mut load = Load::start(&cluster, "w", 4);
    load.progress(20, SOON).await;
    let flags = ["--machine", "kv", "--as", COPY, "--reply-bytes", "1KiB"];
    restore(&cluster, &file, &flags).await.ok();
    load.progress(20, SOON).await;
    let client = cluster.client();
    for key in ["key-0", "key-1", "key-2999"] {
        let value = read_copy(&client, key, Consistency::Linearizable).await;
        assert_eq!(value.as_deref(), Some(key));
    }
    let live = load::read(&client, "key-1", Consistency::Linearizable).await;
    assert_eq!(live.as_deref(), Some("changed-since"));
    let machines = machines(&cluster).await;
    let limits: Vec<_> = machines.iter().map(|m| m.limits.unwrap().reply_bytes_max).collect();
    assert_eq!(limits, [Some(1024), Some(1 << 20)], "{COPY}, then kv");
    assert!(machines.iter().all(|machine| machine.restoring.is_none()));
    client.execute(COPY, kv::text("SET key-2 of-the-copy")).await.expect("it takes commands");
    let report = load.finish().await;
    report.check(&cluster.client()).await;
    report.check_equal(&cluster, &[1, 2, 3]).await;
    equal_checkpoint(&cluster).await;
}

/// What cannot be restored is refused, with what is wrong, before anything reaches the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_restored_is_refused() {
    let mut cluster = Plan::new(3).start().await;
    load::fill(&cluster.client(), "key", 500).await;
    cluster.create_machine("hostile", &program::guest("hostile")).await.ok();
    cluster.client().execute("hostile", "flood at export").await.expect("it is yet to flood");
    let file = snapshot(&cluster).await;
    cluster.level(&[1, 2, 3], SOON).await;
    let folder = cluster.directory().to_owned();
    let damaged = folder.join("damaged");
    std::fs::copy(&file, &damaged).expect("a snapshot can be copied");
    files::flip_bit(&damaged, files::length(&damaged) / 2);
    let cut = folder.join("cut");
    std::fs::copy(&file, &cut).expect("a snapshot can be copied");
    files::cut_off(&cut, 100);
    let words = folder.join("words");
    std::fs::write(&words, "not a snapshot at all").expect("a file can be written");

    let quiet = async || {
        let statuses = cluster.statuses().await;
        statuses.iter().map(|status| status.last_log_index).max()
    };
    // Nodes report on the checkpoint through the log: those entries come first.
    equal_checkpoint_with_hostile(&cluster).await;
    let before = quiet().await;
    let whole = text(&file);
    let rows: [(&[&str], &[&str]); 12] = [
        (&["nowhere"], &["nowhere"]),
        (&[text(&words)], &["words is damaged at byte 0", "not a snapshot"]),
        (&[text(&damaged)], &["is damaged at byte"]),
        (&[text(&damaged), "--list"], &["is damaged at byte"]),
        (&[text(&cut)], &["is damaged at byte"]),
        (&[whole, "--machine", "other"], &["holds no machine \"other\", only: kv, hostile"]),
        (&[whole], &["the export of machine hostile was broken off", "--machine"]),
        (&[whole, "--as", COPY], &["--as is for one machine"]),
        (&[whole, "--module", whole], &["--module is for one machine"]),
        (&[whole, "--machine", "kv"], &["a machine named \"kv\" exists already", "--as"]),
        (&[whole, "--machine", "kv", "--as", "a/b"], &["a/b"]),
        (&[whole, "--machine", "kv", "--as", COPY, "--module", whole], &["component"]),
    ];
    for (arguments, parts) in rows {
        cluster.run(&[&["restore"], arguments].concat()).await.refused(parts);
    }
    let listed = program::run(["restore", whole, "--list"]).await.ok();
    program::assert_holds("the list", &row_of(&listed, "hostile"), &["broken off"]);
    assert_eq!(quiet().await, before, "nothing was logged");
    let leader = cluster.leader().await;
    for id in [leader, leader % 3 + 1] {
        cluster.node_mut(id).kill().await;
    }
    let flags = ["--machine", "kv", "--as", COPY, "--timeout", "2"];
    restore(&cluster, &file, &flags).await.refused(&["leader"]);
    cluster.start_all().await;
    cluster.leader().await;
    restore(&cluster, &file, &flags[..4]).await.ok();
}

/// A restore whose beginning nobody confirms says that it may have begun, and how to look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_may_have_begun_says_so() {
    let mut cluster = Plan::new(3).start().await;
    let file = snapshot(&cluster).await;
    let leader = cluster.leader().await;
    for id in (1..=3).filter(|id| *id != leader) {
        cluster.node_mut(id).kill().await;
    }
    let flags = ["--as", COPY, "--timeout", "2"];
    let said = restore(&cluster, &file, &flags).await;
    said.refused(&["may have begun", "lockstep machine list", "lockstep machine remove copy"]);
    cluster.start_all().await;
    cluster.leader().await;
    // The leader kept it in its log: it began, unless another node was elected meanwhile. What is
    // written now comes after it.
    load::write(&cluster.client(), "after", "it").await;
    if machines(&cluster).await.iter().any(|machine| machine.name == COPY) {
        cluster.run(&["machine", "remove", COPY]).await.ok();
    }
    restore(&cluster, &file, &flags[..2]).await.ok();
}

/// A restore that its operator stops leaves nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_is_stopped_leaves_nothing() {
    let cluster = Plan::new(1).start().await;
    let value = "v".repeat(900_000);
    for key in 0..30 {
        load::write(&cluster.client(), &format!("big-{key}"), &value).await;
    }
    let file = snapshot(&cluster).await;
    let node = cluster.node(1);
    let mut command = tokio::process::Command::new(program::lockstep());
    command.args(["restore", text(&file), "--as", COPY, "--endpoint", &node.client_addr]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let child = command.spawn().expect("lockstep can be started");
    node.says("its state comes in", SOON, |status| {
        let copy = status.machines.iter().find(|machine| machine.name == COPY)?;
        copy.restoring.as_ref().filter(|restoring| restoring.parts > 0).map(drop)
    })
    .await;
    let id = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)).expect("it runs");
    kill_process(id, Signal::TERM).expect("it can be stopped");
    let output = child.wait_with_output().await.expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    program::assert_holds("it", &said, &["machine copy is not restored", "it was stopped"]);
    let names: Vec<String> = machines(&cluster).await.into_iter().map(|m| m.name).collect();
    assert_eq!(names, [kv::MACHINE]);
}

/// As `equal_checkpoint`, beside a machine that cannot export, which is an alarm.
async fn equal_checkpoint_with_hostile(cluster: &Cluster) {
    for node in &cluster.nodes {
        node.says("all have reported", SOON, |status| {
            let newest = status.checkpoints.last()?;
            (newest.reports.len() == 3 && !newest.agreed.is_empty()).then_some(())
        })
        .await;
    }
    cluster.level(&[1, 2, 3], SOON).await;
}

/// A state that the guest does not take in, here of another guest, costs the machine that was to
/// have it, with the guest's own words, and nothing else; the name is free again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_refuses_a_state_has_the_last_word() {
    let cluster = Plan::new(3).start().await;
    fill_long(&cluster).await;
    load::fill(&cluster.client(), "key", 2_000).await;
    let file = snapshot(&cluster).await;
    let counter = program::guest("counter");
    let flags = ["--machine", "kv", "--as", COPY, "--module", text(&counter)];
    let said = restore(&cluster, &file, &flags).await;
    let parts = ["machine copy is not restored", "the guest refuses it: record 0: "];
    said.refused(&parts);
    let flags = ["--machine", "kv", "--as", COPY, "--memory-bytes", "2MiB"];
    let said = restore(&cluster, &file, &flags).await;
    said.refused(&["machine copy is not restored", "the guest trapped: "]);
    let names: Vec<String> = machines(&cluster).await.into_iter().map(|m| m.name).collect();
    assert_eq!(names, [kv::MACHINE]);
    restore(&cluster, &file, &flags[..4]).await.ok();
    assert_eq!(load::count(&cluster.client(), "key", 2_000, Consistency::Stale).await, 2_000);
    cluster.level(&[1, 2, 3], SOON).await;
    equal_checkpoint(&cluster).await;
}

/// A restore that a test drives itself, chunk by chunk.
struct Driven {
    restore: Restore,
    chunks: std::vec::IntoIter<Bytes>,
}

impl Driven {
    /// Begins to restore `kv` of a snapshot as the copy.
    async fn begin(cluster: &Cluster, file: &Path) -> Self {
        let backup = Backup::open(file.to_owned()).await.expect("it is whole");
        let saved = backup.machines().next().expect("it holds a machine").clone();
        let mut chunks = Vec::new();
        let mut export = backup.export(saved.id);
        while let Some(chunk) = export.recv().await {
            chunks.push(chunk.expect("it is whole"));
        }
        assert!(chunks.len() >= 4, "an export of {} chunks has no middle", chunks.len());
        let begin = BeginRestoreRequest {
            name: COPY.to_owned(),
            module_digest: Bytes::copy_from_slice(&saved.module.0),
            limits: None,
            schema_version: saved.export.schema,
        };
        let restore = cluster.client().restore(begin).await.expect("it begins");
        Self { restore, chunks: chunks.into_iter() }
    }

    /// Hands over so many chunks.
    async fn push(&mut self, count: usize) {
        for _ in 0..count {
            let chunk = self.chunks.next().expect("there are more chunks");
            let last = self.chunks.len() == 0;
            self.restore.push(chunk, last).await.expect("it is taken in");
        }
    }

    async fn push_all(&mut self) {
        self.push(self.chunks.len()).await;
    }
}

/// Keys with long values: an export of several chunks.
async fn fill_long(cluster: &Cluster) {
    let client = cluster.client();
    for key in 0..12 {
        load::write(&client, &format!("long-{key}"), &long_value(key)).await;
    }
}

fn long_value(key: u32) -> String {
    format!("{key}-").repeat(50_000)
}

/// Expects the copy to hold all on every node, and the nodes to be equal.
async fn check_copy(cluster: &Cluster) {
    cluster.level(&cluster.ids(), SOON).await;
    for node in &cluster.nodes {
        for key in 0..12 {
            let value = read_copy(&node.client(), &format!("long-{key}"), Consistency::Stale).await;
            assert_eq!(value, Some(long_value(key)), "node {}, key {key}", node.id);
        }
    }
    equal_checkpoint(cluster).await;
}

/// A follower is killed in the middle of a restore, then the leader with a part under way, then the
/// next leader with the last part: the restore goes on, and all nodes are equal in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_outlives_its_leader() {
    let mut cluster = Plan::new(3).start().await;
    fill_long(&cluster).await;
    let mut driven = Driven::begin(&cluster, &snapshot(&cluster).await).await;
    driven.push(1).await;
    let leader = cluster.leader().await;
    let follower = leader % 3 + 1;
    cluster.node_mut(follower).kill().await;
    driven.push(1).await;
    cluster.node_mut(follower).start().await;
    cluster.level(&[1, 2, 3], SOON).await;
    push_as_the_leader_dies(&mut cluster, &mut driven).await;
    driven.push(driven.chunks.len() - 1).await;
    push_as_the_leader_dies(&mut cluster, &mut driven).await;
    check_copy(&cluster).await;
}

/// Hands over a part that the leader writes to its log and then is killed, before any other node
/// can have acknowledged it. Whether it was committed is unknown to all but the next leader.
async fn push_as_the_leader_dies(cluster: &mut Cluster, driven: &mut Driven) {
    let leader = cluster.leader().await;
    cluster.level(&[1, 2, 3], SOON).await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    for id in &others {
        cluster.node(*id).pause().await;
    }
    let before = cluster.node(leader).status().await.expect("it answers").last_log_index;
    let break_down = async {
        let node = cluster.node_mut(leader);
        node.says("it has the part", SOON, |status| (status.last_log_index > before).then_some(()))
            .await;
        node.kill().await;
        others.iter().for_each(|id| cluster.node(*id).resume());
        cluster.leader_other_than(leader).await;
    };
    tokio::join!(driven.push(1), break_down);
    cluster.node_mut(leader).start().await;
}

/// Half a restore is part of the state: it refuses commands and queries, shows in the list, is
/// in snapshots without an export, outlives a crash of all nodes, and comes to a new node by
/// a snapshot; then it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_restore_is_part_of_the_state() {
    let mut cluster = Plan::new(3).config("log_segment_bytes = 1048576").start().await;
    fill_long(&cluster).await;
    let mut driven = Driven::begin(&cluster, &snapshot(&cluster).await).await;
    driven.push(2).await;
    let client = cluster.client();
    let command = client.execute(COPY, kv::text("SET k v")).await.expect_err("it is hidden");
    let query = client.query(COPY, kv::text("GET k"), Consistency::Linearizable).await;
    let stale = client.query(COPY, kv::text("GET k"), Consistency::Stale).await;
    for error in [command, query.expect_err("it is hidden"), stale.expect_err("it is hidden")] {
        assert_eq!(
            (error.reason.as_str(), error.outcome),
            (reason::RESTORING, Outcome::NotApplied)
        );
    }
    let list = cluster.run(&["machine", "list"]).await.ok();
    program::assert_holds("the list", &list, &["restoring (2 parts are in)"]);

    let half = snapshot(&cluster).await;
    restore(&cluster, &half, &["--machine", COPY]).await.refused(&["was being restored itself"]);
    let whole = ["--machine", "kv", "--as", COPY];
    restore(&cluster, &half, &whole).await.refused(&["is being restored (2 parts are in)"]);
    cluster.crash_all().await;
    cluster.leader().await;
    driven.push(1).await;
    cluster.crash_all().await;
    cluster.leader().await;
    for _ in 0..2 {
        load::fill(&cluster.client(), "filler", 3_000).await;
        cluster.run(&["snapshot"]).await.ok();
    }
    let leader = cluster.leader().await;
    let purged = cluster.node(leader).says("its log is purged", SOON, |status| {
        (status.purged_index > driven.restore.machine().id).then_some(status.purged_index)
    });
    let purged = purged.await;
    let new = cluster.start_another().await;
    cluster.add(new, &[]).await.ok();
    cluster.level(&cluster.ids(), SOON).await;
    let status = cluster.node(new).status().await.expect("it answers");
    assert!(status.snapshot_index >= purged, "it came by a snapshot: {}", status.snapshot_index);
    driven.push_all().await;
    check_copy(&cluster).await;
}

/// Half a restore that nobody goes on with is removed like any machine, by whoever restores or by
/// hand; its id is then nobody's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_restore_can_be_removed() {
    let cluster = Plan::new(1).start().await;
    fill_long(&cluster).await;
    let file = snapshot(&cluster).await;
    let mut abandoned = Driven::begin(&cluster, &file).await;
    abandoned.push(1).await;
    abandoned.restore.abandon().await.expect("it is removed");
    let error = abandoned.restore.abandon().await.expect_err("it is gone");
    assert_eq!(error.reason, reason::NO_SUCH_MACHINE);

    let mut left = Driven::begin(&cluster, &file).await;
    left.push(1).await;
    let error = abandoned.restore.abandon().await.expect_err("the name is another's");
    assert_eq!(error.reason, reason::NO_SUCH_MACHINE);
    cluster.run(&["machine", "remove", COPY]).await.ok();
    let error = left.restore.push(Bytes::new(), true).await.expect_err("it is gone");
    assert_eq!((error.reason.as_str(), error.outcome), (reason::REFUSED, Outcome::NotApplied));
    restore(&cluster, &file, &["--machine", "kv", "--as", COPY]).await.ok();
    check_copy(&cluster).await;
}
