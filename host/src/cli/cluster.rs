//! `lockstep cluster`: forms, changes and shows a cluster.

use lockstep_client::{Client, v1};

use super::endpoint::Endpoint;
use super::output::say;
use super::{seal, view};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make the node at the first endpoint a cluster of one; run once, on one node
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
        Command::Init { endpoint } => {
            let cluster = endpoint.client()?.cluster_init().await?;
            say!("cluster {} is formed", view::hex(&cluster));
        }
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
        Command::Seal(arguments) => seal::run(arguments).await?,
        Command::Status { endpoint, json } => status(endpoint, json).await?,
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
    say!("cluster {}, term {}", view::hex(&status.cluster_id), status.term);
    match status.leader_id {
        0 => say!("leader none known, as node {} sees it", status.node_id),
        leader => say!("leader {leader}"),
    }
    if let Some(v1::Sealed { index, to, voters, voters_ready }) = &status.sealed {
        say!("sealed since index {index}; {voters_ready} of {voters} voters run engine {to}");
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
    let timeout = std::time::Duration::from_secs(1);
    let client = Client::connect([leader.client_addr.as_str()]).ok()?.with_timeout(timeout);
    client.status().await.ok()
}
