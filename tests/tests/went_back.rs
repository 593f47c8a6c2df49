//! Nodes whose files are of another time than what they acknowledged: an old data folder put back,
//! a log behind the snapshots, no snapshots at all. Each is refused by name, and nobody hangs.

use std::path::Path;
use std::process::Command;

use lockstep_client::Consistency;
use lockstep_proto::v1::StatusReply;
use lockstep_tests::cluster::{Plan, SOON};
use lockstep_tests::load::{self, Load};
use lockstep_tests::wait::until;
use lockstep_tests::{files, kv};

/// What every refusal of what was lost says to do (docs/operations.md, "Repairs").
const REPAIR: &str = "`lockstep cluster remove` this node";

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(status.is_ok_and(|status| status.success()), "{} is copied", from.display());
}

fn put_back(old: &Path, place: &Path) {
    if place.is_dir() {
        std::fs::remove_dir_all(place).expect("a folder can be removed");
    } else {
        std::fs::remove_file(place).expect("a file can be removed");
    }
    std::fs::rename(old, place).expect("the copy can be moved");
}

/// A follower starts on an old copy of its folder: the leader knows how far it once had the log. It
/// is out of the cluster, by name and with the repair, on both sides. It neither votes nor answers,
/// and the others go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_folder_is_refused() {
    let mut cluster = Plan::new(3).start().await;
    load::write(&cluster.client(), "k", "old").await;
    cluster.level(&[1, 2, 3], SOON).await;
    let leader = cluster.leader().await;
    let old = leader % 3 + 1;
    let folder = cluster.node(old).data_dir.clone();
    let saved = folder.with_extension("saved");
    cluster.node_mut(old).stop().await;
    copy(&folder, &saved);
    cluster.node_mut(old).start().await;
    let mut load = Load::start(&cluster, "back", 4);
    load.progress(50, SOON).await;
    load::write(&cluster.client(), "k", "new").await;
    cluster.level(&[1, 2, 3], SOON).await;
    let leader = cluster.leader().await;
    assert_ne!(leader, old, "it only followed");
    cluster.node_mut(old).kill().await;
    put_back(&saved, &folder);
    cluster.node_mut(old).start().await;

    let named = format!("the log of node {old} went back");
    let says = |status: &StatusReply| {
        let mut alarms = status.alarms.iter();
        alarms.any(|alarm| alarm.contains(&named) && alarm.contains("Repair: remove")).then_some(())
    };
    for id in [old, leader] {
        cluster.node(id).says(&named, SOON, says).await;
    }
    load.progress(50, SOON).await;
    let client = cluster.node(old).client();
    let stale = client.query(kv::MACHINE, kv::text("GET k"), Consistency::Stale).await;
    let error = stale.expect_err("it would miss a write").to_string();
    assert!(error.contains(&named), "{error}");
    let report = load.finish().await;
    report.check(&cluster.client()).await;
    cluster.run(&["cluster", "remove", &old.to_string()]).await.ok();
}

/// An old copy of the log, beside a snapshot that this node took later: it acknowledged more than
/// it has. So is a log of which the snapshots were removed refused, by the folder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_does_not_fit_the_snapshots_is_refused() {
    let mut cluster = Plan::new(1).start().await;
    load::write(&cluster.client(), "k", "v").await;
    cluster.node_mut(1).stop().await;
    let folder = cluster.node(1).data_dir.clone();
    let (log, ledger) = (folder.join("log"), folder.join("log-ledger"));
    let (old_log, old_ledger) = (folder.join("old-log"), folder.join("old-ledger"));
    copy(&log, &old_log);
    copy(&ledger, &old_ledger);
    cluster.node_mut(1).start().await;
    cluster.leader().await;
    load::fill(&cluster.client(), "key", 20).await;
    for _ in 0..3 {
        cluster.run(&["snapshot"]).await.ok();
        load::fill(&cluster.client(), "key", 20).await;
    }
    cluster.node_mut(1).stop().await;
    let snapshots = folder.join("snapshots");
    let saved = folder.join("saved-snapshots");
    copy(&snapshots, &saved);
    for file in files::list(&snapshots) {
        std::fs::remove_file(file).expect("a file can be removed");
    }
    let named = snapshots.display().to_string();
    let parts = [named.as_str(), "snapshots were removed", REPAIR];
    cluster.node_mut(1).refuses_to_start(&parts).await;
    put_back(&saved, &snapshots);
    put_back(&old_log, &log);
    put_back(&old_ledger, &ledger);
    let parts = ["the log ends with entry", "and this node has applied entry", ".snapshot", REPAIR];
    cluster.node_mut(1).refuses_to_start(&parts).await;
}

/// A node that restarts alone, out of three, answers stale reads with what its log knows to be
/// committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_alone_answers_stale_reads() {
    let mut cluster = Plan::new(3).start().await;
    load::fill(&cluster.client(), "key", 50).await;
    cluster.level(&[1, 2, 3], SOON).await;
    // How far it is committed is written within 50 ms, if nothing else is.
    let status = cluster.node(2).status().await.expect("it answers");
    let log = cluster.node(2).data_dir.join("log");
    until("the log to say so", SOON, async || {
        let bytes = std::fs::read(files::last(&log)).map_err(|error| error.to_string())?;
        let index = status.committed_index.to_le_bytes();
        let mut committed = bytes.windows(9).filter(|window| window.starts_with(&index));
        match committed.next_back() {
            Some(window) if window[8] == 0xa5 => Ok(()),
            _ => Err("it does not".to_owned()),
        }
    })
    .await;
    for id in [1, 2, 3] {
        cluster.node_mut(id).kill().await;
    }
    cluster.node_mut(2).start().await;
    let client = cluster.node(2).client();
    until("stale reads", SOON, async || {
        let query = kv::text("GET key-49");
        let answered = client.query(kv::MACHINE, query, Consistency::Stale).await;
        answered.map(|answered| kv::value(&answered.reply)).map_err(|error| error.to_string())
    })
    .await;
    let found = load::count(&client, "key", 50, Consistency::Stale).await;
    assert_eq!(found, 50, "all of it had been committed for a while");
}
