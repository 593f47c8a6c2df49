//! A node for tests: real openraft on memory, the real handler behind a real gRPC server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::raft::AppendEntriesRequest;
use openraft::{Config, EntryPayload, Raft, SnapshotPolicy};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::memory::{MemoryLog, MemoryMachine};
use crate::api;
use crate::budget::Budget;
use crate::machine::Directory;
use crate::raft::clock::{Clock, System};
use crate::raft::duties::space::Space;
use crate::raft::network::{Local, Network, Parts, PeerHandler};
use crate::raft::store::convert::{log_id_to_raft, membership_to_raft, vote_to_raft};
use crate::raft::type_config::{Entry, TypeConfig};
use crate::storage::snapshot::SnapshotDir;
use crate::types::{ClusterId, Incarnation, LogId, Member, Membership, NodeId, Vote};

/// Waiting for longer than this is a failure, not a slow machine.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);

pub(super) const CLUSTER: ClusterId = ClusterId([7; 16]);

pub(super) const PROFILE: &str = "profile";

pub(super) fn incarnation(node: u64) -> Incarnation {
    Incarnation([u8::try_from(node).unwrap(); 16])
}

pub(super) fn member(node: u64, address: SocketAddr) -> Member {
    Member {
        peer_addr: address.to_string(),
        client_addr: String::new(),
        incarnation: incarnation(node).0,
    }
}

/// A node as its peers see it, which notes what it adopts.
pub(super) fn local(
    node: u64,
    cluster: Option<ClusterId>,
) -> (Arc<Local>, Arc<Mutex<Vec<ClusterId>>>) {
    let adopted = Arc::new(Mutex::new(Vec::new()));
    let note = adopted.clone();
    let adopt = Box::new(move |cluster| {
        note.lock().unwrap().push(cluster);
        Ok(())
    });
    (Local::new(NodeId(node), incarnation(node), PROFILE.into(), cluster, adopt), adopted)
}

pub(super) struct Node {
    pub(super) raft: Raft<TypeConfig, MemoryMachine>,
    pub(super) machine: MemoryMachine,
    pub(super) network: Network,
    pub(super) local: Arc<Local>,
    pub(super) adopted: Arc<Mutex<Vec<ClusterId>>>,
    pub(super) snapshots: SnapshotDir,
    pub(super) handler: Arc<PeerHandler<MemoryMachine>>,
    pub(super) address: SocketAddr,
    /// Ends with the node.
    _server: AbortOnDrop,
    _folder: TempDir,
}

pub(super) struct AbortOnDrop(pub(super) JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Node {
    pub(super) async fn start(node: u64, cluster: Option<ClusterId>) -> Self {
        Self::start_with(node, cluster, &BTreeMap::new(), Arc::default()).await
    }

    pub(super) async fn start_reaching(
        node: u64,
        cluster: Option<ClusterId>,
        reach: &BTreeMap<String, String>,
    ) -> Self {
        Self::start_with(node, cluster, reach, Arc::default()).await
    }

    /// Starts a node whose tables show this.
    pub(super) async fn start_showing(
        node: u64,
        cluster: Option<ClusterId>,
        directory: Arc<Directory>,
    ) -> Self {
        Self::start_with(node, cluster, &BTreeMap::new(), directory).await
    }

    async fn start_with(
        node: u64,
        cluster: Option<ClusterId>,
        reach: &BTreeMap<String, String>,
        directory: Arc<Directory>,
    ) -> Self {
        let (local, adopted) = local(node, cluster);
        let folder = tempfile::tempdir().unwrap();
        let snapshots = SnapshotDir::open(folder.path()).unwrap();
        let machine = MemoryMachine::default();
        let network = Network::new(local.clone(), reach);
        let log = MemoryLog::default();
        let raft =
            Raft::new(NodeId(node), config(), network.clone(), log, machine.clone()).await.unwrap();
        let space = Arc::new(Space::new(folder.path().to_owned(), 0).unwrap());
        let parts = Parts {
            raft: raft.clone(),
            local: local.clone(),
            network: network.clone(),
            trusted: Vec::new(),
            space,
            directory,
            clock: Arc::new(Clock::new(Box::<System>::default()).unwrap()),
        };
        let handler = PeerHandler::new(parts, snapshots.clone());
        let handler = Arc::new(handler);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let listener = api::Listener::new(listener, Budget::new(128 << 20), 64, "peers");
        let server = api::peer::serve(listener, handler.clone(), CancellationToken::new());
        let server = AbortOnDrop(tokio::spawn(async { server.await.unwrap() }));
        Self {
            raft,
            machine,
            network,
            local,
            adopted,
            snapshots,
            handler,
            address,
            _server: server,
            _folder: folder,
        }
    }

    /// Gives the node a log of one entry, by which these are the voters: node 1 leads them.
    pub(super) async fn knows(&self, members: &[(u64, SocketAddr)]) {
        let voters = members.iter().map(|(id, _)| NodeId(*id)).collect();
        let members = members.iter().map(|(id, address)| (NodeId(*id), member(*id, *address)));
        let membership = Membership { voters: vec![voters], members: members.collect() };
        let payload = EntryPayload::Membership(membership_to_raft(membership).unwrap());
        let log_id = log_id_to_raft(LogId { term: 1, node: NodeId(1), index: 0 });
        let vote = vote_to_raft(Vote { term: 1, node: NodeId(1), committed: true });
        let request = AppendEntriesRequest {
            vote,
            prev_log_id: None,
            entries: vec![Entry { log_id, payload }],
            leader_commit: Some(log_id),
        };
        let appended = self.raft.append_entries(request).await.unwrap();
        assert!(appended.is_success(), "{appended:?}");
        self.wait_applied(0).await;
    }

    /// Waits until this node has applied the log up to `index`.
    pub(super) async fn wait_applied(&self, index: u64) {
        let wait = self.raft.wait(Some(DEADLINE));
        wait.applied_index_at_least(Some(index), "the log arrives").await.unwrap();
    }
}

fn config() -> Arc<Config> {
    let config = Config {
        heartbeat_interval: 150,
        election_timeout_min: 900,
        election_timeout_max: 1800,
        snapshot_policy: SnapshotPolicy::Never,
        enable_pre_vote: Some(true),
        ..Config::default()
    };
    Arc::new(config.validate().unwrap())
}

/// Waits for something that other tasks bring about.
pub(super) async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(DEADLINE, async {
        while !is_so().await {
            tokio::task::yield_now().await;
        }
    });
    waited.await.expect("it comes about in time");
}

/// A way to a node that can be cut, every connection at once, and mended.
pub(super) struct Proxy {
    pub(super) address: SocketAddr,
    target: SocketAddr,
    running: Option<AbortOnDrop>,
}

impl Proxy {
    pub(super) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let running = Some(AbortOnDrop(tokio::spawn(forward(listener, target))));
        Self { address, target, running }
    }

    pub(super) fn cut(&mut self) {
        self.running = None;
    }

    pub(super) async fn mend(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.running = Some(AbortOnDrop(tokio::spawn(forward(listener, self.target))));
    }
}

async fn forward(listener: TcpListener, target: SocketAddr) {
    let mut connections = JoinSet::new();
    loop {
        let (mut near, _) = listener.accept().await.unwrap();
        connections.spawn(async move {
            let mut far = TcpStream::connect(target).await?;
            tokio::io::copy_bidirectional(&mut near, &mut far).await
        });
    }
}
