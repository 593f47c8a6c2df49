//! Modules and machines: a guest of one's own, and everything that is none.

use lockstep_client::{Consistency, Outcome, reason};
use lockstep_proto::v1::{Limits, Machine};
use lockstep_tests::cluster::{Cluster, Plan, SOON};
use lockstep_tests::{kv, load, program};

/// Longest module, in bytes (docs/operations.md).
const MODULE_BYTES_MAX: usize = 32 << 20;

/// A guest of the user's own runs on three nodes beside `kv`: created, listed, described, asked,
/// kept over a crash of all nodes, removed; a later machine of its name begins anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_of_ones_own_is_deployed() {
    let mut cluster = Plan::new(3).start().await;
    let counter = program::guest("counter");
    cluster.create_machine("counter", &counter).await.ok();
    let add = async |cluster: &Cluster, step: &str| {
        cluster.run(&["exec", "--machine", "counter", step]).await.ok()
    };
    assert_eq!(add(&cluster, "5").await, "5");
    assert_eq!(add(&cluster, "7").await, "12");
    let total = cluster.run(&["query", "--machine", "counter", "total"]).await.ok();
    assert_eq!(total, "12");

    let list = cluster.run(&["machine", "list"]).await.ok();
    program::assert_holds("the list", &list, &["counter", "kv"]);
    let described = cluster.run(&["machine", "describe", "counter", "--json"]).await.ok();
    let described: serde_json::Value = serde_json::from_str(&described).expect("it prints JSON");
    assert_eq!(described["name"], "counter");
    let first_id = described["id"].as_u64().expect("its id is a number");

    cluster.crash_all().await;
    cluster.leader().await;
    assert_eq!(add(&cluster, "30").await, "42");

    cluster.run(&["machine", "remove", "counter"]).await.ok();
    cluster.run(&["exec", "--machine", "counter", "1"]).await.refused(&["counter"]);
    cluster.create_machine("counter", &counter).await.ok();
    assert_eq!(add(&cluster, "1").await, "1", "a new machine begins anew");
    let machines = cluster.client().list_machines().await.expect("they are listed");
    let again = machines.iter().find(|machine| machine.name == "counter").expect("it is there");
    assert!(again.id > first_id, "its id is another");
}

/// A machine that was created is on every node, with the same id and module.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_the_same_on_every_node() {
    let cluster = Plan::new(3).start().await;
    cluster.level(&[1, 2, 3], SOON).await;
    let said: Vec<Machine> = cluster
        .statuses()
        .await
        .into_iter()
        .map(|status| status.machines.into_iter().next().expect("it has the machine"))
        .collect();
    assert_eq!(said.len(), 3);
    for machine in &said {
        assert_eq!(machine.name, kv::MACHINE);
        assert_eq!((machine.id, &machine.module_digest), (said[0].id, &said[0].module_digest));
        assert!(machine.parked.is_empty() && machine.memory_bytes > 0);
    }
}

/// A guest that is of no use is refused where it is looked at, by a command without a node and by
/// a node, and both name the step of the self-test that it failed in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_that_fail_the_self_test_are_refused() {
    let cluster = Plan::new(1).start().await;
    let before = logged(&cluster).await;
    let rows: [(&str, &[&str]); 4] = [
        ("traps-always", &["every one of the 5 probe commands", "trapped: wasm trap"]),
        ("cannot-export", &["cannot export its state, before the first command"]),
        ("loses-state", &["once it has taken in its own export, after some commands"]),
        ("call-at-start", &["does not start: its start function trapped"]),
    ];
    for (guest, said) in rows {
        let file = program::guest(guest);
        program::run(&["check", file.to_str().expect("a path")]).await.refused(said);
        cluster.create_machine(guest, &file).await.refused(said);
    }
    assert_eq!(logged(&cluster).await, before, "nothing of them was logged");
}

/// An upload is refused, with the reason, when it is no component, none of our world, wants what
/// is not offered (which is named), is cut short or too long; nothing is logged or created.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modules_that_are_no_guests_are_refused() {
    let cluster = Plan::new(3).start().await;
    let whole = std::fs::read(program::guest("guest-kv")).expect("the guest can be read");
    let before = logged(&cluster).await;
    let rows: [(&str, Vec<u8>, &[&str]); 7] = [
        ("empty", Vec::new(), &["component"]),
        ("text", b"this is no module".to_vec(), &["component"]),
        ("core-module", b"\0asm\x01\0\0\0".to_vec(), &["component"]),
        ("other-world", b"\0asm\x0d\0\x01\0".to_vec(), &["export"]),
        ("imports", component_that_imports("launch-missiles"), &["launch-missiles"]),
        ("cut-short", whole[..whole.len() / 2].to_vec(), &["component"]),
        ("too-long", vec![0; MODULE_BYTES_MAX + 1], &["33554432"]),
    ];
    for (name, bytes, parts) in rows {
        let file = cluster.directory().join(format!("{name}.wasm"));
        std::fs::write(&file, bytes).expect("a file can be written");
        let complaint = cluster.create_machine(name, &file).await.refused(parts);
        assert!(complaint.lines().count() <= 5, "{name}: it is short: {complaint}");
        // `check` says the same, without a node.
        let path = file.to_str().expect("its name is text");
        let checked = program::run(["check", path]).await.refused(parts);
        let reason = checked.strip_prefix("error: ").expect("it is one sentence").trim_end();
        assert!(complaint.contains(reason), "{name}: {complaint} does not hold {reason}");
    }
    let nowhere = cluster.directory().join("nowhere.wasm");
    cluster.create_machine("nowhere", &nowhere).await.refused(&["nowhere.wasm"]);
    assert_eq!(logged(&cluster).await, before, "nothing was logged");
    let machines = cluster.client().list_machines().await.expect("they are listed");
    assert_eq!(machines.len(), 1, "nothing was created");
}

/// What `check` says of a guest is what the cluster makes of it; nothing listens meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_is_checked_without_a_node() {
    let guest = program::guest("guest-kv");
    let said = program::run(["check", guest.to_str().expect("its name is text")]).await.ok();
    let parts = ["(state schema ", "imports    lockstep:guest/log@0.1.0", "GET, EXISTS, PING"];
    program::assert_holds("the answer", &said, &parts);
    let cluster = Plan::new(1).start().await;
    let machines = cluster.client().list_machines().await.expect("they are listed");
    let digest = hex::encode(&machines[0].module_digest);
    program::assert_holds("the answer", &said, &[&format!("module     {digest} (")]);
}

/// A module is compiled once on each node, also on the one that took the upload; and after a
/// restart its code comes from the cache, unless it was changed or is open to others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_is_compiled_once() {
    const COMPILED: &str = "a module was compiled";
    const LOADED: &str = "compiled code was loaded from the cache";
    const IGNORED: &str = "cached code is ignored";
    let mut cluster = Plan::new(3).start().await;
    let counts = |cluster: &Cluster, line: &str| -> Vec<usize> {
        cluster.nodes.iter().map(|node| node.log_text().matches(line).count()).collect()
    };
    load::write(&cluster.client(), "k", "v").await;
    assert_eq!(counts(&cluster, COMPILED), [1, 1, 1]);
    cluster.crash_all().await;
    cluster.leader().await;
    cluster.level(&[1, 2, 3], SOON).await;
    assert_eq!(cluster.kv("GET k").await.ok(), "\"v\"");
    assert_eq!((counts(&cluster, COMPILED), counts(&cluster, LOADED)), (vec![1; 3], vec![1; 3]));

    change_cached_code(&cluster.node(1).data_dir, |file| {
        let mut code = std::fs::read(file).expect("it can be read");
        let middle = code.len() / 2;
        code[middle] ^= 1;
        std::fs::write(file, code).expect("it can be written");
    });
    change_cached_code(&cluster.node(2).data_dir, |file| {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(file, open).expect("its mode can be set");
    });
    cluster.crash_all().await;
    cluster.leader().await;
    cluster.level(&[1, 2, 3], SOON).await;
    assert_eq!(cluster.kv("GET k").await.ok(), "\"v\"");
    assert_eq!(counts(&cluster, IGNORED), [1, 1, 0]);
    assert_eq!(counts(&cluster, COMPILED), [2, 2, 1]);
    assert_eq!(counts(&cluster, LOADED), [1, 1, 2]);
}

/// Does something to the one file of a node's compiled code.
fn change_cached_code(data_dir: &std::path::Path, change: impl Fn(&std::path::Path)) {
    let entries = std::fs::read_dir(data_dir.join("cache")).expect("the folder is there");
    let files: Vec<_> = entries.map(|entry| entry.expect("it can be listed").path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    change(&files[0]);
}

/// The smallest component that imports a function of this name: a function type, and the import.
fn component_that_imports(name: &str) -> Vec<u8> {
    let length = u8::try_from(name.len()).expect("the name is short");
    let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
    bytes.extend([7, 5, 1, 0x40, 0, 1, 0]);
    bytes.extend([10, length + 5, 1, 0, length]);
    bytes.extend(name.bytes().chain([1, 0]));
    bytes
}

/// A machine's name is refused when it is empty, too long, or holds odd characters, and when it
/// is taken; nothing is logged, and the machine that has the name goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_cannot_be_are_refused() {
    let cluster = Plan::new(1).start().await;
    load::write(&cluster.client(), "k", "v").await;
    let guest = program::guest("guest-kv");
    let before = logged(&cluster).await;
    let client = cluster.client();
    let machines = client.list_machines().await.expect("they are listed");
    let (digest, long) = (machines[0].module_digest.clone(), "n".repeat(65));
    for name in ["", "a b", "a/b", "../a", "a\nb", "é", "a\0b", "a\u{202e}b", &long] {
        // A NUL cannot stand on a command line, so the library is asked.
        let created = client.create_machine(name, digest.clone(), Limits::default()).await;
        let error = created.expect_err("it is refused");
        assert_eq!(error.reason, reason::BAD_REQUEST, "{name:?}: {error}");
        assert_eq!(error.outcome, Outcome::NotApplied, "{name:?}: {error}");
    }
    cluster.create_machine("a b", &guest).await.refused(&["name"]);
    cluster.create_machine("kv", &guest).await.refused(&["kv", "exists"]);
    assert_eq!(logged(&cluster).await, before, "nothing was logged");
    assert_eq!(cluster.kv("GET k").await.ok(), "\"v\"");
}

/// A command that traps leaves no trace and costs only itself: the commands before and after it are
/// kept, on every node and over a restart, and other machines go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trap_costs_its_command_alone() {
    let mut cluster = Plan::new(3).start().await;
    cluster.create_machine("hostile", &program::guest("hostile")).await.ok();
    let client = cluster.client();
    for number in 1..4 {
        let reply = client.execute("hostile", "remember me").await.expect("it answers");
        assert_eq!(reply.reply, format!("remember me={number} "));
        let error = client.execute("hostile", "remember and trap").await.expect_err("it traps");
        let certain = (error.outcome, error.reason.as_str());
        assert_eq!(certain, (Outcome::AppliedError, reason::GUEST_TRAP));
        load::write(&client, "k", "v").await;
        cluster.crash_all().await;
        cluster.leader().await;
    }
    cluster.level(&[1, 2, 3], SOON).await;
    for node in [1, 2, 3] {
        let client = cluster.node(node).client();
        let read = client.query("hostile", "remember me", Consistency::Stale).await;
        let reply = read.expect("it answers").reply;
        assert_eq!(reply, "remember me=4 ", "node {node}: a query changes nothing");
    }
    assert_eq!(cluster.kv("GET k").await.ok(), "\"v\"");
}

/// A reply over the limit comes to an error that names the limit and changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_over_the_limit_is_an_error() {
    let cluster = Plan::new(1).start().await;
    cluster.create_machine("hostile", &program::guest("hostile")).await.ok();
    let client = cluster.client();
    let error = client.execute("hostile", "long reply").await.expect_err("it is over the limit");
    assert_eq!(error.reason, reason::REPLY_TOO_LARGE, "{error}");
    assert_eq!(error.outcome, Outcome::AppliedError, "{error}");
    assert!(error.message.contains("1048576"), "it names the limit: {error}");
    let reply = client.execute("hostile", "remember me").await.expect("the machine goes on");
    assert_eq!(reply.reply, "remember me=1 ");
}

/// The last index in the log of node 1.
async fn logged(cluster: &Cluster) -> u64 {
    cluster.node(1).status().await.expect("it answers").last_log_index
}
