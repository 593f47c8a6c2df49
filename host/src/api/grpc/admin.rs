//! The `Admin` service: machines, the cluster, snapshots.
//!
//! What changes something is passed on to the leader like a command; what only asks is answered by
//! this node.

use std::future::Future;
use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _, stream};
use lockstep_client::Client as LeaderClient;
use lockstep_proto::v1;
use lockstep_proto::v1::admin_server::Admin;
use lockstep_proto::v1::fetch_snapshot_reply;
use lockstep_proto::v1::upload_module_request::{Header, Part};
use sha2::{Digest as _, Sha256};
use tonic::{Request, Response, Status, Streaming};

use super::edge::{
    Origin, check_address, check_digest, check_limits, check_machine_name, check_part,
    check_profile, invalid, too_large,
};
use super::error::Error;
use super::join::{self, Joining};
use super::{Services, convert};
use crate::config::limits;
use crate::raft;
use crate::types::{MachineId, ModuleDigest, NodeId};

type Reply<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Admin for Services {
    type FetchSnapshotStream =
        Pin<Box<dyn Stream<Item = Result<v1::FetchSnapshotReply, Status>> + Send>>;

    async fn upload_module(
        &self,
        request: Request<Streaming<v1::UploadModuleRequest>>,
    ) -> Reply<v1::UploadModuleReply> {
        let origin = Origin::of_admin(request.metadata());
        let _turn = self.uploads.take(origin.deadline).await?;
        let received = receive_module(request.into_inner());
        let received = tokio::time::timeout_at(origin.deadline.into(), received).await;
        let late = |_| Error::from(raft::Error::DeadlineBeforeProposal);
        let module = received.map_err(late)??;
        let result = self.replica.upload_module(module.clone(), origin.deadline).await;
        let result = result.map(|digest| Bytes::copy_from_slice(&digest.0));
        let forward = async |leader: LeaderClient| leader.upload_module(module).await;
        let digest = self.or_forward(result, origin, forward).await?;
        Ok(Response::new(v1::UploadModuleReply { digest }))
    }

    async fn create_machine(
        &self,
        request: Request<v1::CreateMachineRequest>,
    ) -> Reply<v1::CreateMachineReply> {
        let origin = Origin::of_admin(request.metadata());
        let v1::CreateMachineRequest { name, module_digest, limits } = request.into_inner();
        check_machine_name(&name)?;
        let limits = limits.unwrap_or_default();
        let change = check_limits(&limits)?;
        let digest = check_digest(&module_digest)?;
        let asked = raft::Limits::default().with(&change);
        let result = self.replica.create_machine(&name, digest, asked, origin.deadline).await;
        let result = result.map(convert::machine);
        let forward =
            async |leader: LeaderClient| leader.create_machine(&name, module_digest, limits).await;
        let machine = self.or_forward(result, origin, forward).await?;
        Ok(Response::new(v1::CreateMachineReply { machine: Some(machine) }))
    }

    async fn begin_restore(
        &self,
        request: Request<v1::BeginRestoreRequest>,
    ) -> Reply<v1::BeginRestoreReply> {
        let origin = Origin::of_admin(request.metadata());
        let message = request.into_inner();
        let v1::BeginRestoreRequest { name, module_digest, limits, schema_version } = &message;
        check_machine_name(name)?;
        let change = check_limits(&limits.unwrap_or_default())?;
        let asked = raft::Limits::default().with(&change);
        let digest = check_digest(module_digest)?;
        let begun =
            self.replica.begin_restore(name, digest, asked, *schema_version, origin.deadline);
        let result = begun.await.map(convert::machine);
        let forward = async |leader: LeaderClient| leader.begin_restore(message).await;
        let machine = self.or_forward(result, origin, forward).await?;
        Ok(Response::new(v1::BeginRestoreReply { machine: Some(machine) }))
    }

    async fn import_state(
        &self,
        request: Request<v1::ImportStateRequest>,
    ) -> Reply<v1::ImportStateReply> {
        let origin = Origin::of_admin(request.metadata());
        let message = request.into_inner();
        let part = convert::state_part(&message);
        check_part(&part)?;
        let result = self.replica.import_state(part, origin.deadline).await;
        let forward = async |leader: LeaderClient| leader.import_state(message).await;
        self.or_forward(result, origin, forward).await?;
        Ok(Response::new(v1::ImportStateReply {}))
    }

    async fn list_machines(
        &self,
        _: Request<v1::ListMachinesRequest>,
    ) -> Reply<v1::ListMachinesReply> {
        let machines = self.replica.machines().into_iter().map(convert::machine).collect();
        Ok(Response::new(v1::ListMachinesReply { machines }))
    }

    async fn describe_machine(
        &self,
        request: Request<v1::DescribeMachineRequest>,
    ) -> Reply<v1::DescribeMachineReply> {
        let name = request.into_inner().name;
        check_machine_name(&name)?;
        let machine = self.replica.machine(&name).map_err(Error::from)?;
        let machine = Some(convert::machine(machine));
        Ok(Response::new(v1::DescribeMachineReply { machine }))
    }

    async fn set_limits(
        &self,
        request: Request<v1::SetLimitsRequest>,
    ) -> Reply<v1::SetLimitsReply> {
        let origin = Origin::of_admin(request.metadata());
        let v1::SetLimitsRequest { name, limits } = request.into_inner();
        check_machine_name(&name)?;
        let limits = limits.unwrap_or_default();
        let change = check_limits(&limits)?;
        let result = self.replica.set_limits(&name, change, origin.deadline).await;
        let result = result.map(convert::machine);
        let forward = async |leader: LeaderClient| leader.set_limits(&name, limits).await;
        let machine = self.or_forward(result, origin, forward).await?;
        Ok(Response::new(v1::SetLimitsReply { machine: Some(machine) }))
    }

    async fn remove_machine(
        &self,
        request: Request<v1::RemoveMachineRequest>,
    ) -> Reply<v1::RemoveMachineReply> {
        let origin = Origin::of_admin(request.metadata());
        let v1::RemoveMachineRequest { name, id } = request.into_inner();
        check_machine_name(&name)?;
        let result = self.replica.remove_machine(&name, id.map(MachineId), origin.deadline).await;
        let forward = async |leader: LeaderClient| leader.remove_machine_with(&name, id).await;
        self.or_forward(result, origin, forward).await?;
        Ok(Response::new(v1::RemoveMachineReply {}))
    }

    async fn cluster_init(
        &self,
        _: Request<v1::ClusterInitRequest>,
    ) -> Reply<v1::ClusterInitReply> {
        let cluster = self.replica.init().await.map_err(Error::from)?;
        let cluster_id = Bytes::copy_from_slice(&cluster.0);
        Ok(Response::new(v1::ClusterInitReply { cluster_id }))
    }

    async fn cluster_add(
        &self,
        request: Request<v1::ClusterAddRequest>,
    ) -> Reply<v1::ClusterAddReply> {
        let origin = Origin::of_admin(request.metadata());
        let v1::ClusterAddRequest { client_addr, learner } = request.into_inner();
        check_address(&client_addr)?;
        let result = match join::check_leads(&self.replica.status()) {
            Ok(()) => self.add_node(&client_addr, learner, origin).await?,
            Err(error) => Err(error),
        };
        let forward = async |leader: LeaderClient| leader.cluster_add(&client_addr, learner).await;
        Ok(Response::new(self.or_forward(result, origin, forward).await?))
    }

    async fn cluster_promote(
        &self,
        request: Request<v1::ClusterPromoteRequest>,
    ) -> Reply<v1::ClusterPromoteReply> {
        let origin = Origin::of_admin(request.metadata());
        let node_id = request.into_inner().node_id;
        let result = self.replica.promote(NodeId(node_id), origin.deadline).await;
        let forward = async |leader: LeaderClient| leader.cluster_promote(node_id).await;
        self.or_forward(result, origin, forward).await?;
        Ok(Response::new(v1::ClusterPromoteReply {}))
    }

    async fn cluster_remove(
        &self,
        request: Request<v1::ClusterRemoveRequest>,
    ) -> Reply<v1::ClusterRemoveReply> {
        let origin = Origin::of_admin(request.metadata());
        let node_id = request.into_inner().node_id;
        let result = self.replica.remove(NodeId(node_id), origin.deadline).await;
        let forward = async |leader: LeaderClient| leader.cluster_remove(node_id).await;
        self.or_forward(result, origin, forward).await?;
        Ok(Response::new(v1::ClusterRemoveReply {}))
    }

    async fn cluster_transfer(
        &self,
        request: Request<v1::ClusterTransferRequest>,
    ) -> Reply<v1::ClusterTransferReply> {
        let origin = Origin::of_admin(request.metadata());
        let to = Some(request.into_inner().node_id).filter(|id| *id != 0);
        let result = self.replica.transfer(to.map(NodeId), origin.deadline).await;
        let result = result.map(|leader| leader.0);
        let forward = async |leader: LeaderClient| leader.cluster_transfer(to).await;
        let node_id = self.or_forward(result, origin, forward).await?;
        Ok(Response::new(v1::ClusterTransferReply { node_id }))
    }

    async fn cluster_set_time(
        &self,
        request: Request<v1::ClusterSetTimeRequest>,
    ) -> Reply<v1::ClusterSetTimeReply> {
        let origin = Origin::of_admin(request.metadata());
        let wall_ms = request.into_inner().wall_ms;
        let result = self.replica.set_time(wall_ms, origin.deadline).await;
        let result = result.map(|set| v1::ClusterSetTimeReply {
            before_ms: set.before_ms,
            now_ms: set.now_ms,
            stands_still_ms: set.stands_still_ms,
        });
        let forward = async |leader: LeaderClient| leader.cluster_set_time(wall_ms).await;
        Ok(Response::new(self.or_forward(result, origin, forward).await?))
    }

    async fn cluster_seal(
        &self,
        request: Request<v1::ClusterSealRequest>,
    ) -> Reply<v1::ClusterSealReply> {
        let origin = Origin::of_admin(request.metadata());
        let v1::ClusterSealRequest { to, without_absent } = request.into_inner();
        check_profile(&to)?;
        let result = self.replica.seal(&to, without_absent, origin.deadline).await;
        let forward = async |leader: LeaderClient| leader.cluster_seal(&to, without_absent).await;
        let index = self.or_forward(result, origin, forward).await?;
        Ok(Response::new(v1::ClusterSealReply { index }))
    }

    async fn cluster_unseal(
        &self,
        request: Request<v1::ClusterUnsealRequest>,
    ) -> Reply<v1::ClusterUnsealReply> {
        let origin = Origin::of_admin(request.metadata());
        let result = self.replica.unseal(origin.deadline).await;
        let forward = async |leader: LeaderClient| leader.cluster_unseal().await;
        self.or_forward(result, origin, forward).await?;
        Ok(Response::new(v1::ClusterUnsealReply {}))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Reply<v1::StatusReply> {
        Ok(Response::new(convert::status(self.replica.status())))
    }

    async fn snapshot(&self, request: Request<v1::SnapshotRequest>) -> Reply<v1::SnapshotReply> {
        let origin = Origin::of_admin(request.metadata());
        let result = self.replica.checkpoint(origin.deadline).await;
        let forward = async |leader: LeaderClient| leader.snapshot().await;
        let index = self.or_forward(result, origin, forward).await?;
        Ok(Response::new(v1::SnapshotReply { index }))
    }

    async fn fetch_snapshot(
        &self,
        request: Request<v1::FetchSnapshotRequest>,
    ) -> Reply<Self::FetchSnapshotStream> {
        use fetch_snapshot_reply::{Chunk, Part};
        let turn = self.fetches.take(Origin::of_admin(request.metadata()).deadline).await?;
        let fetched = self.replica.agreed_snapshot().map_err(Error::from)?;
        let header = Part::Header(convert::fetched(&fetched));
        let chunks = fetched.chunks().map(|chunk| match chunk {
            Ok(data) => Ok(Part::Chunk(Chunk { crc32c: crc32c::crc32c(&data), data })),
            Err(error) => Err(raft::Error::Refused(error.to_string())),
        });
        let parts = stream::once(async { Ok(header) }).chain(chunks).map(|part| match part {
            Ok(part) => Ok(v1::FetchSnapshotReply { part: Some(part) }),
            Err(error) => Err(Status::from(Error::from(error))),
        });
        // The turn ends with the stream.
        let parts = parts.inspect(move |_| _ = &turn);
        Ok(Response::new(Box::pin(parts)))
    }
}

impl Services {
    /// The result of this node's replica, or, where that says that another node leads, the
    /// leader's.
    async fn or_forward<T, F>(
        &self,
        result: Result<T, raft::Error>,
        origin: Origin,
        forward: impl FnOnce(LeaderClient) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, lockstep_client::Error>>,
    {
        let error = match result {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        match self.forward_address(&error, &origin) {
            Some(address) => Ok(forward(self.forward.client(address, origin.remaining())?).await?),
            None => Err(error.into()),
        }
    }

    /// Adds the node at `client_addr`. The outer error is of the new node's making, the inner one
    /// the replica's.
    async fn add_node(
        &self,
        client_addr: &str,
        learner: bool,
        origin: Origin,
    ) -> Result<Result<v1::ClusterAddReply, raft::Error>, Error> {
        let theirs = join::ask(client_addr).await?;
        let joining = join::examine(&self.replica.status(), client_addr, &theirs)?;
        Ok(self.join(joining, learner, origin).await)
    }

    async fn join(
        &self,
        joining: Joining,
        learner: bool,
        origin: Origin,
    ) -> Result<v1::ClusterAddReply, raft::Error> {
        let node = match joining {
            Joining::Voter(node) => {
                return Ok(v1::ClusterAddReply { node_id: node.0, voter: true });
            }
            Joining::Learner(node) if learner => node,
            Joining::Learner(node) => {
                self.replica.promote(node, origin.deadline).await?;
                node
            }
            Joining::New(node, member) => {
                self.replica.add(node, member, !learner, origin.deadline).await?;
                node
            }
        };
        Ok(v1::ClusterAddReply { node_id: node.0, voter: !learner })
    }
}

/// Receives a module whole and checks it against the header.
async fn receive_module(mut parts: Streaming<v1::UploadModuleRequest>) -> Result<Bytes, Status> {
    let first = parts.message().await.map_err(Error::of_request)?;
    let Some(Part::Header(header)) = first.and_then(|message| message.part) else {
        return Err(invalid("the first message of an upload must be its header").into());
    };
    let mut upload = Upload::begin(header)?;
    while let Some(message) = parts.message().await.map_err(Error::of_request)? {
        match message.part {
            Some(Part::Chunk(chunk)) => upload.append(&chunk)?,
            _ => return Err(invalid("an upload has one header, then chunks").into()),
        }
    }
    Ok(upload.finish()?)
}

/// A module on its way in. Invariant: never longer than its header says, which is within the limit.
struct Upload {
    digest: ModuleDigest,
    length: usize,
    bytes: BytesMut,
}

impl Upload {
    fn begin(header: Header) -> Result<Self, Error> {
        let digest = ModuleDigest::from_slice(&header.digest)
            .ok_or_else(|| invalid("the digest must be a SHA-256, 32 bytes"))?;
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        if length > limits::MODULE_BYTES_MAX {
            let limit = limits::MODULE_BYTES_MAX as u64;
            return Err(too_large("the module", header.length, limit));
        }
        Ok(Self { digest, length, bytes: BytesMut::new() })
    }

    fn append(&mut self, chunk: &[u8]) -> Result<(), Error> {
        if self.bytes.len() + chunk.len() > self.length {
            return Err(invalid("the module is longer than its header says"));
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    fn finish(self) -> Result<Bytes, Error> {
        if self.bytes.len() != self.length {
            return Err(invalid("the module is shorter than its header says"));
        }
        if Sha256::digest(&self.bytes)[..] != self.digest.0 {
            return Err(invalid("the module does not have the digest that its header says"));
        }
        Ok(self.bytes.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(digest: impl Into<Bytes>, length: usize) -> Header {
        Header { digest: digest.into(), length: length as u64 }
    }

    /// A module comes in whole, as its header says, or not at all.
    #[test]
    fn uploads_are_checked() {
        let digest = Bytes::copy_from_slice(&Sha256::digest(b"module"));
        let check = |header: Header, chunks: &[&[u8]]| {
            let mut upload = Upload::begin(header)?;
            chunks.iter().try_for_each(|chunk| upload.append(chunk))?;
            upload.finish()
        };
        assert_eq!(check(header(digest.clone(), 6), &[b"mod", b"", b"ule"]).unwrap(), "module");
        assert!(check(header(digest.clone(), 6), &[b"mod"]).is_err());
        assert!(check(header(digest.clone(), 6), &[b"module", b"x"]).is_err());
        assert!(check(header(digest.clone(), 6), &[b"moduLe"]).is_err());
        assert!(check(header("short", 6), &[]).is_err());
        assert!(check(header(digest, limits::MODULE_BYTES_MAX + 1), &[]).is_err());
    }
}
