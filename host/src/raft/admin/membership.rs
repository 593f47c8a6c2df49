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
use crate::types::{ClusterId, Member, Membership, NodeId, Term};

/// How long a cluster of one may take to elect its only node.
const FORMATION_TIMEOUT: Duration = Duration::from_secs(10);

type Metrics = openraft::RaftMetrics<TypeConfig>;

impl Replica {
    /// Makes this node a cluster of one.
    pub async fn init(&self) -> Result<ClusterId, Error> {
        let shared = &self.shared;
        let raft = &shared.raft;
        let has_log = raft.is_initialized().await;
        let has_log = has_log.map_err(|fatal| Error::Stopped(fatal.to_string()))?;
        let term = raft.metrics().borrow_watched().current_term;
        let cluster = match check_founding(has_log, shared.local.cluster(), term)? {
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
        let formed = |metrics: &Metrics| is_formed(this, metrics);
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
        done_by(deadline, result).await
    }

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

/// Whether a node may found a cluster, and under which id that it has already. An id without a log
/// is an `init` that a crash cut short: it goes on with that id. But a node that was adopted into a
/// cluster must not found one.
fn check_founding(
    has_log: bool,
    cluster: Option<ClusterId>,
    term: Term,
) -> Result<Option<ClusterId>, Error> {
    match cluster {
        None if has_log => Err(Error::NoLeader),
        Some(cluster) if has_log || term > 0 => Err(Error::AlreadyInitialized(cluster)),
        cluster => Ok(cluster),
    }
}

/// Whether this node leads, and has committed and applied its first membership.
fn is_formed(this: NodeId, metrics: &Metrics) -> bool {
    metrics.current_leader == Some(this)
        && metrics.committed_membership_config == metrics.membership_config
        && metrics.last_applied.is_some_and(|applied| applied.index() > 0)
}

/// Waits for what came of a change, which goes on when the deadline passes.
async fn done_by(
    deadline: Instant,
    result: oneshot::Receiver<Result<(), Error>>,
) -> Result<(), Error> {
    match tokio::time::timeout_at(deadline.into(), result).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(Error::ShuttingDown),
        Err(_) => Err(Error::DeadlineAfterProposal),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::raft::store::convert::log_id_to_raft;
    use crate::raft::type_config::{RaftLogId, RaftStoredMembership};
    use crate::types::{LogId, LogIndex};

    fn log_id(index: LogIndex) -> RaftLogId {
        log_id_to_raft(LogId { term: 1, node: NodeId(1), index })
    }

    /// A node founds a cluster once, also where a crash cut that short, and never beside the
    /// cluster that has adopted it.
    #[test]
    fn who_may_found_a_cluster() {
        let id = ClusterId([7; 16]);
        let known = Some(id);
        let rows = [
            (false, None, 0, Ok(None)),
            (false, known, 0, Ok(known)),
            (false, known, 3, Err(Error::AlreadyInitialized(id))),
            (true, known, 1, Err(Error::AlreadyInitialized(id))),
            (true, None, 1, Err(Error::NoLeader)),
        ];
        for (has_log, cluster, term, expected) in rows {
            let found = check_founding(has_log, cluster, term);
            assert_eq!(found, expected, "{has_log}, {cluster:?}, {term}");
        }
    }

    /// A cluster is formed once its node leads and has applied the first membership, committed.
    #[test]
    fn when_a_cluster_is_formed() {
        let this = NodeId(1);
        let membership =
            |index| Arc::new(RaftStoredMembership::new(Some(log_id(index)), Default::default()));
        let formed = Metrics {
            current_leader: Some(this),
            membership_config: membership(1),
            committed_membership_config: membership(1),
            last_applied: Some(log_id(1)),
            ..Metrics::new_initial(this)
        };
        assert!(is_formed(this, &formed));
        let rows = [
            Metrics { current_leader: Some(NodeId(2)), ..formed.clone() },
            Metrics { committed_membership_config: membership(0), ..formed.clone() },
            Metrics { last_applied: Some(log_id(0)), ..formed.clone() },
            Metrics { last_applied: None, ..formed },
        ];
        for metrics in rows {
            assert!(!is_formed(this, &metrics), "{metrics}");
        }
    }

    /// Who waits for a change is told what came of it, that it goes on, or that the node stops.
    #[tokio::test]
    async fn what_is_told_of_a_change() {
        let far = Instant::now() + Duration::from_secs(60);
        let refused = Err(Error::Refused(BUSY.to_owned()));
        for result in [Ok(()), refused] {
            let (done, waiting) = oneshot::channel();
            done.send(result.clone()).unwrap();
            assert_eq!(done_by(far, waiting).await, result);
        }
        let (done, waiting) = oneshot::channel();
        drop(done);
        assert_eq!(done_by(far, waiting).await, Err(Error::ShuttingDown));
        let (_done, waiting) = oneshot::channel();
        assert_eq!(done_by(Instant::now(), waiting).await, Err(Error::DeadlineAfterProposal));
    }
}
