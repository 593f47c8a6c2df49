//! `lockstep repair`: gives a stopped node that can't go on from its own state the cluster's.

use std::path::PathBuf;

use super::endpoint::Endpoint;
use super::output::say;
use crate::node;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Data folder of the node to repair
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Healthy nodes, tried in this order
    #[command(flatten)]
    endpoint: Endpoint,
}

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let healthy = arguments.endpoint.clients()?.into_iter().map(|(_, client)| client).collect();
    let repaired = node::repair(arguments.data_dir, healthy).await?;
    let (node, index) = (repaired.node, repaired.index);
    say!("node {node} is repaired: it goes on from checkpoint {index}");
    if let Some(evidence) = repaired.evidence {
        say!("what it was quarantined for is kept in {}", evidence.display());
    }
    say!("next: start it again; `lockstep status` of it shows no alarm once it has caught up");
    Ok(())
}
