//! What operators ask: machines, the cluster, snapshots. Thin: one function for each method of the
//! `Admin` service, with the client's routes, retries and deadlines.

use bytes::Bytes;
use lockstep_proto::v1;
use lockstep_proto::v1::admin_client::AdminClient;
use lockstep_proto::v1::upload_module_request::{Header, Part};
use sha2::{Digest as _, Sha256};
use tonic::transport::Channel;

use crate::client::{Call, Client, Kind, Options};
use crate::error::Error;
use crate::fetch::FetchedSnapshot;
use crate::routes::Route;

/// Bytes of a module in one message of an upload.
pub const UPLOAD_CHUNK_BYTES: usize = 256 << 10;

/// How long an admin call that changes the cluster or a machine may take.
fn long(options: &Options) -> std::time::Duration {
    options.admin_timeout
}

/// How long one that only asks may take.
fn short(options: &Options) -> std::time::Duration {
    options.timeout
}

/// One admin method: sends `$message` by `$route`, and unwraps the reply. A macro because each
/// method of the generated client is a function of its own type.
macro_rules! admin {
    ($client:expr, $route:expr, $kind:expr, $timeout:expr, $method:ident($message:expr)) => {{
        let call = $client.call_for($route, $kind, $timeout($client.options()));
        let message = $message;
        let attempt = async |channel: Channel, call: Call| {
            AdminClient::new(channel).$method(call.request(message.clone())).await
        };
        $client.call(call, attempt).await?.into_inner()
    }};
}

impl Client {
    /// Sends a module to the cluster, which checks it, stages it on every node and has every voter
    /// compile it. Returns its SHA-256, by which [`Client::create_machine`] names it.
    pub async fn upload_module(&self, module: impl Into<Bytes>) -> Result<Bytes, Error> {
        let module: Bytes = module.into();
        let digest = Bytes::copy_from_slice(&Sha256::digest(&module));
        let header = Header {
            digest,
            length: u64::try_from(module.len()).expect("a length fits in 64 bits"),
        };
        // A module that is there already is not staged once more.
        let call = self.call_for(Route::Leader, Kind::Repeatable, long(self.options()));
        let attempt = async |channel: Channel, call: Call| {
            let parts = upload_parts(header.clone(), module.clone());
            let request = call.request(futures::stream::iter(parts));
            AdminClient::new(channel).upload_module(request).await
        };
        Ok(self.call(call, attempt).await?.into_inner().digest)
    }

    /// Creates a machine on an uploaded module. What `limits` leaves out has its default.
    pub async fn create_machine(
        &self,
        name: &str,
        module_digest: Bytes,
        limits: v1::Limits,
    ) -> Result<v1::Machine, Error> {
        let name = name.to_owned();
        let message = v1::CreateMachineRequest { name, module_digest, limits: Some(limits) };
        let reply = admin!(self, Route::Leader, Kind::Once, long, create_machine(message));
        Ok(reply.machine.unwrap_or_default())
    }

    /// Creates a machine that takes in the state of an export, part by part. What the limits of
    /// the request leave out has its default. [`Client::restore`] does all of it.
    pub async fn begin_restore(
        &self,
        message: v1::BeginRestoreRequest,
    ) -> Result<v1::Machine, Error> {
        let reply = admin!(self, Route::Leader, Kind::Once, long, begin_restore(message));
        Ok(reply.machine.unwrap_or_default())
    }

    /// Hands a machine that is being restored a part of an export. After UNKNOWN the same part may
    /// be sent again: one that is in already changes nothing.
    pub async fn import_state(&self, message: v1::ImportStateRequest) -> Result<(), Error> {
        admin!(self, Route::Leader, Kind::Once, long, import_state(message));
        Ok(())
    }

    /// The machines, by name, as the asked node has applied them.
    pub async fn list_machines(&self) -> Result<Vec<v1::Machine>, Error> {
        let message = v1::ListMachinesRequest {};
        let reply = admin!(self, Route::Leader, Kind::Read, short, list_machines(message));
        Ok(reply.machines)
    }

    /// One machine, as the asked node has applied it.
    pub async fn describe_machine(&self, name: &str) -> Result<v1::Machine, Error> {
        let message = v1::DescribeMachineRequest { name: name.to_owned() };
        let reply = admin!(self, Route::Leader, Kind::Read, short, describe_machine(message));
        Ok(reply.machine.unwrap_or_default())
    }

    /// Changes what the guest of a machine may use; what `limits` leaves out stays as it is.
    /// Returns the machine after it.
    pub async fn set_limits(&self, name: &str, limits: v1::Limits) -> Result<v1::Machine, Error> {
        let message = v1::SetLimitsRequest { name: name.to_owned(), limits: Some(limits) };
        let reply = admin!(self, Route::Leader, Kind::Once, long, set_limits(message));
        Ok(reply.machine.unwrap_or_default())
    }

    /// Removes a machine and its state.
    pub async fn remove_machine(&self, name: &str) -> Result<(), Error> {
        self.remove_machine_with(name, None).await
    }

    /// As [`Client::remove_machine`]; with an `id`, only if it is the machine that has it.
    pub async fn remove_machine_with(&self, name: &str, id: Option<u64>) -> Result<(), Error> {
        let message = v1::RemoveMachineRequest { name: name.to_owned(), id };
        admin!(self, Route::Leader, Kind::Once, long, remove_machine(message));
        Ok(())
    }

    /// Makes the node at the first endpoint a cluster of one; returns the cluster's id, 16 bytes.
    pub async fn cluster_init(&self) -> Result<Bytes, Error> {
        let message = v1::ClusterInitRequest {};
        let reply = admin!(self, Route::First, Kind::Once, long, cluster_init(message));
        Ok(reply.cluster_id)
    }

    /// Adds the node that serves clients at `client_addr`. It becomes a voter once it has caught
    /// up, unless `learner`.
    pub async fn cluster_add(
        &self,
        client_addr: &str,
        learner: bool,
    ) -> Result<v1::ClusterAddReply, Error> {
        let message = v1::ClusterAddRequest { client_addr: client_addr.to_owned(), learner };
        Ok(admin!(self, Route::Leader, Kind::Once, long, cluster_add(message)))
    }

    /// Makes a learner a voter, once it has caught up.
    pub async fn cluster_promote(&self, node_id: u64) -> Result<(), Error> {
        let message = v1::ClusterPromoteRequest { node_id };
        admin!(self, Route::Leader, Kind::Once, long, cluster_promote(message));
        Ok(())
    }

    /// Takes a node out of the cluster.
    pub async fn cluster_remove(&self, node_id: u64) -> Result<(), Error> {
        let message = v1::ClusterRemoveRequest { node_id };
        admin!(self, Route::Leader, Kind::Once, long, cluster_remove(message));
        Ok(())
    }

    /// Hands leadership to a voter, or to the most caught up one; returns the new leader's id.
    pub async fn cluster_transfer(&self, node_id: Option<u64>) -> Result<u64, Error> {
        let message = v1::ClusterTransferRequest { node_id: node_id.unwrap_or(0) };
        let reply = admin!(self, Route::Leader, Kind::Once, long, cluster_transfer(message));
        Ok(reply.node_id)
    }

    /// Sets the replicated time to the leader's wall clock; `wall_ms`, the caller's own, in
    /// milliseconds since 1970, must confirm it.
    pub async fn cluster_set_time(&self, wall_ms: u64) -> Result<v1::ClusterSetTimeReply, Error> {
        let message = v1::ClusterSetTimeRequest { wall_ms };
        Ok(admin!(self, Route::Leader, Kind::Once, long, cluster_set_time(message)))
    }

    /// Sets what every node keeps to; returns what it is then.
    pub async fn cluster_set_limits(
        &self,
        limits: v1::ClusterLimits,
    ) -> Result<v1::ClusterLimits, Error> {
        let message = v1::ClusterSetLimitsRequest { limits: Some(limits) };
        let reply = admin!(self, Route::Leader, Kind::Once, long, cluster_set_limits(message));
        Ok(reply.limits.unwrap_or_default())
    }

    /// Stops writes and has every node take the snapshot that a build of engine profile `to` starts
    /// from; returns the log index of it. `without_absent`: also when a voter can't be reached.
    pub async fn cluster_seal(&self, to: &str, without_absent: bool) -> Result<u64, Error> {
        let message = v1::ClusterSealRequest { to: to.to_owned(), without_absent };
        Ok(admin!(self, Route::Leader, Kind::Once, long, cluster_seal(message)).index)
    }

    /// Ends the engine change under way by the engine profile before it.
    pub async fn cluster_unseal(&self) -> Result<(), Error> {
        let message = v1::ClusterUnsealRequest {};
        admin!(self, Route::Leader, Kind::Once, long, cluster_unseal(message));
        Ok(())
    }

    /// What one node, at one of the endpoints given, knows of itself and its cluster.
    pub async fn status(&self) -> Result<v1::StatusReply, Error> {
        let message = v1::StatusRequest {};
        Ok(admin!(self, Route::Any, Kind::Read, short, status(message)))
    }

    /// Begins to fetch the newest snapshot that the cluster agreed on from the first endpoint. All
    /// of it must have come before the timeout of admin calls.
    pub async fn fetch_snapshot(&self) -> Result<FetchedSnapshot, Error> {
        let message = v1::FetchSnapshotRequest {};
        let parts = admin!(self, Route::First, Kind::Repeatable, long, fetch_snapshot(message));
        FetchedSnapshot::begin(parts).await
    }

    /// Makes the cluster take a checkpoint and waits until the leader's snapshot of it is on disk;
    /// returns its log index.
    pub async fn snapshot(&self) -> Result<u64, Error> {
        let message = v1::SnapshotRequest {};
        Ok(admin!(self, Route::Leader, Kind::Once, long, snapshot(message)).index)
    }
}

fn upload_parts(
    header: Header,
    module: Bytes,
) -> impl Iterator<Item = v1::UploadModuleRequest> + Send + 'static {
    let header = std::iter::once(Part::Header(header));
    let chunks = (0..module.len()).step_by(UPLOAD_CHUNK_BYTES).map(move |start| {
        let end = (start + UPLOAD_CHUNK_BYTES).min(module.len());
        Part::Chunk(module.slice(start..end))
    });
    header.chain(chunks).map(|part| v1::UploadModuleRequest { part: Some(part) })
}
