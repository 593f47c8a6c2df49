//! What operators ask: machines, the cluster, snapshots.
//!
//! What changes something is passed on to the leader like a command; what only asks is answered by
//! this node.

use bytes::Bytes;

use super::Door;
use super::caller::Caller;
use super::check;
use super::error::Error;
use super::join::{self, Added, Joining};
use super::turns::Turn;
use crate::api::grpc::Leader;
use crate::raft::ask::status::MachineStatus;
use crate::raft::{self, ClusterLimits, Fetched, Limits, LimitsChange, StatePart, TimeSet};
use crate::types::{ClusterId, LogIndex, MachineId, ModuleDigest, NodeId, TimeMs};

impl Door {
    /// Waits for a turn to receive a module, which lasts until the module has been dealt with.
    pub(in crate::api) async fn upload_turn(&self, caller: &Caller) -> Result<Turn, Error> {
        self.0.uploads.take(caller.deadline()).await
    }

    /// Checks a module, stages it on every node and has every voter compile it.
    pub(in crate::api) async fn upload_module(
        &self,
        caller: &Caller,
        module: Bytes,
    ) -> Result<ModuleDigest, Error> {
        let result = self.0.replica.upload_module(module.clone(), caller.deadline()).await;
        self.or_leader(result, caller, async |leader| leader.upload_module(module).await).await
    }

    /// Creates a machine on a module that was uploaded. What `change` leaves out has its default.
    pub(in crate::api) async fn create_machine(
        &self,
        caller: &Caller,
        name: &str,
        module: &[u8],
        change: LimitsChange,
    ) -> Result<MachineStatus, Error> {
        check::machine_name(name)?;
        check::limits(&change)?;
        let digest = check::digest(module)?;
        let asked = Limits::default().with(&change);
        let result = self.0.replica.create_machine(name, digest, asked, caller.deadline()).await;
        let forward = async |leader: Leader| leader.create_machine(name, digest, change).await;
        self.or_leader(result, caller, forward).await
    }

    /// Creates a machine whose state comes in part by part.
    pub(in crate::api) async fn begin_restore(
        &self,
        caller: &Caller,
        name: &str,
        module: &[u8],
        change: LimitsChange,
        schema: u32,
    ) -> Result<MachineStatus, Error> {
        check::machine_name(name)?;
        check::limits(&change)?;
        let digest = check::digest(module)?;
        let (asked, deadline) = (Limits::default().with(&change), caller.deadline());
        let result = self.0.replica.begin_restore(name, digest, asked, schema, deadline).await;
        let forward =
            async |leader: Leader| leader.begin_restore(name, digest, change, schema).await;
        self.or_leader(result, caller, forward).await
    }

    /// Hands a machine that is being restored part `number` of its state.
    pub(in crate::api) async fn import_state(
        &self,
        caller: &Caller,
        machine: MachineId,
        number: u64,
        bytes: Bytes,
        last: bool,
    ) -> Result<(), Error> {
        check::part(&bytes)?;
        let part = StatePart { machine, number, bytes: bytes.to_vec(), last };
        let result = self.0.replica.import_state(part, caller.deadline()).await;
        let forward =
            async |leader: Leader| leader.import_state(machine, number, bytes, last).await;
        self.or_leader(result, caller, forward).await
    }

    /// The machines, by name, as applied here.
    pub(in crate::api) fn machines(&self) -> Vec<MachineStatus> {
        self.0.replica.machines()
    }

    /// One of them.
    pub(in crate::api) fn machine(&self, name: &str) -> Result<MachineStatus, Error> {
        check::machine_name(name)?;
        Ok(self.0.replica.machine(name)?)
    }

    /// Changes what the guest of a machine may use; what `change` leaves out stays as it is.
    pub(in crate::api) async fn set_limits(
        &self,
        caller: &Caller,
        name: &str,
        change: LimitsChange,
    ) -> Result<MachineStatus, Error> {
        check::machine_name(name)?;
        check::limits(&change)?;
        let result = self.0.replica.set_limits(name, change, caller.deadline()).await;
        let forward = async |leader: Leader| leader.set_limits(name, change).await;
        self.or_leader(result, caller, forward).await
    }

    /// Removes a machine and its state; with an `id`, only if it is the machine that has it.
    pub(in crate::api) async fn remove_machine(
        &self,
        caller: &Caller,
        name: &str,
        id: Option<MachineId>,
    ) -> Result<(), Error> {
        check::machine_name(name)?;
        let result = self.0.replica.remove_machine(name, id, caller.deadline()).await;
        let forward = async |leader: Leader| leader.remove_machine(name, id).await;
        self.or_leader(result, caller, forward).await
    }

    /// Makes this node a cluster of one.
    pub(in crate::api) async fn cluster_init(&self) -> Result<ClusterId, Error> {
        Ok(self.0.replica.init().await?)
    }

    /// Adds the node that serves clients at `client_addr`. It becomes a voter once it has caught
    /// up, unless `learner`.
    pub(in crate::api) async fn cluster_add(
        &self,
        caller: &Caller,
        client_addr: &str,
        learner: bool,
    ) -> Result<Added, Error> {
        check::address(client_addr)?;
        let result = match join::check_leads(&self.status()) {
            Ok(()) => {
                let theirs = join::ask(client_addr).await?;
                let joining = join::examine(&self.status(), client_addr, &theirs)?;
                self.join(joining, learner, caller).await
            }
            Err(error) => Err(error),
        };
        let forward = async |leader: Leader| leader.cluster_add(client_addr, learner).await;
        self.or_leader(result, caller, forward).await
    }

    /// Makes a learner a voter, once it has caught up.
    pub(in crate::api) async fn cluster_promote(
        &self,
        caller: &Caller,
        node: NodeId,
    ) -> Result<(), Error> {
        let result = self.0.replica.promote(node, caller.deadline()).await;
        self.or_leader(result, caller, async |leader| leader.cluster_promote(node).await).await
    }

    /// Takes a node out of the cluster.
    pub(in crate::api) async fn cluster_remove(
        &self,
        caller: &Caller,
        node: NodeId,
    ) -> Result<(), Error> {
        let result = self.0.replica.remove(node, caller.deadline()).await;
        self.or_leader(result, caller, async |leader| leader.cluster_remove(node).await).await
    }

    /// Hands leadership to a voter, or to the most caught up one; returns the new leader.
    pub(in crate::api) async fn cluster_transfer(
        &self,
        caller: &Caller,
        to: Option<NodeId>,
    ) -> Result<NodeId, Error> {
        let result = self.0.replica.transfer(to, caller.deadline()).await;
        self.or_leader(result, caller, async |leader| leader.cluster_transfer(to).await).await
    }

    /// Sets the replicated time to the leader's wall clock, which `wall_ms` must confirm.
    pub(in crate::api) async fn cluster_set_time(
        &self,
        caller: &Caller,
        wall_ms: TimeMs,
    ) -> Result<TimeSet, Error> {
        let result = self.0.replica.set_time(wall_ms, caller.deadline()).await;
        self.or_leader(result, caller, async |leader| leader.cluster_set_time(wall_ms).await).await
    }

    /// Sets what every node keeps to; what it is then.
    pub(in crate::api) async fn cluster_set_limits(
        &self,
        caller: &Caller,
        limits: ClusterLimits,
    ) -> Result<ClusterLimits, Error> {
        check::cluster_limits(limits)?;
        let result = self.0.replica.set_cluster_limits(limits, caller.deadline()).await;
        self.or_leader(result, caller, async |leader| leader.cluster_set_limits(limits).await).await
    }

    /// Stops writes, and has every node take the snapshot that a build of engine profile `to`
    /// starts from; returns the index of it.
    pub(in crate::api) async fn cluster_seal(
        &self,
        caller: &Caller,
        to: &str,
        without_absent: bool,
    ) -> Result<LogIndex, Error> {
        check::profile(to)?;
        let result = self.0.replica.seal(to, without_absent, caller.deadline()).await;
        let forward = async |leader: Leader| leader.cluster_seal(to, without_absent).await;
        self.or_leader(result, caller, forward).await
    }

    /// Ends the engine change under way by the engine profile before it.
    pub(in crate::api) async fn cluster_unseal(&self, caller: &Caller) -> Result<(), Error> {
        let result = self.0.replica.unseal(caller.deadline()).await;
        self.or_leader(result, caller, async |leader| leader.cluster_unseal().await).await
    }

    /// Makes the cluster take a checkpoint, and waits until the leader's snapshot of it is on disk;
    /// returns its index.
    pub(in crate::api) async fn snapshot(&self, caller: &Caller) -> Result<LogIndex, Error> {
        let result = self.0.replica.checkpoint(caller.deadline()).await;
        self.or_leader(result, caller, async |leader| leader.snapshot().await).await
    }

    /// The newest snapshot here that the cluster agreed on, and a turn to read it.
    pub(in crate::api) async fn fetch_snapshot(
        &self,
        caller: &Caller,
    ) -> Result<(Turn, Fetched), Error> {
        let turn = self.0.fetches.take(caller.deadline()).await?;
        Ok((turn, self.0.replica.agreed_snapshot()?))
    }

    /// The result of this node's replica, or, where that says that another node leads, the
    /// leader's.
    async fn or_leader<T, F>(
        &self,
        result: Result<T, raft::Error>,
        caller: &Caller,
        forward: impl FnOnce(Leader) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let error = match result {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        match self.leader_address(&error, caller) {
            Some(address) => forward(self.0.forward.leader(address, caller.remaining())?).await,
            None => Err(error.into()),
        }
    }

    async fn join(
        &self,
        joining: Joining,
        learner: bool,
        caller: &Caller,
    ) -> Result<Added, raft::Error> {
        let (replica, deadline) = (&self.0.replica, caller.deadline());
        let node = match joining {
            Joining::Voter(node) => return Ok(Added { node, voter: true }),
            Joining::Learner(node) if learner => node,
            Joining::Learner(node) => {
                replica.promote(node, deadline).await?;
                node
            }
            Joining::New(node, member) => {
                replica.add(node, member, !learner, deadline).await?;
                node
            }
        };
        Ok(Added { node, voter: !learner })
    }
}
