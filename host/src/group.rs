//! One Raft group of this node: its log, snapshots and machines opened, its tasks wired together,
//! spawned, and ended.
//!
//! There is one group today. Nothing outside may assume so: whoever has a `Group` asks it through
//! its [`Replica`] and hands it the calls of peers.

mod opened;
mod wiring;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use openraft::async_runtime::WatchReceiver as _;
use tokio::task::JoinSet;

use crate::config::Config;
use crate::raft::Raft;
use crate::raft::ask::replica::Replica;
use crate::raft::network::PeerHandler;
use crate::raft::store::state_machine::StateMachine;
use crate::storage::Log;
use opened::Opened;
use wiring::Wiring;

/// How long a stopping leader waits for another to take over.
const HANDOVER_TIMEOUT: Duration = Duration::from_millis(1000);
/// A task often ends because openraft did, which says why a moment later.
const CAUSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A running group.
pub(crate) struct Group {
    replica: Replica,
    raft: Raft,
    log: Log,
    peers: Arc<PeerHandler<StateMachine>>,
    /// Each ends with its name.
    tasks: JoinSet<&'static str>,
}

impl Group {
    /// Opens the data folder and starts every task of the group.
    ///
    /// # Errors
    /// Everything that makes the node unable to serve safely: a folder in use or of another node,
    /// damaged files, a disk without room, an unusable configuration.
    pub(crate) async fn start(config: &Config) -> anyhow::Result<Self> {
        let opened = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || Opened::open(&config)).await??
        };
        Ok(Wiring::wire(config, opened).await?.spawn(config))
    }

    /// What may be asked of the group.
    pub(crate) fn replica(&self) -> &Replica {
        &self.replica
    }

    /// What answers its peers.
    pub(crate) fn peers(&self) -> &Arc<PeerHandler<StateMachine>> {
        &self.peers
    }

    /// Completes with the reason once the group cannot go on.
    pub(crate) async fn ended(&mut self) -> String {
        tokio::select! {
            reason = fatal(&self.raft) => reason,
            Some(ended) = self.tasks.join_next() => {
                let cause = tokio::time::timeout(CAUSE_TIMEOUT, fatal(&self.raft)).await;
                cause.unwrap_or_else(|_| match ended {
                    Ok(task) => format!("the task for {task} ended early"),
                    Err(error) => format!("a task did not end well: {error}"),
                })
            }
        }
    }

    /// A leader that stops lets another take over first, so that clients hardly notice.
    pub(crate) async fn hand_over(&self) {
        let others = self.replica.status().nodes.iter().filter(|node| node.voter).count() > 1;
        if !others || !self.raft.is_leader() {
            return;
        }
        match self.replica.transfer(None, Instant::now() + HANDOVER_TIMEOUT).await {
            Ok(leader) => tracing::info!(%leader, "leadership handed over"),
            Err(error) => tracing::warn!(%error, "leadership not handed over"),
        }
    }

    /// Stops agreement. Calls that come after that are refused.
    pub(crate) async fn stop(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "the replica did not stop well");
        }
    }

    /// Ends the tasks and syncs the log.
    ///
    /// # Errors
    /// When the log cannot be synced by then.
    pub(crate) async fn close(mut self, by: Instant) -> anyhow::Result<()> {
        let log = self.log.clone();
        let closed = async move {
            self.tasks.shutdown().await;
            let log = self.log.clone();
            tokio::task::spawn_blocking(move || log.sync()).await
        };
        let Ok(synced) = tokio::time::timeout_at(by.into(), closed).await else {
            // Whoever drops the last handle waits for the disk.
            std::mem::forget(log);
            bail!("the disk does not answer: the log could not be synced at the end");
        };
        synced?.context("the log could not be synced at the end")
    }
}

/// Completes with the reason once openraft has stopped by itself. Its metrics change with every
/// entry; those of the server do not, and they end with it.
async fn fatal(raft: &Raft) -> String {
    let mut server = raft.server_metrics();
    while server.changed().await.is_ok() {}
    match &raft.metrics().borrow_watched().running_state {
        Err(fatal) => fatal.to_string(),
        Ok(()) => "the replica ended".to_owned(),
    }
}
