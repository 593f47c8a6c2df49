//! `lockstep cluster seal`: moves a running cluster to another engine, and shows how far it is.
//!
//! The nodes decide all of it; this asks for the seal and watches. Broken off, the change goes on,
//! and the same command watches again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::bail;
use lockstep_client::{Client, v1};

use super::cluster::leader_status;
use super::endpoint::Endpoint;
use super::output::say;
use crate::node;
use crate::types::short;

/// Time between two looks at the nodes.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How long one node may take to say what it runs.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Engine profile to go on with, as `lockstep version` of a build says it [default: that of
    /// this build]
    #[arg(long, value_name = "PROFILE")]
    to: Option<String>,
    /// Seal also when a voter can't be reached or has not reported its state: it needs `lockstep
    /// repair` by the new build then
    #[arg(long)]
    without_absent: bool,
    /// Return once the nodes can be restarted
    #[arg(long)]
    no_wait: bool,
    /// Take the seal back: writes go on with the engine before
    #[arg(long, conflicts_with_all = ["to", "without_absent", "no_wait"])]
    cancel: bool,
    #[command(flatten)]
    endpoint: Endpoint,
}

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let client = arguments.endpoint.client()?;
    if arguments.cancel {
        client.cluster_unseal().await?;
        say!("the seal is taken back: writes go on with the engine before");
        say!("next: start nodes that run another build with the one before");
        return Ok(());
    }
    let to = match arguments.to {
        Some(to) => to,
        None => tokio::task::spawn_blocking(node::engine_profile).await??,
    };
    let status = leader(&client).await?;
    if status.replicated_profile == to {
        say!("the cluster runs engine profile {} already", short(&to));
        say!("next: restart its nodes with that build one by one; writes need no pause");
        return Ok(());
    }
    let mut watch = Watch { client, to, index: 0, since: None, seen: BTreeMap::new() };
    watch.seal(&status, arguments.without_absent).await?;
    if watch.reports(arguments.without_absent).await? == Phase::Decided {
        return watch.decided().await;
    }
    say!("next: restart each node with the build of engine profile {}", short(&watch.to));
    if arguments.no_wait {
        return Ok(());
    }
    watch.restarts().await?;
    watch.decided().await
}

/// How far the change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Sealed,
    /// The cluster goes on with the new engine.
    Decided,
}

/// An engine change, as seen from here.
struct Watch {
    client: Client,
    to: String,
    /// Log index of the seal.
    index: u64,
    /// When it was asked for, if here.
    since: Option<Instant>,
    /// What was said of each node last.
    seen: BTreeMap<u64, String>,
}

impl Watch {
    /// Seals the cluster, unless that was done before.
    async fn seal(&mut self, status: &v1::StatusReply, absent: bool) -> anyhow::Result<()> {
        if let Some(sealed) = status.sealed.as_ref().filter(|sealed| sealed.to == self.to) {
            self.index = sealed.index;
            say!("sealed at log index {} before", self.index);
            return Ok(());
        }
        say!("checking the voters, their states, and that every machine starts from its export");
        let asked = Instant::now();
        self.index = self.client.cluster_seal(&self.to, absent).await?;
        say!("sealed at log index {}: no writes from here on", self.index);
        say!("(checked and sealed in {:.1} s)", asked.elapsed().as_secs_f64());
        self.since = Some(Instant::now());
        Ok(())
    }

    /// Waits until every voter has reported the state that it keeps; or, without those that are
    /// absent, a majority.
    async fn reports(&mut self, without_absent: bool) -> anyhow::Result<Phase> {
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        loop {
            looks.tick().await;
            let Ok(status) = leader(&self.client).await else { continue };
            if self.phase(&status)? == Phase::Decided {
                return Ok(Phase::Decided);
            }
            let found = status.checkpoints.iter().find(|found| found.index == self.index);
            let Some(checkpoint) = found else { continue };
            for report in &checkpoint.reports {
                let digest = hex::encode(&report.digest);
                let said = format!("keeps its state at {}, {}", self.index, short(&digest));
                self.say(report.node_id, said);
            }
            let is_there = |node: &v1::Node| {
                checkpoint.reports.iter().any(|report| report.node_id == node.node_id)
            };
            let mut voters = status.nodes.iter().filter(|node| node.voter);
            if !checkpoint.agreed.is_empty() && (without_absent || voters.all(is_there)) {
                say!("the voters agree on {}", short(&hex::encode(&checkpoint.agreed)));
                return Ok(Phase::Sealed);
            }
        }
    }

    /// Shows what each node runs until the change is decided.
    async fn restarts(&mut self) -> anyhow::Result<()> {
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        let mut nodes = leader(&self.client).await?.nodes;
        loop {
            looks.tick().await;
            for (node, answer) in ask(&nodes).await {
                let Some(status) = answer else {
                    self.say(node, "does not answer".to_owned());
                    continue;
                };
                self.say(node, self.standing(&status));
                if self.phase(&status)? == Phase::Decided {
                    return Ok(());
                }
                if status.leader_id == node {
                    nodes = status.nodes;
                }
            }
        }
    }

    /// Says what came of it, and which nodes are left.
    async fn decided(&mut self) -> anyhow::Result<()> {
        let to = short(&self.to).to_owned();
        match self.since {
            Some(since) => say!(
                "writes go on with engine profile {to}: they were paused for {:.1} s",
                since.elapsed().as_secs_f64()
            ),
            None => say!("writes go on with engine profile {to}"),
        }
        let status = self.client.status().await?;
        for (node, answer) in ask(&status.nodes).await {
            if answer.is_none_or(|status| status.engine_profile != self.to) {
                say!("next: restart node {node} with that build as well");
            }
        }
        Ok(())
    }

    /// What a node that has applied the seal knows of the change.
    fn phase(&self, status: &v1::StatusReply) -> anyhow::Result<Phase> {
        let knows = status.applied_index >= self.index && !status.replicated_profile.is_empty();
        if !knows || status.sealed.is_some() {
            return Ok(Phase::Sealed);
        }
        if status.replicated_profile != self.to {
            bail!("the seal was taken back: writes go on with the engine before");
        }
        Ok(Phase::Decided)
    }

    fn standing(&self, status: &v1::StatusReply) -> String {
        let engine = if status.engine_profile == self.to { "new" } else { "old" };
        match status.parked.as_str() {
            "" => format!("runs the {engine} engine, {}", short(&status.engine_profile)),
            why => format!("runs the {engine} engine and is parked: {why}"),
        }
    }

    /// Prints a line about a node, once.
    fn say(&mut self, node: u64, what: String) {
        if self.seen.get(&node) != Some(&what) {
            say!("node {node} {what}");
            self.seen.insert(node, what);
        }
    }
}

/// What the leader knows, or who else answers.
async fn leader(client: &Client) -> anyhow::Result<v1::StatusReply> {
    let asked = client.status().await?;
    Ok(leader_status(&asked).await.unwrap_or(asked))
}

/// Asks each node itself.
async fn ask(nodes: &[v1::Node]) -> Vec<(u64, Option<v1::StatusReply>)> {
    let asked = nodes.iter().map(|node| async {
        let client = Client::connect([node.client_addr.as_str()]).ok();
        let status = match client {
            Some(client) => client.with_timeout(ANSWERS_WITHIN).status().await.ok(),
            None => None,
        };
        (node.node_id, status)
    });
    futures::future::join_all(asked).await
}
