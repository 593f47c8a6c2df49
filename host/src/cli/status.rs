//! `lockstep status`: what one node knows of itself and its cluster.

use lockstep_client::v1;

use super::endpoint::Endpoint;
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
        println!("{:#}", view::status_json(&status));
    } else {
        print_text(&status);
    }
    Ok(())
}

fn print_text(status: &v1::StatusReply) {
    let cluster = view::hex(&status.cluster_id);
    println!("node       {} ({})", status.node_id, view::role(status.role));
    println!("version    {} (engine profile {})", status.version, status.engine_profile);
    println!("clients    {}", status.client_addr);
    println!("peers      {}", status.peer_addr);
    if cluster.is_empty() {
        println!("cluster    none: run `lockstep cluster init`, or add this node to a cluster");
        return;
    }
    println!("cluster    {cluster}");
    match status.leader_id {
        0 => println!("leader     none known: an election is under way, or a majority is missing"),
        leader => println!("leader     {leader}"),
    }
    println!("term       {}", status.term);
    if !status.replicated_profile.is_empty() {
        println!("engine     {}", status.replicated_profile);
    }
    println!(
        "log        last {}, committed {}, applied {}, snapshot {}, purged {}",
        status.last_log_index,
        status.committed_index,
        status.applied_index,
        status.snapshot_index,
        status.purged_index
    );
    println!();
    view::print_nodes(status);
    if !status.machines.is_empty() {
        println!();
        view::print_machines(&status.machines);
    }
    for alarm in &status.alarms {
        println!("alarm      {alarm}");
    }
}
