//! `lockstep cluster`: forms, changes and shows a cluster.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use lockstep_client::{Client, v1};

use super::endpoint::Endpoint;
use super::output::say;
use super::{seal, view};

/// How long another node may take to say whether it is in a cluster, or what it knows of it.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make the node at the first endpoint a cluster of one; run once, on one node. Name the other
    /// nodes as well, if there are any: it refuses when one of them is in a cluster already
    Init {
        #[command(flatten)]
        endpoint: Endpoint,
    },
    /// Add a node, which becomes a voter once it has caught up
    Add {
        /// The new node's --client-addr
        #[arg(value_name = "HOST:PORT")]
        client_addr: String,
        /// Leave it a learner: it replicates, and does not vote
        #[arg(long)]
        learner: bool,
        #[command(flatten)]
        endpoint: Endpoint,
    },
    /// Make a learner a voter, once it has caught up
    Promote {
        /// Id of the learner
        node_id: u64,
        #[command(flatten)]
        endpoint: Endpoint,
    },
    /// Take a node out of the cluster
    Remove {
        /// Id of the node
        node_id: u64,
        #[command(flatten)]
        endpoint: Endpoint,
    },
    /// Hand leadership to another voter
    Transfer {
        /// Id of the voter [default: the one that is most caught up]
        node_id: Option<u64>,
        #[command(flatten)]
        endpoint: Endpoint,
    },
    /// Set the time that guests see to the leader's wall clock, which this machine's must confirm
    SetTime {
        #[command(flatten)]
        endpoint: Endpoint,
    },
    /// Change what every node keeps to, and show it
    Limits {
        /// Work that compiling a module may take, in the units that `lockstep check` prints; a unit
        /// is a millisecond of one processor at the worst. It acts on later uploads
        #[arg(long, value_name = "UNITS")]
        compile_work: Option<u64>,
        #[command(flatten)]
        endpoint: Endpoint,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Move the running cluster to the engine of this build: stop writes, and have every node keep
    /// what the new engine starts from
    Seal(seal::Arguments),
    /// Show the nodes, as the leader sees them if it can be reached
    Status {
        #[command(flatten)]
        endpoint: Endpoint,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Init { endpoint } => init(endpoint).await?,
        Command::Add { client_addr, learner, endpoint } => {
            let added = endpoint.client()?.cluster_add(&client_addr, learner).await?;
            let part = if added.voter { "voter" } else { "learner" };
            say!("node {} at {client_addr} is a {part}", added.node_id);
        }
        Command::Promote { node_id, endpoint } => {
            endpoint.client()?.cluster_promote(node_id).await?;
            say!("node {node_id} is a voter");
        }
        Command::Remove { node_id, endpoint } => {
            endpoint.client()?.cluster_remove(node_id).await?;
            say!("node {node_id} is removed: it can be stopped now");
        }
        Command::Transfer { node_id, endpoint } => {
            let leader = endpoint.client()?.cluster_transfer(node_id).await?;
            say!("node {leader} leads");
        }
        Command::SetTime { endpoint } => set_time(endpoint).await?,
        Command::Limits { compile_work, endpoint, json } => {
            limits(compile_work, endpoint, json).await?;
        }
        Command::Seal(arguments) => seal::run(arguments).await?,
        Command::Status { endpoint, json } => status(endpoint, json).await?,
    }
    Ok(())
}

async fn init(endpoint: Endpoint) -> anyhow::Result<()> {
    let mut clients = endpoint.clients()?.into_iter();
    let (_, first) = clients.next().context("there is an endpoint")?;
    let others: Vec<_> =
        clients.map(|(address, other)| (address, other.with_timeout(ANSWERS_WITHIN))).collect();
    let cluster = form(&first, &others).await?;
    say!("cluster {} is formed", hex::encode(&cluster));
    if others.is_empty() {
        eprintln!(
            "warning: no other endpoint was asked. If this node was a member of a cluster before, \
             there are two now: nobody can tell from an empty disk. Stop it then, delete its data \
             folder, and add it to the other cluster"
        );
    }
    Ok(())
}

/// Forms a cluster of the first node, unless one of the others is in one that the first is not in:
/// the first is more likely a member whose disk was wiped, and a second cluster would answer with
/// nothing in it.
async fn form(first: &Client, others: &[(String, Client)]) -> anyhow::Result<Bytes> {
    let is_in = first.status().await?.cluster_id;
    if let Some((address, other)) = in_another(&is_in, others).await {
        bail!(
            "node {} at {address} is in cluster {} already: a second cluster would know nothing of \
             its data. Add the node at the first endpoint to that one, with `lockstep cluster add \
             HOST:PORT --endpoint {address}`. If the node was a member and its disk was wiped: \
             `lockstep cluster remove` its old id first, and start it with a new id",
            other.node_id,
            hex::encode(&other.cluster_id),
        );
    }
    Ok(first.cluster_init().await?)
}

/// One of these nodes that is in a cluster, and not in this one.
pub(super) async fn in_another<'a>(
    cluster: &Bytes,
    nodes: &'a [(String, Client)],
) -> Option<(&'a str, v1::StatusReply)> {
    let asked = nodes.iter().map(|(address, node)| async move {
        let answer = node.status().await.ok()?;
        (!answer.cluster_id.is_empty()).then_some((address.as_str(), answer))
    });
    let answers = futures::future::join_all(asked).await;
    answers.into_iter().flatten().find(|(_, answer)| answer.cluster_id != *cluster)
}

async fn set_time(endpoint: Endpoint) -> anyhow::Result<()> {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH);
    let wall = wall.context("the clock of this machine is before 1970")?;
    let wall_ms = u64::try_from(wall.as_millis()).context("the clock of this machine")?;
    let set = endpoint.client()?.cluster_set_time(wall_ms).await?;
    match set.stands_still_ms {
        0 => say!("the time moved by {} ms", set.now_ms.saturating_sub(set.before_ms)),
        ahead => say!("the time was {ahead} ms ahead: it stands still until the clock is there"),
    }
    Ok(())
}

async fn limits(compile_work: Option<u64>, endpoint: Endpoint, json: bool) -> anyhow::Result<()> {
    let client = endpoint.client()?;
    let limits = match compile_work {
        Some(compile_work_max) => {
            client.cluster_set_limits(v1::ClusterLimits { compile_work_max }).await?
        }
        None => client.status().await?.cluster_limits.unwrap_or_default(),
    };
    if json {
        say!("{:#}", view::cluster_limits_json(&limits));
    } else {
        say!("compile_work_max {}", limits.compile_work_max);
    }
    Ok(())
}

async fn status(endpoint: Endpoint, json: bool) -> anyhow::Result<()> {
    let asked = endpoint.client()?.status().await?;
    let status = leader_status(&asked).await.unwrap_or(asked);
    if json {
        say!("{:#}", view::status_json(&status));
        return Ok(());
    }
    if status.cluster_id.is_empty() {
        say!("node {} is in no cluster: run `lockstep cluster init`", status.node_id);
        return Ok(());
    }
    say!("cluster {}, term {}", hex::encode(&status.cluster_id), status.term);
    match status.leader_id {
        0 => say!("leader none known, as node {} sees it", status.node_id),
        leader => say!("leader {leader}"),
    }
    if let Some(v1::Sealed { index, to, voters, voters_ready }) = &status.sealed {
        say!("sealed since index {index}; {voters_ready} of {voters} voters run engine {to}");
    }
    if let Some(v1::VoterChange { before, after }) = &status.voter_change {
        say!("voters change from {before:?} to {after:?}");
    }
    say!("");
    view::print_nodes(&status);
    Ok(())
}

/// What the leader says, which alone knows how far the others are; `None` when `asked` is the
/// leader's own, or the leader does not answer.
pub(super) async fn leader_status(asked: &v1::StatusReply) -> Option<v1::StatusReply> {
    if asked.leader_id == asked.node_id {
        return None;
    }
    let leader = asked.nodes.iter().find(|node| node.node_id == asked.leader_id)?;
    let client = Client::connect([leader.client_addr.as_str()]).ok()?;
    let client = client.with_timeout(ANSWERS_WITHIN);
    client.status().await.ok()
}
