//! Clients in another language, with nothing that knows of Lockstep: the limits of HTTP/2 are never
//! what they meet.

use std::process::Stdio;
use std::time::Duration;

use lockstep_tests::cluster::Plan;
use lockstep_tests::python;
use tokio::process::Command;

/// How long one of them may take.
const LIMIT: Duration = Duration::from_secs(240);

/// Runs the script with these arguments.
async fn run(python: &str, arguments: &[&str]) {
    let mut command = Command::new(python);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/python/calls.py")).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.kill_on_drop(true).spawn().expect("python can be started");
    let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await;
    let output = output.expect("it ends in time").expect("its output can be read");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
}

/// Four unthrottled clients on streams of commands at once: each command is answered, however far
/// the clients run ahead of the node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unthrottled_streams_are_not_cut_off() {
    let Some(python) = python::with_grpc() else { return };
    let cluster = Plan::new(1).start().await;
    let address = cluster.node(1).client_addr.clone();
    let call = ["streams", &address, "40000"];
    futures::future::join_all((0..4).map(|_| run(python, &call))).await;
}

/// Hundreds of calls that are cancelled together cost the connection nothing: the next call on it
/// is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_cancelled_together_are_no_attack() {
    let Some(python) = python::with_grpc() else { return };
    let cluster = Plan::new(1).start().await;
    run(python, &["cancels", &cluster.node(1).client_addr, "500", "20"]).await;
}
