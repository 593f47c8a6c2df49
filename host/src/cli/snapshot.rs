//! `lockstep snapshot`: takes a checkpoint now.

use super::endpoint::Endpoint;
use super::output::say;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    endpoint: Endpoint,
}

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let index = arguments.endpoint.client()?.snapshot().await?;
    say!("the leader's snapshot at index {index} is on disk");
    Ok(())
}
