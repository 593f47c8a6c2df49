//! A disk that has no room left under whatever name: no bytes, no quota, no inodes, no more in one
//! file. Writes are refused and say so, reads go on, and all resumes by itself.

use lockstep_client::Consistency;
use lockstep_proto::v1::StatusReply;
use lockstep_tests::cluster::{Cluster, Plan, SOON};
use lockstep_tests::load::{self, Load};
use lockstep_tests::wait::until;
use lockstep_tests::{disk, program};

/// Errors of Linux by which a disk says that it has no room.
const NO_ROOM: [(&str, u32); 3] = [("ENOSPC", 28), ("EDQUOT", 122), ("EFBIG", 27)];

async fn alarm(cluster: &Cluster, id: u64, text: &str) {
    let raised = |status: &StatusReply| status.alarms.iter().any(|alarm| alarm.contains(text));
    let raised = |status: &StatusReply| raised(status).then_some(());
    cluster.node(id).says(&format!("{text:?} is an alarm"), SOON, raised).await;
}

async fn no_alarm(cluster: &Cluster, id: u64) {
    let quiet = |status: &StatusReply| status.alarms.is_empty().then_some(());
    cluster.node(id).says("there is no alarm", SOON, quiet).await;
}

/// Writes until the cluster refuses it, and says what it refused it with.
async fn refused(cluster: &Cluster) -> String {
    let (value, endpoints) = ("x".repeat(50_000), cluster.endpoints());
    until("writes to be refused", SOON, async || {
        let call = ["kv", "--endpoint", &endpoints, "--timeout", "1", "SET", "filler", &value];
        let ran = program::run(call).await;
        if ran.code == Some(0) { Err("it is accepted".to_owned()) } else { Ok(ran.err) }
    })
    .await
}

/// The log has no room for its next file: what it has is used up, then writes are refused, an alarm
/// says so from the beginning on, and reads go on. The node lives; with room, writes resume.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_without_room_refuses_writes() {
    let plan = Plan::new(1).faulty().config("log_segment_bytes = 1048576");
    let mut cluster = plan.start().await;
    load::write(&cluster.client(), "k", "v").await;
    for (name, error) in NO_ROOM {
        let rule = format!("write /log/temporary- refuse {error}");
        cluster.node(1).faults().set(&rule);
        let said = refused(&cluster).await;
        program::assert_holds(name, &said, &["disk is nearly full", "no room for the log to grow"]);
        alarm(&cluster, 1, "no room for the log to grow").await;
        let value = load::read(&cluster.client(), "k", Consistency::Linearizable).await;
        assert_eq!(value.as_deref(), Some("v"), "{name}: reads go on");
        assert!(cluster.node(1).faults().clear(), "{name}: the rule held");
        no_alarm(&cluster, 1).await;
        load::write(&cluster.client(), "k", "v").await;
        assert!(cluster.node_mut(1).runs(), "{name}: it lives");
    }
}

/// Snapshots and modules without room are alarms, and no more; with room they are written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_and_modules_without_room_are_alarms() {
    let counter = program::guest("counter");
    for (name, error) in NO_ROOM {
        let mut cluster = Plan::new(1).faulty().start().await;
        load::write(&cluster.client(), "k", "v").await;
        cluster.node(1).faults().set(&format!("write /snapshots/temporary- refuse {error}"));
        cluster.run(&["snapshot", "--timeout", "2"]).await;
        alarm(&cluster, 1, "no room for a snapshot").await;
        cluster.node(1).faults().set(&format!("write /modules/temporary- refuse {error}"));
        cluster.create_machine("counter", &counter).await.ok();
        alarm(&cluster, 1, "1 modules cannot be written to the disk now").await;
        assert!(cluster.node_mut(1).runs(), "{name}: it lives");
        cluster.node(1).faults().clear();
        cluster.run(&["snapshot"]).await.ok();
        no_alarm(&cluster, 1).await;
        let modules = cluster.node(1).data_dir.join("modules");
        let files = std::fs::read_dir(modules).expect("the folder can be listed").count();
        assert_eq!(files, 2, "{name}: both modules are on disk");
        load::write(&cluster.client(), "k", "w").await;
    }
}

/// A follower whose log has no room for its next file takes what it has room for, and falls behind
/// then, with an alarm on it and on the leader; the others go on, and it catches up by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_without_room_falls_behind() {
    let plan = Plan::new(3).faulty().config("log_segment_bytes = 1048576");
    let mut cluster = plan.start().await;
    let mut load = Load::start(&cluster, "behind", 4);
    load.progress(20, SOON).await;
    let leader = cluster.leader().await;
    let full = leader % 3 + 1;
    cluster.node(full).faults().set("write /log/temporary- refuse 122");
    let value = "x".repeat(50_000);
    until("the leader to see it", SOON, async || {
        load::write(&cluster.client(), "filler", &value).await;
        let status = cluster.node(leader).status().await?;
        let named = format!("node {full} falls behind");
        let seen = status.alarms.iter().any(|alarm| alarm.contains(&named));
        if seen { Ok(()) } else { Err(format!("{:?}", status.alarms)) }
    })
    .await;
    alarm(&cluster, full, "no room for the log to grow").await;
    load.progress(50, SOON).await;
    assert!(cluster.node_mut(full).runs(), "it lives");
    cluster.node(full).faults().clear();
    let report = load.finish().await;
    report.check(&cluster.client()).await;
    report.check_equal(&cluster, &[1, 2, 3]).await;
    no_alarm(&cluster, full).await;
}

/// A disk that has bytes, and no inodes left: writes are refused, the node lives, and all resumes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_without_inodes_refuses_writes() {
    if !disk::available() {
        return;
    }
    let plan = Plan::new(1).disks(256 << 20).config("log_segment_bytes = 1048576");
    let mut cluster = plan.start().await;
    load::write(&cluster.client(), "k", "v").await;
    let hog = cluster.disk(1).folder().join("hog");
    std::fs::create_dir(&hog).expect("a folder can be made");
    let files = (0..).map(|number| hog.join(number.to_string()));
    for file in files {
        if std::fs::File::create(file).is_err() {
            break;
        }
    }
    let said = refused(&cluster).await;
    program::assert_holds("no inodes", &said, &["disk is nearly full", "room for 0 files"]);
    alarm(&cluster, 1, "room for 0 files").await;
    cluster.run(&["snapshot", "--timeout", "2"]).await;
    let value = load::read(&cluster.client(), "k", Consistency::Linearizable).await;
    assert_eq!(value.as_deref(), Some("v"), "reads go on");
    assert!(cluster.node_mut(1).runs(), "it lives");
    std::fs::remove_dir_all(&hog).expect("the files can be removed");
    until("a snapshot to be taken again", SOON, async || {
        let ran = cluster.run(&["snapshot"]).await;
        if ran.code == Some(0) { Ok(()) } else { Err(ran.err) }
    })
    .await;
    no_alarm(&cluster, 1).await;
    load::write(&cluster.client(), "k", "w").await;
}
