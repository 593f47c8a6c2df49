//! What guests log: to be found in the log of the node, and nothing more than a line in it.

use lockstep_tests::cluster::{Cluster, Plan, SOON};
use lockstep_tests::program;
use lockstep_tests::wait::until;

/// Lines of a node's log that the guest of a machine said.
fn said(cluster: &Cluster, node: u64) -> Vec<String> {
    let text = cluster.node(node).log_text();
    let lines = text.lines().filter(|line| line.contains(" guest: guest machine=hostile "));
    lines.map(str::to_owned).collect()
}

/// A line of a guest is in the log of every node with its level, its machine and the index of the
/// entry, once, also after a restart that applies the entry again; a query's says so; levels that
/// nobody asked for are not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_are_heard_once() {
    let mut cluster = Plan::new(3).start().await;
    cluster.create_machine("hostile", &program::guest("hostile")).await.ok();
    let client = cluster.client();
    let executed = client.execute("hostile", "log").await.expect("it says something");
    let index = executed.index;
    for _ in 0..5 {
        client.execute("hostile", "echo").await.expect("it goes on");
    }
    cluster.level(&[1, 2, 3], SOON).await;
    let expected = [
        format!("ERROR guest: guest machine=hostile index={index} line=an error"),
        format!(" WARN guest: guest machine=hostile index={index} line=a warning"),
        format!(" INFO guest: guest machine=hostile index={index} line=news"),
        format!(" INFO guest: guest machine=hostile index={index} line=done\\n2026-01-01T"),
    ];
    let check = |cluster: &Cluster| {
        for node in cluster.ids() {
            let lines = said(cluster, node);
            assert_eq!(lines.len(), expected.len(), "node {node}: {lines:?}");
            for (line, expected) in lines.iter().zip(&expected) {
                assert!(line.contains(expected), "node {node}: no {expected:?} in {line:?}");
            }
        }
    };
    check(&cluster);

    for id in cluster.ids() {
        cluster.node_mut(id).stop().await;
    }
    cluster.start_all().await;
    cluster.leader().await;
    cluster.level(&[1, 2, 3], SOON).await;
    check(&cluster);

    let client = cluster.client();
    let query = client.query("hostile", "log", lockstep_client::Consistency::Linearizable).await;
    query.expect("it says something");
    let queried = |id: &u64| said(&cluster, *id).iter().any(|line| line.contains("index=query"));
    assert_eq!(cluster.ids().iter().filter(|id| queried(id)).count(), 1, "one node was asked");
}

/// No line of a guest can pass for one of the host's, or reach a terminal as more than text; nor
/// can the last words of a trap, which clients and the log are told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_cannot_forge_lines() {
    let cluster = Plan::new(1).start().await;
    cluster.create_machine("hostile", &program::guest("hostile")).await.ok();
    let client = cluster.client();
    client.execute("hostile", "log").await.expect("it says something");
    let error = client.execute("hostile", "last words").await.expect_err("it traps");
    assert!(error.message.contains("it said: line 15\\n\\u{1b}[2J forged"), "{error}");
    let text = cluster.node(1).log_text();
    let odd = |character: char| character.is_control() && character != '\n';
    assert_eq!(text.find(odd), None, "no control characters");
    assert!(!text.contains('\u{202e}'), "no text turned around");
    assert!(!text.lines().any(|line| line.starts_with("2026-01-01")), "no line of its own");
    assert!(text.contains(r"forged machine=kv\r\u{1b}[31m\u{9b}31m\u{202e}"), "it is there");
}

/// A guest that floods the log is heard for some lines; how many were dropped is told later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_are_kept_to_a_rate() {
    let cluster = Plan::new(1).start().await;
    cluster.create_machine("hostile", &program::guest("hostile")).await.ok();
    let client = cluster.client();
    let answered = client.execute("hostile", "chatter").await.expect("it is heard");
    assert_eq!(answered.reply, "heard");
    assert_eq!(said(&cluster, 1).len(), 16, "lines a call");
    until("the dropped lines to be told", SOON, async || {
        client.execute("hostile", "echo").await.expect("it goes on");
        let text = cluster.node(1).log_text();
        let told = "lines of a guest were dropped machine=hostile dropped=9984";
        text.contains(told).then_some(()).ok_or_else(|| "not yet".to_owned())
    })
    .await;
}
