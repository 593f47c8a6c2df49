//! Passing requests on to the leader: one hop, on connections that are kept. Nodes speak gRPC to
//! each other as clients do.
//!
//! It does not look for the leader and does not try again. The replica says who leads; when the
//! leader can't be reached, the error goes back to the client, which knows what it wants.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use lockstep_client::{Client, Consistency, Options, Stream};
use lockstep_proto::v1;

use super::convert;
use crate::api::door::join::{Added, Newcomer};
use crate::api::door::{Answered, Error, Executed};
use crate::raft::ask::status::MachineStatus;
use crate::raft::{ClusterLimits, LimitsChange, TimeSet};
use crate::types::{LogIndex, MachineId, ModuleDigest, NodeId, TimeMs};

/// The connections to the node that was the leader when last asked.
#[derive(Default)]
pub(in crate::api) struct Forward {
    known: Mutex<Option<Known>>,
}

#[derive(Clone)]
struct Known {
    address: String,
    client: Client,
    commands: Stream,
}

/// The leader, asked on behalf of a client.
pub(in crate::api) struct Leader(Client);

impl Forward {
    /// The leader at an address, whose calls take `timeout` at most.
    pub(in crate::api) fn leader(&self, address: &str, timeout: Duration) -> Result<Leader, Error> {
        Ok(Leader(self.known(address)?.client.with_timeout(timeout)))
    }

    /// Passes a command on. All clients of this node share one stream: commands enter the leader's
    /// log in the order in which the returned futures are first polled.
    pub(in crate::api) async fn execute(
        &self,
        address: &str,
        machine: &str,
        command: Bytes,
        timeout: Duration,
    ) -> Result<Executed, Error> {
        let commands = self.known(address)?.commands;
        let executed = commands.execute_within(machine, command, timeout).await?;
        let lockstep_client::Executed { reply, rejected, index } = executed;
        Ok(Executed { reply, rejected, index })
    }

    /// Passes a linearizable query on.
    pub(in crate::api) async fn query(
        &self,
        address: &str,
        machine: &str,
        query: Bytes,
        timeout: Duration,
    ) -> Result<Answered, Error> {
        let Leader(client) = self.leader(address, timeout)?;
        let answered = client.query(machine, query, Consistency::Linearizable).await?;
        let lockstep_client::Answered { reply, rejected, applied_index } = answered;
        Ok(Answered { reply, rejected, applied: applied_index })
    }

    fn known(&self, address: &str) -> Result<Known, Error> {
        // A panic while it was held leaves a whole value behind: it is only ever replaced.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(leader) = known.as_ref().filter(|leader| leader.address == address) {
            return Ok(leader.clone());
        }
        let client = connect(address)?;
        let commands = client.stream();
        let leader = Known { address: address.to_owned(), client, commands };
        *known = Some(leader.clone());
        Ok(leader)
    }
}

/// Each asks what the function of the door that has its name asks.
impl Leader {
    pub(in crate::api) async fn upload_module(self, module: Bytes) -> Result<ModuleDigest, Error> {
        convert::module_digest(&self.0.upload_module(module).await?)
    }

    pub(in crate::api) async fn create_machine(
        self,
        name: &str,
        module: ModuleDigest,
        change: LimitsChange,
    ) -> Result<MachineStatus, Error> {
        let digest = Bytes::copy_from_slice(&module.0);
        let limits = convert::wire_limits_change(&change);
        convert::machine_status(self.0.create_machine(name, digest, limits).await?)
    }

    pub(in crate::api) async fn begin_restore(
        self,
        name: &str,
        module: ModuleDigest,
        change: LimitsChange,
        schema: u32,
    ) -> Result<MachineStatus, Error> {
        let message = v1::BeginRestoreRequest {
            name: name.to_owned(),
            module_digest: Bytes::copy_from_slice(&module.0),
            limits: Some(convert::wire_limits_change(&change)),
            schema_version: schema,
        };
        convert::machine_status(self.0.begin_restore(message).await?)
    }

    pub(in crate::api) async fn import_state(
        self,
        machine: MachineId,
        number: u64,
        bytes: Bytes,
        last: bool,
    ) -> Result<(), Error> {
        let message = v1::ImportStateRequest { machine_id: machine.0, number, bytes, last };
        Ok(self.0.import_state(message).await?)
    }

    pub(in crate::api) async fn set_limits(
        self,
        name: &str,
        change: LimitsChange,
    ) -> Result<MachineStatus, Error> {
        let limits = convert::wire_limits_change(&change);
        convert::machine_status(self.0.set_limits(name, limits).await?)
    }

    pub(in crate::api) async fn remove_machine(
        self,
        name: &str,
        id: Option<MachineId>,
    ) -> Result<(), Error> {
        Ok(self.0.remove_machine_with(name, id.map(|id| id.0)).await?)
    }

    pub(in crate::api) async fn cluster_add(
        self,
        client_addr: &str,
        learner: bool,
    ) -> Result<Added, Error> {
        let v1::ClusterAddReply { node_id, voter } =
            self.0.cluster_add(client_addr, learner).await?;
        Ok(Added { node: NodeId(node_id), voter })
    }

    pub(in crate::api) async fn cluster_promote(self, node: NodeId) -> Result<(), Error> {
        Ok(self.0.cluster_promote(node.0).await?)
    }

    pub(in crate::api) async fn cluster_remove(self, node: NodeId) -> Result<(), Error> {
        Ok(self.0.cluster_remove(node.0).await?)
    }

    pub(in crate::api) async fn cluster_transfer(
        self,
        to: Option<NodeId>,
    ) -> Result<NodeId, Error> {
        Ok(NodeId(self.0.cluster_transfer(to.map(|node| node.0)).await?))
    }

    pub(in crate::api) async fn cluster_set_time(self, wall_ms: TimeMs) -> Result<TimeSet, Error> {
        let v1::ClusterSetTimeReply { before_ms, now_ms, stands_still_ms } =
            self.0.cluster_set_time(wall_ms).await?;
        Ok(TimeSet { before_ms, now_ms, stands_still_ms })
    }

    pub(in crate::api) async fn cluster_set_limits(
        self,
        limits: ClusterLimits,
    ) -> Result<ClusterLimits, Error> {
        let limits = convert::wire_cluster_limits(limits);
        Ok(convert::cluster_limits(Some(self.0.cluster_set_limits(limits).await?)))
    }

    pub(in crate::api) async fn cluster_seal(
        self,
        to: &str,
        without_absent: bool,
    ) -> Result<LogIndex, Error> {
        Ok(self.0.cluster_seal(to, without_absent).await?)
    }

    pub(in crate::api) async fn cluster_unseal(self) -> Result<(), Error> {
        Ok(self.0.cluster_unseal().await?)
    }

    pub(in crate::api) async fn snapshot(self) -> Result<LogIndex, Error> {
        Ok(self.0.snapshot().await?)
    }
}

/// Asks the node that serves clients at `address` who it is.
pub(in crate::api) async fn ask(address: &str, timeout: Duration) -> Result<Newcomer, Error> {
    Ok(convert::newcomer(connect(address)?.with_timeout(timeout).status().await?))
}

/// A client that asks one node, once, and marks its requests as passed on.
fn connect(address: &str) -> Result<Client, lockstep_client::Error> {
    Client::with_options([address], Options { forwarder: true, ..Options::default() })
}
