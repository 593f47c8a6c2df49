//! A cluster that changes its engine: nodes of the build before and after, and `lockstep cluster
//! seal` while it watches.

use std::process::Stdio;

use lockstep_host::machine::Proposal;
use lockstep_proto::v1::StatusReply;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::cluster::{Cluster, SOON};
use crate::node::{Node, summary};
use crate::wait::until;
use crate::{peer, program};

/// `cluster seal` of the next build, under way.
pub struct Sealing {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    printed: String,
}

impl Sealing {
    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(cluster: &Cluster) -> Self {
        let mut command = Command::new(program::lockstep_next());
        command.args(["cluster", "seal", "--endpoint", &cluster.endpoints()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().expect("lockstep can be started");
        let lines = BufReader::new(process.stdout.take().expect("it is piped")).lines();
        Self { process, lines, printed: String::new() }
    }

    /// Waits until it prints a line with `part`.
    ///
    /// # Panics
    /// When it ends before, or does not print it soon.
    pub async fn says(&mut self, part: &str) {
        let said = tokio::time::timeout(SOON, async {
            loop {
                let line = self.lines.next_line().await.expect("its output can be read");
                let line = line.unwrap_or_else(|| panic!("no {part:?} in:\n{}", self.printed));
                self.printed.push_str(&line);
                self.printed.push('\n');
                if line.contains(part) {
                    return;
                }
            }
        });
        if said.await.is_err() {
            panic!("it did not say {part:?} soon, but:\n{}", self.printed);
        }
    }

    /// Waits until it ends well; all that it printed.
    ///
    /// # Panics
    /// When it fails, or does not end soon.
    pub async fn ends(mut self) -> String {
        let ended = tokio::time::timeout(SOON, async {
            while let Some(line) = self.lines.next_line().await.expect("its output can be read") {
                self.printed.push_str(&line);
                self.printed.push('\n');
            }
            self.process.wait().await.expect("it is our own process")
        });
        let status = ended.await.expect("it ends soon");
        assert!(status.success(), "{status}: {}", self.printed);
        self.printed
    }
}

/// The engine profile of the next build.
///
/// # Panics
/// When it does not say.
pub async fn next_profile() -> String {
    let said = program::run_program(&program::lockstep_next(), ["version"], b"").await.ok();
    let profile = said.lines().find_map(|line| line.strip_prefix("engine profile "));
    profile.unwrap_or_else(|| panic!("no engine profile in {said:?}")).to_owned()
}

/// Calls the command line of the next build with `--endpoint` of all nodes.
pub async fn run_next(cluster: &Cluster, arguments: &[&str]) -> program::Ran {
    let endpoints = cluster.endpoints();
    let arguments = arguments.iter().copied().chain(["--endpoint", &endpoints]);
    program::run_program(&program::lockstep_next(), arguments, b"").await
}

/// Seals a cluster by the entry alone, without what the command looks at before: the nodes that run
/// are killed, and find the entry in their logs when they start again. Returns its index.
pub async fn seal_entry(cluster: &mut Cluster) -> u64 {
    let seal = Proposal::Seal { to: next_profile().await };
    let mut running = Vec::new();
    for node in &mut cluster.nodes {
        if node.runs() {
            node.kill().await;
            running.push(node.id);
        }
    }
    let nodes: Vec<&Node> = running.iter().map(|id| cluster.node(*id)).collect();
    peer::append(&nodes, &[seal.encode()]);
    for id in &running {
        cluster.node_mut(*id).spawn();
    }
    for id in &running {
        cluster.node_mut(*id).answers().await;
    }
    let said = cluster
        .node(cluster.leader().await)
        .says("it is sealed", SOON, |status| status.sealed.as_ref().map(|sealed| sealed.index));
    said.await
}

/// Starts a node, which does not run, with the next build, or with the one before.
pub async fn start_with(cluster: &mut Cluster, id: u64, next: bool) {
    let node = cluster.node_mut(id);
    node.program = if next { program::lockstep_next() } else { program::lockstep() };
    node.start().await;
}

/// Stops a node and starts it with the next build.
pub async fn restart_with_next(cluster: &mut Cluster, id: u64) {
    cluster.node_mut(id).stop().await;
    start_with(cluster, id, true).await;
}

/// Waits until these nodes go on with a profile, and no change is under way.
///
/// # Panics
/// When they do not soon.
pub async fn run_on(cluster: &Cluster, ids: &[u64], profile: &str) {
    until("the engine change to be decided", SOON, async || {
        for id in ids {
            let status = cluster.node(*id).status().await?;
            let goes_on = status.replicated_profile == profile && status.sealed.is_none();
            if !goes_on || !status.parked.is_empty() {
                return Err(summary(&status));
            }
        }
        Ok(())
    })
    .await;
}

/// Waits until a node says that it is parked.
///
/// # Panics
/// When it does not soon.
pub async fn parked(cluster: &Cluster, id: u64) -> StatusReply {
    let parked = |status: &StatusReply| (!status.parked.is_empty()).then(|| status.clone());
    cluster.node(id).says("it is parked", SOON, parked).await
}

/// Takes a checkpoint, and waits until all these nodes reported the same state of it.
///
/// # Panics
/// When they do not soon.
pub async fn check_states(cluster: &Cluster, ids: &[u64]) {
    let index = cluster.client().snapshot().await.expect("a checkpoint is taken");
    until("equal states", SOON, async || {
        let status = cluster.node(ids[0]).status().await?;
        let found = status.checkpoints.iter().find(|found| found.index == index);
        let found = found.ok_or_else(|| summary(&status))?;
        let equal = |id: &u64| {
            let report = found.reports.iter().find(|report| report.node_id == *id);
            report.is_some_and(|report| report.digest == found.agreed)
        };
        if ids.iter().all(equal) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}
