//! gRPC for clients and operators: reads messages, asks the door, and writes what comes of it into
//! messages and statuses. It decides nothing.
//!
//! The only module besides `raft::network` that knows tonic.

mod admin;
mod answered;
mod around;
mod client;
mod convert;
mod edge;
mod error;
mod forward;
mod health;
mod metered;
pub mod peer;
mod pipeline;

use std::time::Duration;

use lockstep_proto::v1;
use lockstep_proto::v1::admin_server::AdminServer;
use lockstep_proto::v1::client_server::ClientServer;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic_health::pb::health_server::HealthServer;

use crate::api::Listener;
use crate::api::connection::Connection;
use crate::api::door::Door;
use crate::budget;
use crate::budget::Account;
use crate::config::limits;
use answered::Completed;
use around::Layered;
pub(super) use forward::{Forward, Leader, ask};
use metered::{Carries, Meter};

/// Flow-control window of one call, in bytes: above bandwidth times delay of a data centre. A node
/// holds this much of every stream of commands that it does not read from.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
/// Flow-control window of a connection, in bytes. No call waits for it: what the streams of a
/// connection hold is bounded by their number. It is this large because h2 lets the frames that
/// nobody has read cost half of it, where one of fewer than 256 bytes costs what it lacks of them.
/// All streams of a connection may be full of frames of [`FRAME_BYTES_MIN`].
const CONNECTION_WINDOW_BYTES: u32 = 24 << 20;
/// What a stream that is not read may hold, in bytes: its window, full of frames as short as they
/// may be, at what h2 keeps for each.
const UNREAD_BYTES: usize = 1 << 20;
/// The shortest frame that a real client sends, in bytes: a command, its ids and its prefixes.
const FRAME_BYTES_MIN: u32 = 20;
/// What h2 takes a frame to have at least, in bytes.
const FRAME_COST_BYTES: u32 = 256;
const _: () = assert!(
    budget::STREAMS_MAX
        * (STREAM_WINDOW_BYTES / FRAME_BYTES_MIN)
        * (FRAME_COST_BYTES - FRAME_BYTES_MIN)
        <= CONNECTION_WINDOW_BYTES / 2
);
/// Errors of its own making that a connection may see over its whole life. They cost it more than
/// the node.
const ERRORS_PER_CONNECTION_MAX: usize = 1 << 20;
/// Calls that one connection may have under way.
const CALLS_PER_CONNECTION_MAX: u32 = 1024;
/// Longest message that carries a command, a query or a piece of something, in bytes.
const PAYLOAD_MESSAGE_BYTES_MAX: usize = limits::COMMAND_BYTES_MAX + (100 << 10);
/// Longest message of any other kind, in bytes.
const PLAIN_MESSAGE_BYTES_MAX: usize = 16 << 10;
/// A client that is gone without a reset is noticed after interval plus timeout.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The services, on a door. Cheap to clone.
#[derive(Clone)]
struct Services {
    door: Door,
}

/// Serves clients and operators who come in by `listener`, which is shut when `door` drains.
/// Ends once it is closed and every call has ended.
///
/// # Errors
/// When the server fails.
pub async fn serve_clients(listener: Listener, door: Door) -> Result<(), tonic::transport::Error> {
    let (drain, close) = (door.drain().clone(), door.close().clone());
    let services = Services { door: door.clone() };
    let incoming = listener.incoming(drain.token());
    Server::builder()
        .layer(Layered(Completed(Meter { rules: carries, drain, is_strict: false })))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
        // A client may cancel all of its calls at once.
        .http2_max_pending_accept_reset_streams(Some(CALLS_PER_CONNECTION_MAX as usize))
        .http2_max_local_error_reset_streams(Some(ERRORS_PER_CONNECTION_MAX))
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .add_service(ClientServer::new(services.clone()))
        .add_service(AdminServer::new(services))
        .add_service(HealthServer::new(health::Health::new(door)))
        .add_service(reflection())
        .serve_with_incoming_shutdown(incoming, close.cancelled_owned())
        .await
}

/// A call finds the account of its connection in the extensions of its request.
impl Connected for Connection {
    type ConnectInfo = Account;

    fn connect_info(&self) -> Account {
        self.account().clone()
    }
}

/// What each method takes in.
fn carries(path: &str) -> Carries {
    let (plain, payload) = (PLAIN_MESSAGE_BYTES_MAX, PAYLOAD_MESSAGE_BYTES_MAX);
    let (first, later, ends) = match path {
        // Each command of a stream is waited for by itself.
        "/lockstep.v1.Client/ExecuteStream" => (payload, Some(payload), false),
        "/lockstep.v1.Admin/UploadModule" => (plain, Some(payload), true),
        "/lockstep.v1.Admin/FetchSnapshot" | "/grpc.health.v1.Health/Watch" => (plain, None, false),
        _ if path.starts_with("/lockstep.v1.Client/") => (payload, None, true),
        "/lockstep.v1.Admin/ImportState" => (payload, None, true),
        _ if path.starts_with("/grpc.reflection.") => (plain, Some(plain), false),
        _ => (plain, None, true),
    };
    // A pipeline counts by itself, while it reads no more.
    let is_read = later.is_none() || path == "/lockstep.v1.Client/ExecuteStream";
    let unread = if is_read { 0 } else { UNREAD_BYTES };
    Carries { first, later, unread, ends }
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
