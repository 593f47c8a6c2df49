//! `lockstep status`: what one node knows of itself and its cluster.

use lockstep_client::v1;

use super::endpoint::Endpoint;
use super::output::say;
use super::view;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    endpoint: Endpoint,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let status = arguments.endpoint.client()?.status().await?;
    if arguments.json {
        say!("{:#}", view::status_json(&status));
    } else {
        print_text(&status);
    }
    Ok(())
}

fn print_text(status: &v1::StatusReply) {
    let cluster = hex::encode(&status.cluster_id);
    say!("node       {} ({})", status.node_id, view::role(status.role));
    say!("version    {} (engine profile {})", status.version, status.engine_profile);
    say!("clients    {}", status.client_addr);
    say!("peers      {}", status.peer_addr);
    if cluster.is_empty() {
        say!("cluster    none: run `lockstep cluster init`, or add this node to a cluster");
        return;
    }
    say!("cluster    {cluster}");
    match status.leader_id {
        0 => say!("leader     none known: an election is under way, or a majority is missing"),
        leader => say!("leader     {leader}"),
    }
    say!("term       {}", status.term);
    if !status.replicated_profile.is_empty() {
        say!("engine     {}", status.replicated_profile);
    }
    say!(
        "log        last {}, committed {}, applied {}, snapshot {}, purged {}",
        status.last_log_index,
        status.committed_index,
        status.applied_index,
        status.snapshot_index,
        status.purged_index
    );
    match status.snapshot_age_s {
        Some(age) => say!("snapshot   written {age} s ago"),
        None => say!("snapshot   none yet"),
    }
    say!("");
    view::print_nodes(status);
    if !status.machines.is_empty() {
        say!("");
        view::print_machines(&status.machines);
    }
    for alarm in &status.alarms {
        say!("alarm      {alarm}");
    }
}
