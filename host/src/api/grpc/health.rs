//! The standard gRPC health service (grpc.health.v1), answered from the replica's state at the
//! moment of the question.
//!
//! The server as a whole and `lockstep.v1.Client` are SERVING while a leader is known and the node
//! has not stopped; `lockstep.v1.Admin` while the node has not stopped, since a node in no cluster
//! waits for an operator.

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use tokio_stream::wrappers::IntervalStream;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health as HealthService;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::api::door::{Door, Error};
use crate::raft;
use crate::raft::ask::status::{Role, Status as ReplicaStatus};

/// How often a watcher's answer is looked at again.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// Answers health checks.
pub(super) struct Health {
    door: Door,
}

impl Health {
    pub(super) fn new(door: Door) -> Self {
        Self { door }
    }
}

#[tonic::async_trait]
impl HealthService for Health {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        match health(&service, &self.door.status()) {
            Some(status) => Ok(Response::new(HealthCheckResponse { status: status.into() })),
            None => Err(Status::not_found(format!("there is no service named {service:?}"))),
        }
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let (door, close) = (self.door.clone(), self.door.close().clone());
        let mut last = None;
        let changes = IntervalStream::new(tokio::time::interval(WATCH_INTERVAL))
            .map(move |_| match health(&service, &door.status()) {
                Some(ServingStatus::Serving) if door.drain().is_begun() => {
                    ServingStatus::NotServing
                }
                status => status.unwrap_or(ServingStatus::ServiceUnknown),
            })
            .filter_map(move |status| {
                let changed = last.replace(status) != Some(status);
                std::future::ready(
                    changed.then(|| Ok(HealthCheckResponse { status: status.into() })),
                )
            })
            .take_until(close.cancelled_owned())
            .chain(futures::stream::once(async {
                Err(Error::from(raft::Error::ShuttingDown).into())
            }));
        Ok(Response::new(Box::pin(changes)))
    }
}

/// `None` for a service that is not served here.
fn health(service: &str, status: &ReplicaStatus) -> Option<ServingStatus> {
    let running = status.role != Role::Stopped;
    let serving = match service {
        "" | "lockstep.v1.Client" => running && status.leader.is_some(),
        "lockstep.v1.Admin" => running,
        _ => return None,
    };
    Some(if serving { ServingStatus::Serving } else { ServingStatus::NotServing })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::door::join::tests::status;
    use crate::types::NodeId;

    /// Serving follows the leader being known and the node not having stopped.
    #[test]
    fn health_follows_the_replica() {
        let check = |role, leader: Option<u64>, service: &str| {
            health(service, &ReplicaStatus { role, leader: leader.map(NodeId), ..status() })
        };
        let (up, down) = (Some(ServingStatus::Serving), Some(ServingStatus::NotServing));
        for service in ["", "lockstep.v1.Client"] {
            assert_eq!(check(Role::Follower, Some(1), service), up);
            assert_eq!(check(Role::Candidate, None, service), down);
            assert_eq!(check(Role::Stopped, Some(1), service), down);
        }
        assert_eq!(check(Role::Uninitialized, None, "lockstep.v1.Admin"), up);
        assert_eq!(check(Role::Stopped, None, "lockstep.v1.Admin"), down);
        assert_eq!(check(Role::Leader, Some(1), "other"), None);
    }
}
