//! The `Admin` service: machines, the cluster, snapshots.

use std::pin::Pin;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use lockstep_proto::v1;
use lockstep_proto::v1::admin_server::Admin;
use lockstep_proto::v1::fetch_snapshot_reply;
use lockstep_proto::v1::upload_module_request::Part;
use tonic::{Request, Response, Status, Streaming};

use super::edge::operator;
use super::error::of_request;
use super::{Services, convert};
use crate::api::door::{Error, Upload};
use crate::raft;
use crate::types::{MachineId, NodeId};

type Reply<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Admin for Services {
    type FetchSnapshotStream =
        Pin<Box<dyn Stream<Item = Result<v1::FetchSnapshotReply, Status>> + Send>>;

    async fn upload_module(
        &self,
        request: Request<Streaming<v1::UploadModuleRequest>>,
    ) -> Reply<v1::UploadModuleReply> {
        let caller = operator(&request);
        let _turn = self.door.upload_turn(&caller).await?;
        let received = receive_module(request.into_inner());
        let received = tokio::time::timeout_at(caller.deadline().into(), received).await;
        let late = |_| Error::from(raft::Error::DeadlineBeforeProposal);
        let module = received.map_err(late)??;
        let digest = self.door.upload_module(&caller, module).await?;
        let digest = Bytes::copy_from_slice(&digest.0);
        Ok(Response::new(v1::UploadModuleReply { digest }))
    }

    async fn create_machine(
        &self,
        request: Request<v1::CreateMachineRequest>,
    ) -> Reply<v1::CreateMachineReply> {
        let caller = operator(&request);
        let v1::CreateMachineRequest { name, module_digest, limits } = request.into_inner();
        let change = convert::limits_change(limits);
        let machine = self.door.create_machine(&caller, &name, &module_digest, change).await?;
        let machine = Some(convert::machine(machine));
        Ok(Response::new(v1::CreateMachineReply { machine }))
    }

    async fn begin_restore(
        &self,
        request: Request<v1::BeginRestoreRequest>,
    ) -> Reply<v1::BeginRestoreReply> {
        let caller = operator(&request);
        let v1::BeginRestoreRequest { name, module_digest, limits, schema_version } =
            request.into_inner();
        let change = convert::limits_change(limits);
        let begun = self.door.begin_restore(&caller, &name, &module_digest, change, schema_version);
        let machine = Some(convert::machine(begun.await?));
        Ok(Response::new(v1::BeginRestoreReply { machine }))
    }

    async fn import_state(
        &self,
        request: Request<v1::ImportStateRequest>,
    ) -> Reply<v1::ImportStateReply> {
        let caller = operator(&request);
        let v1::ImportStateRequest { machine_id, number, bytes, last } = request.into_inner();
        self.door.import_state(&caller, MachineId(machine_id), number, bytes, last).await?;
        Ok(Response::new(v1::ImportStateReply {}))
    }

    async fn list_machines(
        &self,
        _: Request<v1::ListMachinesRequest>,
    ) -> Reply<v1::ListMachinesReply> {
        let machines = self.door.machines().into_iter().map(convert::machine).collect();
        Ok(Response::new(v1::ListMachinesReply { machines }))
    }

    async fn describe_machine(
        &self,
        request: Request<v1::DescribeMachineRequest>,
    ) -> Reply<v1::DescribeMachineReply> {
        let machine = self.door.machine(&request.into_inner().name)?;
        let machine = Some(convert::machine(machine));
        Ok(Response::new(v1::DescribeMachineReply { machine }))
    }

    async fn set_limits(
        &self,
        request: Request<v1::SetLimitsRequest>,
    ) -> Reply<v1::SetLimitsReply> {
        let caller = operator(&request);
        let v1::SetLimitsRequest { name, limits } = request.into_inner();
        let change = convert::limits_change(limits);
        let machine = self.door.set_limits(&caller, &name, change).await?;
        let machine = Some(convert::machine(machine));
        Ok(Response::new(v1::SetLimitsReply { machine }))
    }

    async fn remove_machine(
        &self,
        request: Request<v1::RemoveMachineRequest>,
    ) -> Reply<v1::RemoveMachineReply> {
        let caller = operator(&request);
        let v1::RemoveMachineRequest { name, id } = request.into_inner();
        self.door.remove_machine(&caller, &name, id.map(MachineId)).await?;
        Ok(Response::new(v1::RemoveMachineReply {}))
    }

    async fn cluster_init(
        &self,
        _: Request<v1::ClusterInitRequest>,
    ) -> Reply<v1::ClusterInitReply> {
        let cluster = self.door.cluster_init().await?;
        let cluster_id = Bytes::copy_from_slice(&cluster.0);
        Ok(Response::new(v1::ClusterInitReply { cluster_id }))
    }

    async fn cluster_add(
        &self,
        request: Request<v1::ClusterAddRequest>,
    ) -> Reply<v1::ClusterAddReply> {
        let caller = operator(&request);
        let v1::ClusterAddRequest { client_addr, learner } = request.into_inner();
        let added = self.door.cluster_add(&caller, &client_addr, learner).await?;
        let (node_id, voter) = (added.node.0, added.voter);
        Ok(Response::new(v1::ClusterAddReply { node_id, voter }))
    }

    async fn cluster_promote(
        &self,
        request: Request<v1::ClusterPromoteRequest>,
    ) -> Reply<v1::ClusterPromoteReply> {
        let caller = operator(&request);
        self.door.cluster_promote(&caller, NodeId(request.into_inner().node_id)).await?;
        Ok(Response::new(v1::ClusterPromoteReply {}))
    }

    async fn cluster_remove(
        &self,
        request: Request<v1::ClusterRemoveRequest>,
    ) -> Reply<v1::ClusterRemoveReply> {
        let caller = operator(&request);
        self.door.cluster_remove(&caller, NodeId(request.into_inner().node_id)).await?;
        Ok(Response::new(v1::ClusterRemoveReply {}))
    }

    async fn cluster_transfer(
        &self,
        request: Request<v1::ClusterTransferRequest>,
    ) -> Reply<v1::ClusterTransferReply> {
        let caller = operator(&request);
        let to = Some(request.into_inner().node_id).filter(|id| *id != 0);
        let leader = self.door.cluster_transfer(&caller, to.map(NodeId)).await?;
        Ok(Response::new(v1::ClusterTransferReply { node_id: leader.0 }))
    }

    async fn cluster_set_time(
        &self,
        request: Request<v1::ClusterSetTimeRequest>,
    ) -> Reply<v1::ClusterSetTimeReply> {
        let caller = operator(&request);
        let set = self.door.cluster_set_time(&caller, request.into_inner().wall_ms).await?;
        let raft::TimeSet { before_ms, now_ms, stands_still_ms } = set;
        Ok(Response::new(v1::ClusterSetTimeReply { before_ms, now_ms, stands_still_ms }))
    }

    async fn cluster_set_limits(
        &self,
        request: Request<v1::ClusterSetLimitsRequest>,
    ) -> Reply<v1::ClusterSetLimitsReply> {
        let caller = operator(&request);
        let limits = convert::cluster_limits(request.into_inner().limits);
        let limits = self.door.cluster_set_limits(&caller, limits).await?;
        let limits = convert::wire_cluster_limits(limits);
        Ok(Response::new(v1::ClusterSetLimitsReply { limits: Some(limits) }))
    }

    async fn cluster_seal(
        &self,
        request: Request<v1::ClusterSealRequest>,
    ) -> Reply<v1::ClusterSealReply> {
        let caller = operator(&request);
        let v1::ClusterSealRequest { to, without_absent } = request.into_inner();
        let index = self.door.cluster_seal(&caller, &to, without_absent).await?;
        Ok(Response::new(v1::ClusterSealReply { index }))
    }

    async fn cluster_unseal(
        &self,
        request: Request<v1::ClusterUnsealRequest>,
    ) -> Reply<v1::ClusterUnsealReply> {
        self.door.cluster_unseal(&operator(&request)).await?;
        Ok(Response::new(v1::ClusterUnsealReply {}))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Reply<v1::StatusReply> {
        Ok(Response::new(convert::status(self.door.status())))
    }

    async fn snapshot(&self, request: Request<v1::SnapshotRequest>) -> Reply<v1::SnapshotReply> {
        let index = self.door.snapshot(&operator(&request)).await?;
        Ok(Response::new(v1::SnapshotReply { index }))
    }

    async fn fetch_snapshot(
        &self,
        request: Request<v1::FetchSnapshotRequest>,
    ) -> Reply<Self::FetchSnapshotStream> {
        use fetch_snapshot_reply::{Chunk, Part};
        let (turn, fetched) = self.door.fetch_snapshot(&operator(&request)).await?;
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

/// Receives a module whole and checks it against the header.
async fn receive_module(mut parts: Streaming<v1::UploadModuleRequest>) -> Result<Bytes, Status> {
    let first = parts.message().await.map_err(of_request)?;
    let Some(Part::Header(header)) = first.and_then(|message| message.part) else {
        return Err(Error::invalid("the first message of an upload must be its header").into());
    };
    let mut upload = Upload::begin(&header.digest, header.length)?;
    while let Some(message) = parts.message().await.map_err(of_request)? {
        match message.part {
            Some(Part::Chunk(chunk)) => upload.append(&chunk)?,
            _ => return Err(Error::invalid("an upload has one header, then chunks").into()),
        }
    }
    Ok(upload.finish()?)
}
