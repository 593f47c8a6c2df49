//! `lockstep version`: what this build is, as nodes compare it.

use crate::node;

pub(super) async fn run() -> anyhow::Result<()> {
    let profile = tokio::task::spawn_blocking(node::engine_profile).await??;
    println!("lockstep {}", env!("CARGO_PKG_VERSION"));
    println!("engine profile {profile}");
    Ok(())
}
