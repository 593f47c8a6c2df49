//! Compiles staged modules off the apply path and reports, through the log, whether this node can
//! run them.

use std::time::Duration;

use tokio::sync::mpsc;

use super::Raft;
use super::network::Network;
use super::type_config::EntryBytes;
use crate::machine::proposal::ModuleReport;
use crate::machine::{Environment, Proposal};
use crate::types::{ModuleDigest, NodeId};

/// Time between two tries to bring a report into the log.
const RETRY: Duration = Duration::from_millis(200);

/// Compiles each staged module once and reports on it.
pub struct ModuleTask {
    /// This node.
    pub node: NodeId,
    /// Where reports go when this node leads.
    pub raft: Raft,
    /// Where they go when another does.
    pub network: Network,
    /// The sandbox and what is compiled.
    pub environment: Environment,
    /// Modules whose bytes are all there.
    pub staged: mpsc::UnboundedReceiver<ModuleDigest>,
}

impl ModuleTask {
    /// Runs until the apply path is gone.
    pub async fn run(mut self) {
        while let Some(digest) = self.staged.recv().await {
            let failure = self.compile(digest).await;
            if let Some(reason) = &failure {
                tracing::error!(%digest, %reason, "a staged module cannot be compiled here");
            }
            if !self.is_reported(&digest) {
                self.report(ModuleReport { digest, node: self.node, failure }).await;
            }
        }
    }

    async fn compile(&self, digest: ModuleDigest) -> Option<String> {
        let environment = self.environment.clone();
        let compile = move || {
            let Environment { engine, library, compiled, .. } = &environment;
            compiled.get(engine, &**library, digest).err()
        };
        match tokio::task::spawn_blocking(compile).await {
            Ok(failure) => failure,
            Err(error) => Some(format!("compiling it panicked: {error}")),
        }
    }

    fn is_reported(&self, digest: &ModuleDigest) -> bool {
        let view = self.environment.directory.view();
        view.modules.get(digest).is_none_or(|module| module.reports.contains_key(&self.node))
    }

    /// Brings the report into the log, whoever leads, until it has been applied here.
    async fn report(&self, report: ModuleReport) {
        let digest = report.digest;
        let entry = Proposal::ModuleReady(report).encode();
        loop {
            let written = self.raft.client_write(EntryBytes(entry.clone())).await;
            match written {
                Ok(_) => return,
                Err(error) => match error.forward_to_leader() {
                    Some(forward) => {
                        if let (Some(leader), Some(member)) =
                            (forward.leader_id, &forward.leader_node)
                        {
                            let entry = entry.clone();
                            // Whether it worked shows in the tables.
                            let _ = self.network.propose(leader, member, entry, RETRY * 10).await;
                        }
                    }
                    None => return,
                },
            }
            tokio::time::sleep(RETRY).await;
            if self.is_reported(&digest) {
                return;
            }
        }
    }
}
