//! `lockstep version`: what this build is, as nodes compare it.

use super::output::say;
use crate::node;

pub(super) async fn run() -> anyhow::Result<()> {
    let profile = tokio::task::spawn_blocking(node::engine_profile).await??;
    say!("lockstep {}", env!("CARGO_PKG_VERSION"));
    say!("engine profile {profile}");
    Ok(())
}
