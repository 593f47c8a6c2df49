//! Limits of one machine: set through the log, so that they hold on every node and stay.

use lockstep_client::{Consistency, Outcome, reason};
use lockstep_proto::v1::{Limits, Machine};
use lockstep_tests::cluster::{Cluster, Plan, SOON};
use lockstep_tests::wait::until;
use lockstep_tests::{kv, load, program};
use serde_json::Value;

/// The machine `kv` as one node has it.
async fn machine_on(cluster: &Cluster, node: u64) -> Machine {
    let machines = cluster.node(node).client().list_machines().await.expect("they are listed");
    machines.into_iter().find(|machine| machine.name == kv::MACHINE).expect("it is there")
}

/// Every node shows these replies as the limit, and holds its guest to it.
async fn replies_are_limited(cluster: &Cluster, expected: u64) {
    // A leader that answers it knows all that is committed; a new one may not yet.
    let short = load::read(&cluster.client(), "short", Consistency::Linearizable).await;
    assert_eq!(short.as_deref(), Some("v"));
    cluster.level(&cluster.ids(), SOON).await;
    for id in cluster.ids() {
        let status = cluster.node(id).status().await.expect("it answers");
        let machine = status.machines.first().expect("it has the machine");
        let replies = |limits: &Option<Limits>| limits.as_ref().and_then(|l| l.reply_bytes_max);
        assert_eq!(replies(&machine.limits), Some(expected), "node {id}");
        assert_eq!(replies(&machine.active_limits), Some(expected), "node {id}");
        let client = cluster.node(id).client().with_timeout(SOON);
        let fits = client.query(kv::MACHINE, kv::text("GET short"), Consistency::Stale).await;
        assert_eq!(fits.expect("it fits").reply, "$1\r\nv\r\n", "node {id}");
        let long = client.query(kv::MACHINE, kv::text("GET long"), Consistency::Stale).await;
        let error = long.expect_err("it is over the limit");
        assert_eq!(error.reason, reason::REPLY_TOO_LARGE, "node {id}: {error}");
        assert!(error.message.contains(&expected.to_string()), "node {id}: {error}");
    }
}

/// Limits that are set hold on every node, over a crash of all nodes, for a state restored from a
/// snapshot, and on a node that is added later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold_on_every_node() {
    let mut cluster = Plan::new(3).start().await;
    load::write(&cluster.client(), "short", "v").await;
    load::write(&cluster.client(), "long", "some-thirty-characters-of-value").await;
    let before = machine_on(&cluster, 1).await.limits.expect("they are told");
    assert_eq!(before.reply_bytes_max, Some(1 << 20), "by default");

    let told = cluster.run(&["machine", "limits", "kv", "--reply-bytes", "20"]).await.ok();
    // As wide as the longest of each column, with two spaces between columns.
    let row = format!("{:<20}  {:>11}  {:>11}", "reply_bytes_max", 20, 20);
    program::assert_holds("the limits, desired and active", &told, &[&row]);
    replies_are_limited(&cluster, 20).await;
    let after = machine_on(&cluster, 1).await.limits.expect("they are told");
    assert_eq!(Limits { reply_bytes_max: Some(1 << 20), ..after }, before, "the others stay");

    cluster.crash_all().await;
    cluster.leader().await;
    replies_are_limited(&cluster, 20).await;

    cluster.run(&["snapshot"]).await.ok();
    cluster.crash_all().await;
    cluster.leader().await;
    replies_are_limited(&cluster, 20).await;
    let new = cluster.start_another().await;
    cluster.add(new, &[]).await.ok();
    replies_are_limited(&cluster, 20).await;
}

/// A command that runs longer than its machine's fuel comes to OUT_OF_FUEL, and one for a machine
/// with more fuel does not; the limits are given when the machines are created.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fuel_is_limited() {
    let cluster = Plan::new(1).start().await;
    let guest = program::guest("hostile").display().to_string();
    let create = async |name: &str, fuel: &str| {
        let call = ["machine", "create", name, &guest, "--fuel-per-command", fuel];
        cluster.run(&call).await.ok();
    };
    create("short", "1000000").await;
    create("long", "200000000").await;
    let client = cluster.client().with_timeout(SOON);
    // It takes some tens of millions.
    assert_eq!(client.execute("long", "chatter").await.expect("it has the fuel").reply, "heard");
    for command in ["chatter", "spin"] {
        let error = client.execute("short", command).await.expect_err("it runs too long");
        assert_eq!(error.reason, reason::OUT_OF_FUEL, "{command}: {error}");
        assert_eq!(error.outcome, Outcome::AppliedError, "{command}: {error}");
        assert!(error.message.ends_with("its fuel of 1000000 (fuel_per_command)"), "{error}");
        let place = error.place.expect("it says where it stands in the log");
        assert_eq!(place.position, 0, "{place:?}");
        let said = format!("a command failed machine=short index={} position=0", place.index);
        program::assert_holds("the node's log", &cluster.node(1).log_text(), &[&said]);
    }
    let described = cluster.run(&["machine", "describe", "short"]).await.ok();
    program::assert_holds("describe", &described, &["fuel       1000000 last, 1000000 highest"]);
    let error = client.execute("long", "spin").await.expect_err("it never ends");
    assert_eq!((error.outcome, error.reason.as_str()), (Outcome::AppliedError, "OUT_OF_FUEL"));
    load::write(&client, "k", "v").await;
}

/// A limit that no machine can have is refused by its name, when it is set and when a machine is
/// created; nothing is logged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn impossible_limits_are_refused() {
    let cluster = Plan::new(1).start().await;
    let logged = async || cluster.node(1).status().await.expect("it answers").last_log_index;
    let before = logged().await;
    let guest = program::guest("guest-kv").display().to_string();
    let rows = [
        ("--fuel-per-command", "0", "fuel_per_command"),
        ("--fuel-per-query", "100000000001", "fuel_per_query"),
        ("--fuel-per-export-step", "1", "fuel_per_export_step"),
        ("--memory-bytes", "4GiB", "memory_bytes_max"),
        ("--table-elements", "1000001", "table_elements_max"),
        ("--reply-bytes", "1025KiB", "reply_bytes_max"),
        ("--export-bytes", "255KiB", "export_bytes_max"),
    ];
    for (flag, value, name) in rows {
        cluster.run(&["machine", "limits", "kv", flag, value]).await.refused(&[name, "must be"]);
        let create = ["machine", "create", "other", &guest, flag, value];
        cluster.run(&create).await.refused(&[name, "must be"]);
    }
    let nobody = ["machine", "limits", "nobody", "--reply-bytes", "7"];
    cluster.run(&nobody).await.refused(&["no machine named", "nobody"]);
    assert_eq!(logged().await, before, "nothing was logged");
}

/// `machine describe --json` has the keys that scripts rely on, and `machine limits` those of the
/// limits; without `--json` they say the same to people.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_described() {
    let cluster = Plan::new(1).start().await;
    let json = async |call: &[&str]| -> Value {
        serde_json::from_str(&cluster.run(call).await.ok()).expect("it prints JSON")
    };
    let described = json(&["machine", "describe", "kv", "--json"]).await;
    let keys: Vec<&str> = described.as_object().expect("an object").keys().map(|k| &**k).collect();
    let expected = [
        "active_limits",
        "applied_index",
        "checkpoint",
        "fuel_highest",
        "fuel_last",
        "guest_name",
        "id",
        "limits",
        "memory_bytes",
        "module_digest",
        "name",
        "parked",
        "restoring",
        "schema_version",
        "state",
        "uses_time",
    ];
    assert_eq!(keys, expected);
    assert_eq!((&described["state"], &described["parked"]), (&"running".into(), &Value::Null));
    assert_eq!(
        (&described["guest_name"], &described["schema_version"]),
        (&"guest-kv".into(), &1.into())
    );
    assert_eq!(described["limits"], described["active_limits"]);
    let limits = json(&["machine", "limits", "kv", "--memory-bytes", "64MiB", "--json"]).await;
    let expected = serde_json::json!({
        "fuel_per_command": 500_000_000,
        "fuel_per_query": 100_000_000,
        "fuel_per_export_step": 20_000_000_000_u64,
        "memory_bytes_max": 64 << 20,
        "table_elements_max": 20_000,
        "reply_bytes_max": 1 << 20,
        "export_bytes_max": 8_u64 << 30,
    });
    assert_eq!(limits, expected);
    assert_eq!(json(&["machine", "limits", "kv", "--json"]).await, expected, "it shows them");
    cluster.run(&["snapshot"]).await.ok();
    let text = until("the checkpoint to be agreed on", SOON, async || {
        let text = cluster.run(&["machine", "describe", "kv"]).await.ok();
        if text.contains("agreed") { Ok(text) } else { Err(text) }
    });
    let rows = ["checkpoint ", "  node 1 ", "DESIRED", "ACTIVE", "67108864     67108864"];
    program::assert_holds("describe", &text.await, &rows);
}
