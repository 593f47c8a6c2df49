//! The composition root.

use crate::config::Config;

/// Runs a node until SIGTERM or SIGINT.
pub async fn run(config: Config) -> anyhow::Result<()> {
    anyhow::bail!("not built yet: node {}", config.node_id)
}
