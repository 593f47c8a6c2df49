//! What operators ask of the membership: form a cluster, grow it, shrink it. What changes the
//! membership is done by the task in `changes`, which outlives whoever asked for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{InitializeError, RaftError};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;

use super::changes::{BUSY, Change, Request};
use crate::raft::ask::error::Error;
use crate::raft::ask::replica::Replica;
use crate::raft::store::convert::membership_from_raft;
use crate::raft::type_config::TypeConfig;
use crate::types::{ClusterId, Member, Membership, NodeId};

/// How long a cluster of one may take to elect its only node.
const FORMATION_TIMEOUT: Duration = Duration::from_secs(10);

impl Replica {
    /// Makes this node a cluster of one.
    pub async fn init(&self) -> Result<ClusterId, Error> {
        let shared = &self.shared;
        let raft = &shared.raft;
        if raft.is_initialized().await.map_err(|fatal| Error::Stopped(fatal.to_string()))? {
            let cluster = shared.local.cluster();
            return Err(cluster.map_or(Error::NoLeader, Error::AlreadyInitialized));
        }
        // An id without a log is an `init` that a crash cut short: it goes on with that id. But a
        // node that was adopted into a cluster must not found one.
        let cluster = match shared.local.cluster() {
            Some(cluster) if raft.metrics().borrow_watched().current_term > 0 => {
                return Err(Error::AlreadyInitialized(cluster));
            }
            Some(cluster) => cluster,
            None => {
                let cluster = fresh_id()?;
                let local = Arc::clone(&shared.local);
                let joined = tokio::task::spawn_blocking(move || local.join(cluster)).await;
                let joined = joined.map_err(|error| Error::Refused(error.to_string()))?;
                joined.map_err(Error::Refused)?;
                cluster
            }
        };
        let members = BTreeMap::from([(shared.local.node_id(), shared.member.clone())]);
        raft.initialize(members).await.map_err(|error| match error {
            RaftError::APIError(InitializeError::NotAllowed(_)) => {
                Error::AlreadyInitialized(cluster)
            }
            RaftError::APIError(error) => Error::Refused(error.to_string()),
            RaftError::Fatal(fatal) => Error::Stopped(fatal.to_string()),
        })?;
        self.wait_formed().await?;
        Ok(cluster)
    }

    /// Waits until this node leads and its first membership is committed, so that the next node
    /// can be added at once.
    async fn wait_formed(&self) -> Result<(), Error> {
        let this = self.shared.local.node_id();
        let formed = |metrics: &openraft::RaftMetrics<TypeConfig>| {
            metrics.current_leader == Some(this)
                && metrics.committed_membership_config == metrics.membership_config
                && metrics.last_applied.is_some_and(|applied| applied.index() > 0)
        };
        let waited = self.shared.raft.wait(Some(FORMATION_TIMEOUT)).metrics(formed, "formed").await;
        waited.map(drop).map_err(|_| Error::NoLeader)
    }

    /// Adds a node, as a learner first. Unless it shall stay one, it becomes a voter once its log
    /// has caught up. The change goes on when the deadline passes.
    pub async fn add(
        &self,
        node: NodeId,
        member: Member,
        voter: bool,
        deadline: Instant,
    ) -> Result<(), Error> {
        self.change(Change::Add { node, member, voter }, deadline).await
    }

    /// Makes a learner a voter, once its log has caught up.
    pub async fn promote(&self, node: NodeId, deadline: Instant) -> Result<(), Error> {
        self.change(Change::Promote { node }, deadline).await
    }

    /// Takes a node out of the cluster. A leader that removes itself steps down. The change goes on
    /// when the deadline passes.
    pub async fn remove(&self, node: NodeId, deadline: Instant) -> Result<(), Error> {
        self.change(Change::Remove { node }, deadline).await
    }

    async fn change(&self, change: Change, deadline: Instant) -> Result<(), Error> {
        self.check_leader()?;
        let (done, result) = oneshot::channel();
        let request = Request { change, deadline, done };
        self.shared.changes.try_send(request).map_err(|error| match error {
            TrySendError::Full(_) => Error::Refused(BUSY.to_owned()),
            TrySendError::Closed(_) => Error::ShuttingDown,
        })?;
        match tokio::time::timeout_at(deadline.into(), result).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::ShuttingDown),
            Err(_) => Err(Error::DeadlineAfterProposal),
        }
    }
}

impl Replica {
    /// The membership as this node knows it.
    pub(in crate::raft) fn membership(&self) -> Membership {
        let metrics = self.shared.raft.metrics();
        let metrics = metrics.borrow_watched();
        membership_from_raft(metrics.membership_config.membership())
    }
}

/// The id of a new cluster: sixteen bytes of the system's random numbers.
fn fresh_id() -> Result<ClusterId, Error> {
    let mut id = [0; 16];
    let filled = getrandom::fill(&mut id);
    filled.map_err(|error| Error::Refused(format!("there are no random numbers: {error}")))?;
    Ok(ClusterId(id))
}
