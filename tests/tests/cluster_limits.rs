//! Limits of the cluster: set through the log, so that all nodes admit the same modules.

use lockstep_tests::cluster::{Cluster, Plan, SOON};
use lockstep_tests::{load, program};

/// Units of work in which no guest can be compiled.
const FEW: u64 = 100;

/// Sets the limit on the work of compiling a module.
async fn set(cluster: &Cluster, compile_work_max: u64) {
    let units = compile_work_max.to_string();
    let told = cluster.run(&["cluster", "limits", "--compile-work", &units]).await.ok();
    assert_eq!(told, format!("compile_work_max {compile_work_max}"));
}

/// Every node shows this limit.
async fn shown(cluster: &Cluster, expected: u64) {
    // A leader that answers it knows all that is committed; a new one may not yet.
    load::write(&cluster.client(), "k", "v").await;
    cluster.level(&cluster.ids(), SOON).await;
    for id in cluster.ids() {
        let limits = cluster.node(id).status().await.expect("it answers").cluster_limits;
        assert_eq!(limits.expect("it says").compile_work_max, expected, "node {id}");
    }
}

/// The guest `counter` is refused as too much work, with both figures and the heaviest function.
async fn refused(cluster: &Cluster, name: &str, limit: u64) {
    let limit = format!(" by estimate, and the limit is {limit} (compile_work_max of the cluster)");
    let parts = ["compiling the component takes ", " units of work", &limit, " of them are for "];
    cluster.create_machine(name, &program::guest("counter")).await.refused(&parts);
}

/// The machine is on every node, and answers there.
async fn runs(cluster: &Cluster, name: &str) {
    assert!(!cluster.run(&["exec", "--machine", name, "1"]).await.ok().is_empty());
    cluster.level(&cluster.ids(), SOON).await;
    for id in cluster.ids() {
        let endpoint = cluster.node(id).client_addr.clone();
        let call = ["query", "--machine", name, "--stale", "total", "--endpoint", &endpoint];
        assert!(!program::run(&call).await.ok().is_empty(), "node {id}");
    }
}

/// A module over the limit is refused with both figures, by any node, also after a crash of all
/// nodes, for a state restored from a snapshot, and with a node that was added since. Once the
/// limit is raised every node admits it. A limit that is lowered since stops no machine that runs,
/// not at a restart either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_admit_the_same_modules() {
    let mut cluster = Plan::new(3).start().await;
    shown(&cluster, 10_000).await;
    let bad = cluster.run(&["cluster", "limits", "--compile-work", "0"]).await;
    bad.refused(&["compile_work_max must be 1 to 600000, and 0 is not"]);
    set(&cluster, FEW).await;
    shown(&cluster, FEW).await;
    refused(&cluster, "early", FEW).await;
    cluster.crash_all().await;
    cluster.leader().await;
    refused(&cluster, "early", FEW).await;
    cluster.run(&["snapshot"]).await.ok();
    cluster.crash_all().await;
    cluster.leader().await;
    let new = cluster.start_another().await;
    cluster.add(new, &[]).await.ok();
    shown(&cluster, FEW).await;
    refused(&cluster, "early", FEW).await;

    set(&cluster, 9_000).await;
    cluster.create_machine("counter", &program::guest("counter")).await.ok();
    runs(&cluster, "counter").await;

    set(&cluster, FEW).await;
    let other = program::guest("hostile");
    let limit = format!("the limit is {FEW} (compile_work_max of the cluster)");
    cluster.create_machine("other", &other).await.refused(&[&limit]);
    cluster.crash_all().await;
    cluster.leader().await;
    runs(&cluster, "counter").await;
    cluster.run(&["snapshot"]).await.ok();
    let newest = cluster.start_another().await;
    cluster.add(newest, &[]).await.ok();
    runs(&cluster, "counter").await;
    shown(&cluster, FEW).await;

    // Each node has said of the module that it runs it, the newest as well.
    cluster.create_machine("again", &program::guest("counter")).await.ok();
    runs(&cluster, "again").await;
    let said = cluster.run(&["cluster", "limits", "--json"]).await.ok();
    let said: serde_json::Value = serde_json::from_str(&said).expect("it prints JSON");
    assert_eq!(said["compile_work_max"], FEW);
}
