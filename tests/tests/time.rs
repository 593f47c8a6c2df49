//! The time that guests see, where wall clocks are wrong.

use std::time::Duration;

use lockstep_client::Consistency;
use lockstep_proto::v1::StatusReply;
use lockstep_tests::cluster::{Cluster, Plan, SOON};
use lockstep_tests::load;
use lockstep_tests::wait::{throughout, until};

const DAY_MS: i64 = 24 * 3_600_000;

async fn read(cluster: &Cluster, key: &str) -> Option<String> {
    load::read(&cluster.client(), key, Consistency::Linearizable).await
}

/// The alarm about the clock of a node, if it is raised.
fn clock_alarm(status: &StatusReply) -> Option<String> {
    status.alarms.iter().find(|alarm| alarm.contains("the wall clock of this node")).cloned()
}

/// The leader's wall clock is a day ahead for a second: keys that live for minutes stay, and later
/// ones end in time, also under the next leader and after a restart of all nodes. The leader says
/// what its clock was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_clock_is_a_day_ahead_for_a_second_ends_nothing() {
    let mut cluster = Plan::new(3).clocks().start().await;
    let leader = cluster.leader().await;
    cluster.kv("SET minutes v EX 600").await.ok();
    cluster.node(leader).clock().set_ahead_ms(DAY_MS);
    let alarm = cluster.node(leader).says("its clock is wrong", SOON, clock_alarm).await;
    assert!(alarm.contains("86400 s ahead"), "{alarm}");
    cluster.kv("SET during v EX 600").await.ok();
    assert_eq!(read(&cluster, "minutes").await.as_deref(), Some("v"));
    cluster.node(leader).clock().set_ahead_ms(0);
    assert_eq!(read(&cluster, "minutes").await.as_deref(), Some("v"));
    ends_in_time(&cluster, "first").await;

    let next = leader % 3 + 1;
    cluster.run(&["cluster", "transfer", &next.to_string()]).await.ok();
    ends_in_time(&cluster, "second").await;
    cluster.crash_all().await;
    cluster.leader().await;
    ends_in_time(&cluster, "third").await;
    for key in ["minutes", "during"] {
        assert_eq!(read(&cluster, key).await.as_deref(), Some("v"), "{key}");
    }
}

/// A key that lives for a second and a half does so, not a day.
async fn ends_in_time(cluster: &Cluster, key: &str) {
    cluster.kv(&format!("SET {key} v PX 1500")).await.ok();
    until("a key to end", SOON, async || match read(cluster, key).await {
        None => Ok(()),
        Some(_) => Err(format!("{key} is there")),
    })
    .await;
}

/// A node whose clock is a day ahead becomes the leader, and after a restart of all nodes leads
/// again: the time goes on as it was, and the node says what its clock is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_whose_clock_is_wrong_goes_on_with_the_time_of_the_others() {
    let mut cluster = Plan::new(3).clocks().start().await;
    let wrong = cluster.leader().await % 3 + 1;
    cluster.kv("SET hours v EX 36000").await.ok();
    cluster.node(wrong).clock().set_ahead_ms(DAY_MS);
    cluster.run(&["cluster", "transfer", &wrong.to_string()]).await.ok();
    assert_eq!(read(&cluster, "hours").await.as_deref(), Some("v"));
    cluster.kv("SET other v EX 36000").await.ok();
    assert_eq!(read(&cluster, "hours").await.as_deref(), Some("v"));

    cluster.crash_all().await;
    cluster.leader().await;
    cluster.run(&["cluster", "transfer", &wrong.to_string()]).await.ok();
    let alarm = cluster.node(wrong).says("its clock is wrong", SOON, clock_alarm).await;
    assert!(alarm.contains("s ahead of the time of the cluster"), "{alarm}");
    throughout("that no key ends", Duration::from_secs(2), async || {
        match (read(&cluster, "hours").await, read(&cluster, "other").await) {
            (Some(_), Some(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    // The operator's clock is right, and the leader's is not.
    cluster.run(&["cluster", "set-time"]).await.refused(&["differ by 86", "hand leadership"]);
}

/// The time of a cluster that is behind by a day can be set, and a clock before 1970 is refused at
/// the start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_can_be_set() {
    let mut cluster = Plan::new(1).clocks().start_bare().await;
    cluster.node(1).clock().set_ahead_ms(-DAY_MS);
    cluster.node_mut(1).kill().await;
    cluster.start_all().await;
    cluster.run(&["cluster", "init"]).await.ok();
    let guest = lockstep_tests::program::guest("guest-kv");
    cluster.create_machine(lockstep_tests::kv::MACHINE, &guest).await.ok();
    cluster.kv("SET hours v EX 36000").await.ok();
    cluster.node(1).clock().set_ahead_ms(0);
    cluster.node(1).says("its clock is ahead", SOON, clock_alarm).await;
    assert_eq!(read(&cluster, "hours").await.as_deref(), Some("v"));
    let said = cluster.run(&["cluster", "set-time"]).await.ok();
    assert!(said.contains("the time moved by 86"), "{said}");
    assert_eq!(read(&cluster, "hours").await, None, "a day has passed");

    cluster.node_mut(1).kill().await;
    cluster.node(1).clock().set_ahead_ms(-100 * 365 * DAY_MS);
    cluster.node_mut(1).refuses_to_start(&["before 1970"]).await;
}
