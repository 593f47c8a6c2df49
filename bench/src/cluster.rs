//! A cluster under test, whichever system it runs.
//!
//! All branching between systems that start, lead and stop differently is here; `etcd` and
//! `lockstep` hold what each of them needs.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use futures::future::try_join_all;
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use crate::args::{Args, Kind, System};
use crate::machine::Usage;
use crate::node::Node;
use crate::{etcd, lockstep};

/// How long a cluster may take to form or to elect a leader.
pub(crate) const READY_WAIT: Duration = Duration::from_secs(120);
/// Pause between two looks at a cluster that is not ready.
const POLL_PAUSE: Duration = Duration::from_millis(20);

/// Running nodes of one system, all on this machine.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) system: System,
    nodes: Vec<Node>,
}

impl Cluster {
    /// Starts `size` nodes with empty data folders below `dir`, and forms a cluster that serves.
    pub(crate) async fn start(
        args: &Args,
        system: System,
        size: usize,
        dir: &Path,
    ) -> Result<Self> {
        let specs = match system.kind() {
            Kind::Lockstep => lockstep::specs(args, system, size, dir)?,
            Kind::Etcd => etcd::specs(args, size, dir).await?,
        };
        let nodes = specs.into_iter().map(Node::start).collect::<Result<_>>()?;
        let mut cluster = Self { system, nodes };
        if system.is_lockstep() {
            lockstep::form(args, &mut cluster).await?;
        }
        cluster.leader().await?;
        Ok(cluster)
    }

    /// Place of the leader among the nodes; waits for one to be elected.
    pub(crate) async fn leader(&mut self) -> Result<usize> {
        let deadline = Instant::now() + READY_WAIT;
        loop {
            let found = match self.system.kind() {
                Kind::Lockstep => lockstep::leader(&self.addresses()).await,
                Kind::Etcd => etcd::leader(&self.addresses()).await,
            };
            match found {
                Ok(Some(place)) => return Ok(place),
                Ok(None) if Instant::now() > deadline => bail!("no leader"),
                Err(error) if Instant::now() > deadline => return Err(error),
                Ok(None) | Err(_) => self.pause().await?,
            }
        }
    }

    /// The highest term, which every election raises.
    pub(crate) async fn term(&self) -> Result<u64> {
        match self.system.kind() {
            Kind::Lockstep => lockstep::term(&self.addresses()).await,
            Kind::Etcd => etcd::term(&self.addresses()).await,
        }
    }

    /// Sends `signal` to one node without waiting.
    pub(crate) fn signal(&self, place: usize, signal: Signal) -> Result<()> {
        self.nodes[place].signal(signal)
    }

    /// Waits for the end of a node that was signalled to end, and starts it again.
    pub(crate) async fn revive(&mut self, place: usize) -> Result<()> {
        self.nodes[place].wait().await?;
        self.nodes[place].restart()
    }

    /// A short wait inside a polling loop; fails when a node has ended by itself.
    pub(crate) async fn pause(&mut self) -> Result<()> {
        self.nodes.iter_mut().try_for_each(Node::check_alive)?;
        sleep(POLL_PAUSE).await;
        Ok(())
    }

    /// Where clients reach each node.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(Node::client_addr).collect()
    }

    /// CPU time and memory of each node.
    pub(crate) fn usage(&self) -> Result<Vec<Usage>> {
        self.nodes.iter().map(Node::usage).collect()
    }

    /// Bytes of each node's data folder.
    pub(crate) fn disk_bytes(&self) -> Result<Vec<u64>> {
        self.nodes.iter().map(Node::disk_bytes).collect()
    }

    /// Sends `signal` to all nodes at once and waits until they are gone.
    pub(crate) async fn stop(&mut self, signal: Signal) -> Result<()> {
        self.nodes.iter().try_for_each(|node| node.signal(signal))?;
        try_join_all(self.nodes.iter_mut().map(Node::wait)).await?;
        Ok(())
    }

    /// Starts all stopped nodes; doesn't wait until they serve.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.nodes.iter_mut().try_for_each(Node::restart)
    }
}
