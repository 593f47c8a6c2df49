//! gRPC for clients and operators. It checks what comes in once, hands it to the replica, and turns
//! what comes out into replies and errors. It decides nothing about the cluster, but for one thing:
//! [`join`] asks a new node who it is before the replica adds it.
//!
//! The only module besides `raft::network` that knows tonic.

mod admin;
mod client;
mod convert;
mod edge;
mod error;
mod forward;
mod health;
mod join;
pub mod peer;
mod pipeline;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use lockstep_proto::v1;
use lockstep_proto::v1::admin_server::AdminServer;
use lockstep_proto::v1::client_server::ClientServer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::pb::health_server::HealthServer;

use crate::raft::{Error, Replica};
use forward::Forward;

/// Flow-control windows, in bytes: far above bandwidth times delay of a data centre, so that
/// [`pipeline`] and the proposer's queue are what holds a client back.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Calls that one connection may have under way.
const CALLS_PER_CONNECTION_MAX: u32 = 4096;
/// A client that is gone without a reset is noticed after interval plus timeout.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long calls that are under way may take to end once the node stops.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// How the services behave.
#[derive(Clone, Debug)]
pub struct Options {
    /// Requests for the leader are passed on to it, one hop.
    pub forward: bool,
    /// How long a command or query without a deadline of its own may take.
    pub request_timeout: Duration,
}

/// What the services share. Cheap to clone.
#[derive(Clone)]
pub struct Services {
    replica: Replica,
    options: Options,
    forward: Arc<Forward>,
    stopping: watch::Sender<bool>,
}

impl Services {
    /// Services over a replica.
    pub fn new(replica: Replica, options: Options) -> Self {
        let forward = Arc::new(Forward::default());
        Self { replica, options, forward, stopping: watch::Sender::new(false) }
    }

    /// The leader's client address, if `error` says that another node leads and this request may
    /// be passed on to it.
    fn forward_address<'a>(&self, error: &'a Error, origin: &edge::Origin) -> Option<&'a str> {
        match error {
            Error::NotLeader { leader: (_, member) }
                if self.options.forward && !origin.forwarded =>
            {
                Some(&member.client_addr)
            }
            _ => None,
        }
    }
}

/// Serves clients and operators on `listener` until `shutdown`, then lets what is under way end
/// within two seconds.
///
/// # Errors
/// When the listener fails.
pub async fn serve_clients(
    listener: TcpListener,
    services: Services,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), tonic::transport::Error> {
    let stopping = services.stopping.clone();
    let mut stopped = stopping.subscribe();
    let shutdown = async move {
        shutdown.await;
        stopping.send_replace(true);
    };
    let drained = async {
        // The sender lives in `services`, so this can only end because it said so.
        let _ = stopped.wait_for(|stopping| *stopping).await;
        tokio::time::sleep(DRAIN_MAX).await;
    };
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .add_service(ClientServer::new(services.clone()))
        .add_service(AdminServer::new(services.clone()))
        .add_service(HealthServer::new(health::Health::new(services.clone())))
        .add_service(reflection())
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            shutdown,
        );
    tokio::select! {
        result = server => result,
        () = drained => Ok(()),
    }
}

fn reflection() -> tonic_reflection::server::v1::ServerReflectionServer<
    impl tonic_reflection::server::v1::ServerReflection,
> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name("lockstep.v1.Client")
        .with_service_name("lockstep.v1.Admin")
        .with_service_name("grpc.health.v1.Health")
        .build_v1()
        .expect("the descriptors are made by this build")
}
