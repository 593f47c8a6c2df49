//! Data folders that were damaged while the node did not run. What a crash can leave behind is
//! repaired with a warning; anything else is refused, naming file and offset, and never served.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_client::Consistency;
use lockstep_tests::cluster::{Cluster, Plan, SOON};
use lockstep_tests::node::summary;
use lockstep_tests::wait::throughout;
use lockstep_tests::{files, load};

/// What every refusal of lost or damaged promises says to do (docs/operations.md, "Repairs").
const REPAIR: &str = "`lockstep cluster remove` this node";

/// A lone node that wrote `value-0` to `value-(count-1)`, one after the other, and was killed.
async fn killed_after(count: u64) -> Cluster {
    let mut cluster = Plan::new(1).start().await;
    let client = cluster.client();
    for number in 0..count {
        load::write(&client, &format!("key-{number}"), &format!("value-{number};")).await;
    }
    cluster.node_mut(1).kill().await;
    cluster
}

fn log_folder(cluster: &Cluster) -> PathBuf {
    cluster.node(1).data_dir.join("log")
}

/// The file in the log of a node that holds these bytes, and where.
fn in_log(cluster: &Cluster, id: u64, wanted: &str) -> (PathBuf, u64) {
    let holds = |file: &PathBuf| {
        let bytes = std::fs::read(file).expect("the log can be read");
        bytes.windows(wanted.len()).any(|window| window == wanted.as_bytes())
    };
    let file = files::list(&cluster.node(id).data_dir.join("log")).into_iter().find(holds);
    let file = file.unwrap_or_else(|| panic!("{wanted:?} is nowhere in the log"));
    let offset = files::find_last(&file, wanted.as_bytes());
    (file, offset)
}

fn name(file: &Path) -> &str {
    file.file_name().and_then(|name| name.to_str()).expect("log files have plain names")
}

/// A damaged log is refused, naming file, offset and repair, whether the damage lies in the middle
/// or in the last entry; nothing is changed, so that the undamaged file works again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_is_refused() {
    let mut cluster = killed_after(40).await;
    for wanted in ["value-3;", "value-20;", "value-39;"] {
        let (file, offset) = in_log(&cluster, 1, wanted);
        files::flip_bit(&file, offset);
        let before = files::snapshot(&log_folder(&cluster));
        let complaint =
            cluster.node_mut(1).refuses_to_start(&[name(&file), "at byte", REPAIR]).await;
        assert_eq!(files::snapshot(&log_folder(&cluster)), before, "{wanted}: {complaint}");
        files::flip_bit(&file, offset);
    }
    cluster.node_mut(1).start().await;
    cluster.leader().await;
    for number in 0..40 {
        let key = format!("key-{number}");
        let value = load::read(&cluster.client(), &key, Consistency::Linearizable).await;
        assert_eq!(value, Some(format!("value-{number};")));
    }
}

/// A torn tail, of which only the first sectors have arrived, is cut, with a warning, and the node
/// goes on from what is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_tail_is_cut() {
    let mut cluster = killed_after(40).await;
    let log = log_folder(&cluster);
    for sectors in [1, 2, 3] {
        cluster.node_mut(1).start().await;
        cluster.leader().await;
        load::write(&cluster.client(), "long", &format!("begin;{}", "x".repeat(3000))).await;
        cluster.node_mut(1).kill().await;
        let (file, offset) = in_log(&cluster, 1, "begin;");
        files::clear_from(&file, (offset / 512 + sectors) * 512);
        let before = cluster.node(1).log_text().len();
        cluster.node_mut(1).start().await;
        cluster.leader().await;
        let said = cluster.node(1).log_text().split_off(before);
        lockstep_tests::program::assert_holds("the node", &said, &["WARN", "torn", name(&file)]);
        let client = cluster.client();
        for number in 0..40 {
            let key = format!("key-{number}");
            let value = load::read(&client, &key, Consistency::Linearizable).await;
            assert_eq!(value, Some(format!("value-{number};")), "{sectors} sectors");
        }
        cluster.node_mut(1).kill().await;
    }
    assert_eq!(files::length(&files::last(&log)), 4 << 20, "no file becomes shorter");
}

/// An acknowledged write is lost from the end of a log, in the way of a crash, while the only other
/// node that has it is down: the two that do not have it elect nobody until that one had a chance
/// to say so, and the write is there again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_end_waits_for_who_knows_more() {
    let mut cluster = Plan::new(3).start().await;
    let client = cluster.client();
    load::write(&client, "k", "before").await;
    cluster.level(&[1, 2, 3], SOON).await;
    let leader = cluster.leader().await;
    let [cut, behind] = [leader % 3 + 1, (leader + 1) % 3 + 1];
    cluster.node_mut(behind).kill().await;
    let acknowledged = format!("begin;{}", "x".repeat(3000));
    load::write(&client, "k", &acknowledged).await;
    cluster.node_mut(leader).kill().await;
    cluster.node_mut(cut).kill().await;
    let (file, offset) = in_log(&cluster, cut, "begin;");
    files::clear_from(&file, (offset / 512 + 1) * 512);
    cluster.node_mut(cut).start().await;
    cluster.node_mut(behind).start().await;

    // Without that, they elect one of them within the election timeout.
    throughout("nobody leads", Duration::from_secs(3), async || {
        for id in [cut, behind] {
            let status = cluster.node(id).status().await?;
            if status.leader_id != 0 {
                return Err(summary(&status));
            }
        }
        Ok(())
    })
    .await;
    cluster.node_mut(leader).start().await;
    cluster.leader().await;
    let value = load::read(&client, "k", Consistency::Linearizable).await;
    assert_eq!(value, Some(acknowledged));
    cluster.level(&[1, 2, 3], SOON).await;
}

/// A last file of the log that is shorter than it was prepared is no torn end, wherever it was cut:
/// it is refused, naming file and offset. So is a log of which the last files are missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_log_is_refused() {
    let mut cluster = killed_after(40).await;
    let log = log_folder(&cluster);
    let file = files::last(&log);
    let whole = std::fs::read(&file).expect("the log can be read");
    let written = files::written(&file);
    for length in [0, 63, 64, 1000, written - 1, written, (4 << 20) - 1] {
        files::end_at(&file, length);
        let at = format!("{} is damaged at byte", name(&file));
        cluster.node_mut(1).refuses_to_start(&[&at, REPAIR]).await;
        std::fs::write(&file, &whole).expect("the log can be written");
    }
    let prepared = files::list(&log).pop().expect("a segment is prepared");
    let elsewhere = cluster.node(1).data_dir.join("elsewhere");
    std::fs::rename(&prepared, &elsewhere).expect("a file can be moved");
    let missing = "the file is missing, and the log had it";
    cluster.node_mut(1).refuses_to_start(&[name(&prepared), missing, REPAIR]).await;
    std::fs::rename(&elsewhere, &prepared).expect("a file can be moved");
    std::fs::create_dir(log.join("lost+found")).expect("a folder can be made");
    std::fs::write(log.join(".nfs0000000000000001"), "x").expect("a file can be written");
    cluster.node_mut(1).start().await;
    cluster.leader().await;
    let value = load::read(&cluster.client(), "key-39", Consistency::Linearizable).await;
    assert_eq!(value.as_deref(), Some("value-39;"));
}

/// A log that is gone under an identity that is there is refused with the repair: the node must
/// not vote as if it had never voted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_log_is_refused() {
    let mut cluster = killed_after(3).await;
    std::fs::remove_dir_all(log_folder(&cluster)).expect("the log can be removed");
    cluster.node_mut(1).refuses_to_start(&["log", REPAIR]).await;
}

/// A damaged identity or snapshot is refused, naming the file and the repair.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_identity_or_snapshot_is_refused() {
    let mut cluster = Plan::new(1).start().await;
    load::fill(&cluster.client(), "key", 200).await;
    cluster.run(&["snapshot"]).await.ok();
    cluster.node_mut(1).kill().await;
    let data = cluster.node(1).data_dir.clone();
    let (identity, snapshot) = (data.join("identity"), files::last(&data.join("snapshots")));
    let end = files::length(&snapshot);
    let damaged = [
        (&identity, files::length(&identity) / 2, REPAIR),
        (&snapshot, 20, "Repair: no other snapshot is in"),
        (&snapshot, end / 2, "Repair: no other snapshot is in"),
        (&snapshot, end - 2, "Repair: no other snapshot is in"),
    ];
    for (file, offset, repair) in damaged {
        files::flip_bit(file, offset);
        cluster.node_mut(1).refuses_to_start(&[name(file), repair]).await;
        files::flip_bit(file, offset);
    }
    cluster.node_mut(1).start().await;
    cluster.leader().await;
    let found = load::count(&cluster.client(), "key", 200, Consistency::Linearizable).await;
    assert_eq!(found, 200);
}

/// A folder is that of one node: another id on it is refused, naming both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_nodes_folder_is_refused() {
    let mut cluster = killed_after(3).await;
    let folder = cluster.node(1).data_dir.clone();
    let id = cluster.prepare_another().await;
    // Whose the lock is stands in it; everything else is the node's own.
    let lock = folder.join("lock");
    let own = || files::snapshot(&folder).into_iter().filter(|(file, _)| *file != lock);
    let before: Vec<_> = own().collect();
    cluster.node_mut(id).data_dir.clone_from(&folder);
    cluster.node_mut(id).refuses_to_start(&["node 1", "node 2"]).await;
    assert!(own().eq(before), "nothing was changed");
}

/// What a crash leaves of a snapshot that was being written is removed, and never taken for one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_written_snapshot_is_never_used() {
    let mut cluster = killed_after(20).await;
    let snapshots = cluster.node(1).data_dir.join("snapshots");
    std::fs::create_dir_all(&snapshots).expect("the folder can be made");
    cluster.node_mut(1).start().await;
    cluster.leader().await;
    cluster.run(&["snapshot"]).await.ok();
    cluster.node_mut(1).kill().await;
    let whole = std::fs::read(files::last(&snapshots)).expect("the snapshot can be read");
    let half = snapshots.join("temporary-half");
    std::fs::write(&half, &whole[..whole.len() / 2]).expect("a file can be written");
    cluster.node_mut(1).start().await;
    cluster.leader().await;
    assert!(!half.exists(), "the temporary file is gone");
    let value = load::read(&cluster.client(), "key-7", Consistency::Linearizable).await;
    assert_eq!(value.as_deref(), Some("value-7;"));
}
