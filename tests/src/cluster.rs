//! Nodes that belong together: how they are set up, found, restarted, and shown on failure.
//!
//! A cluster lives in one temporary folder on the real disk. When its test fails, the seed, the
//! command that replays it and the logs are printed, and the folder is kept until the next run;
//! `LOCKSTEP_KEEP` keeps it always. Few clusters run at once, however many threads the tests have.

use std::fmt::Write as _;
use std::time::Duration;

use fastrand::Rng;
use lockstep_client::Client;
use lockstep_proto::v1::StatusReply;
use lockstep_proto::v1::status_reply::Role;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::clock::Clock;
use crate::disk::{Cut, Disk};
use crate::faults::Faults;
use crate::folder::Folder;
use crate::link::{Flow, Link};
use crate::node::{Node, summary};
use crate::wait::until;
use crate::{kv, ports, program, seed};

/// Clusters that run at once, so that elections don't fail for want of a processor.
static TURNS: Semaphore = Semaphore::const_new(2);

/// How long a healthy cluster may take for anything that is not about bulk data.
pub const SOON: Duration = Duration::from_secs(30);

/// What a cluster is like, before it is started.
#[derive(Clone, Default)]
pub struct Plan {
    nodes: u64,
    spares: u64,
    config: String,
    linked: bool,
    faulty: bool,
    clocks: bool,
    seed: Option<u64>,
    disk_bytes: Option<u64>,
    flags: Vec<String>,
}

impl Plan {
    /// So many nodes, with the settings that an operator would find.
    pub fn new(nodes: u64) -> Self {
        Self { nodes, ..Self::default() }
    }

    /// With these lines in every configuration file.
    pub fn config(mut self, lines: &str) -> Self {
        writeln!(self.config, "{lines}").expect("text grows");
        self
    }

    /// With links between the nodes that can be cut.
    pub fn linked(mut self) -> Self {
        self.linked = true;
        self
    }

    /// With disks that can be given faults ([`Node::faults`]).
    pub fn faulty(mut self) -> Self {
        self.faulty = true;
        self
    }

    /// With wall clocks that can be set wrong ([`Node::clock`]).
    pub fn clocks(mut self) -> Self {
        self.clocks = true;
        self
    }

    /// With so many more nodes that are prepared, and not started.
    pub fn spares(mut self, nodes: u64) -> Self {
        self.spares = nodes;
        self
    }

    /// With this seed, whatever the environment says.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// With a disk of its own for every node, of so many bytes. Ask
    /// [`available`](crate::disk::available) before.
    pub fn disks(mut self, bytes: u64) -> Self {
        self.disk_bytes = Some(bytes);
        self
    }

    /// With this flag on the command line of every node.
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// Starts the nodes; none of them is in a cluster.
    pub async fn start_bare(self) -> Cluster {
        let mut cluster = Cluster::new(self).await;
        let (nodes, spares) = (cluster.plan.nodes, cluster.plan.spares);
        for _ in 0..nodes + spares {
            cluster.prepare_another().await;
        }
        cluster.start_those(|id| id <= nodes).await;
        cluster
    }

    /// Starts the nodes, makes them one cluster of voters, and creates the machine `kv`.
    pub async fn start(self) -> Cluster {
        let cluster = self.start_bare().await;
        let first = cluster.node(1).client_addr.clone();
        program::run(["cluster", "init", "--endpoint", &first]).await.ok();
        for id in 2..=cluster.plan.nodes {
            cluster.add(id, &[]).await.ok();
        }
        cluster.leader().await;
        let guest = program::guest("guest-kv");
        cluster.create_machine(kv::MACHINE, &guest).await.ok();
        cluster
    }
}

/// The nodes of one test.
pub struct Cluster {
    /// Every node that was ever started, in the order of their ids from 1.
    pub nodes: Vec<Node>,
    /// For every random choice of the test.
    pub random: Rng,
    plan: Plan,
    links: Vec<Link>,
    seed: u64,
    /// The disks of the nodes, in their order; before the folder, since they are mounted in it.
    disks: Vec<Disk>,
    directory: Option<Folder>,
    _turn: SemaphorePermit<'static>,
}

impl Cluster {
    async fn new(plan: Plan) -> Self {
        let turn = TURNS.acquire().await.expect("it is never closed");
        let seed = plan.seed.unwrap_or_else(seed::choose);
        Self {
            nodes: Vec::new(),
            random: Rng::with_seed(seed),
            plan,
            links: Vec::new(),
            seed,
            disks: Vec::new(),
            directory: Some(Folder::new()),
            _turn: turn,
        }
    }

    /// The seed of its random choices.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The folder of the test.
    pub fn directory(&self) -> &std::path::Path {
        self.directory.as_ref().expect("it is there until the end").path()
    }

    /// Prepares one more node, the next id, without starting it.
    pub async fn prepare_another(&mut self) -> u64 {
        let id = u64::try_from(self.nodes.len()).expect("few nodes") + 1;
        let mut node = Node::new(id, self.directory(), ports::address(), ports::address());
        node.flags.clone_from(&self.plan.flags);
        node.faults = self.plan.faulty.then(|| Faults::prepare(self.directory(), id));
        node.clock = self.plan.clocks.then(|| Clock::prepare(self.directory(), id));
        if let Some(bytes) = self.plan.disk_bytes {
            let disk = Disk::create(self.directory(), &format!("disk-{id}"), bytes);
            let disk = disk.unwrap_or_else(|reason| panic!("{reason}"));
            node.data_dir = disk.folder().join("data");
            self.disks.push(disk);
        }
        if self.plan.linked {
            for other in &self.nodes {
                let there = Link::open(other.id, id, node.peer_addr.clone()).await;
                let back = Link::open(id, other.id, other.peer_addr.clone()).await;
                self.links.extend([there, back]);
            }
        }
        self.nodes.push(node);
        self.nodes.iter().for_each(|node| node.configure(&self.config_of(node.id)));
        id
    }

    /// Starts one more node, the next id, in no cluster.
    ///
    /// # Panics
    /// Where there are links: the nodes that run do not know the one to the new node.
    pub async fn start_another(&mut self) -> u64 {
        assert!(!self.plan.linked, "plan all nodes of a cluster with links");
        let id = self.prepare_another().await;
        self.node_mut(id).start().await;
        id
    }

    /// The configuration file of a node: the lines of the plan, and the ways to the others.
    fn config_of(&self, id: u64) -> String {
        let mut text = format!("{}\n[peer_reach]\n", self.plan.config);
        for link in self.links.iter().filter(|link| link.from == id) {
            writeln!(text, "{} = \"{}\"", link.to, link.address()).expect("text grows");
        }
        text
    }

    /// Gives every node other lines in its configuration file, from its next start on.
    pub fn reconfigure(&mut self, lines: &str) {
        self.plan.config = format!("{lines}\n");
        self.nodes.iter().for_each(|node| node.configure(&self.config_of(node.id)));
    }

    /// A node by its id.
    ///
    /// # Panics
    /// When there is none.
    pub fn node(&self, id: u64) -> &Node {
        self.nodes.iter().find(|node| node.id == id).expect("there is such a node")
    }

    /// A node by its id, to be changed.
    ///
    /// # Panics
    /// When there is none.
    pub fn node_mut(&mut self, id: u64) -> &mut Node {
        self.nodes.iter_mut().find(|node| node.id == id).expect("there is such a node")
    }

    /// Every id, in order.
    pub fn ids(&self) -> Vec<u64> {
        self.nodes.iter().map(|node| node.id).collect()
    }

    /// Every client address, as `--endpoint` takes them.
    pub fn endpoints(&self) -> String {
        let all: Vec<&str> = self.nodes.iter().map(|node| node.client_addr.as_str()).collect();
        all.join(",")
    }

    /// A client that knows every node.
    ///
    /// # Panics
    /// When an address is none.
    pub fn client(&self) -> Client {
        let endpoints = self.nodes.iter().map(|node| node.client_addr.clone());
        Client::connect(endpoints).expect("addresses are endpoints")
    }

    /// Calls `lockstep cluster add` for a node that runs, at the cluster that node 1 is in or was.
    pub async fn add(&self, id: u64, flags: &[&str]) -> program::Ran {
        let there = self.node(id).client_addr.clone();
        let others: Vec<&str> = self
            .nodes
            .iter()
            .filter(|node| node.id != id)
            .map(|node| node.client_addr.as_str())
            .collect();
        let endpoints = others.join(",");
        let call = ["cluster", "add", &there, "--endpoint", &endpoints];
        program::run(call.iter().chain(flags)).await
    }

    /// Calls `lockstep machine create`.
    pub async fn create_machine(&self, name: &str, file: &std::path::Path) -> program::Ran {
        let (file, endpoints) = (file.display().to_string(), self.endpoints());
        program::run(["machine", "create", name, &file, "--endpoint", &endpoints]).await
    }

    /// Calls the command line with `--endpoint` of all nodes.
    pub async fn run(&self, arguments: &[&str]) -> program::Ran {
        let endpoints = self.endpoints();
        program::run(arguments.iter().copied().chain(["--endpoint", &endpoints])).await
    }

    /// Calls `lockstep kv` with the words of a line: `kv("SET k v")`.
    pub async fn kv(&self, line: &str) -> program::Ran {
        let endpoints = self.endpoints();
        let words = line.split(' ');
        program::run(["kv", "--endpoint", &endpoints].into_iter().chain(words)).await
    }

    /// Cuts or heals every link that `chosen` picks by its ends.
    pub fn set_cut(&self, cut: bool, chosen: impl Fn(u64, u64) -> bool) {
        let flow = if cut { Flow::Cut } else { Flow::Open };
        let links = self.links.iter().filter(|link| chosen(link.from, link.to));
        links.for_each(|link| link.set(flow));
    }

    /// Cuts the way of everything that one node sends to another; what that one sends arrives, on
    /// connections that are open.
    pub fn cut_one_way(&self, from: u64, to: u64) {
        for link in &self.links {
            if (link.from, link.to) == (from, to) {
                link.set(Flow::AnswersOnly);
            } else if (link.from, link.to) == (to, from) {
                link.set(Flow::CallsOnly);
            }
        }
    }

    /// Cuts one node off from all others, both ways.
    pub fn isolate(&self, id: u64) {
        self.set_cut(true, |from, to| from == id || to == id);
    }

    /// Heals every link.
    pub fn heal(&self) {
        self.set_cut(false, |_, _| true);
    }

    /// Waits for a leader that a majority of the nodes follows, itself among them.
    ///
    /// # Panics
    /// When there is none soon.
    pub async fn leader(&self) -> u64 {
        self.leader_that(|_| true).await
    }

    /// Waits for such a leader that is none of `not`.
    ///
    /// # Panics
    /// When there is none soon.
    pub async fn leader_other_than(&self, not: u64) -> u64 {
        self.leader_that(|id| id != not).await
    }

    async fn leader_that(&self, fits: impl Fn(u64) -> bool) -> u64 {
        until("a leader", SOON, async || {
            let statuses = self.statuses().await;
            let said = || statuses.iter().map(summary).collect::<Vec<_>>().join("\n    ");
            let leads = |status: &&StatusReply| {
                let backers = statuses
                    .iter()
                    .filter(|other| other.leader_id == status.node_id && other.term == status.term);
                let voters = status.nodes.iter().filter(|node| node.voter).count();
                status.role() == Role::Leader
                    && fits(status.node_id)
                    && 2 * backers.count() > voters
            };
            statuses.iter().find(leads).map(|status| status.node_id).ok_or_else(said)
        })
        .await
    }

    /// What the nodes that answer say of themselves.
    pub async fn statuses(&self) -> Vec<StatusReply> {
        let all = futures::future::join_all(self.nodes.iter().map(Node::status)).await;
        all.into_iter().flatten().collect()
    }

    /// Waits until the nodes named have applied everything that any of them holds committed.
    ///
    /// # Panics
    /// When they have not within `limit`.
    pub async fn level(&self, ids: &[u64], limit: Duration) {
        until("the nodes to be level", limit, async || {
            let mut statuses = Vec::new();
            for id in ids {
                statuses.push(self.node(*id).status().await?);
            }
            let committed = statuses.iter().map(|status| status.committed_index).max();
            let behind = statuses.iter().find(|status| Some(status.applied_index) != committed);
            behind.map_or(Ok(()), |status| Err(summary(status)))
        })
        .await;
    }

    /// Kills every node at once, then starts all of them again.
    pub async fn crash_all(&mut self) {
        for node in &mut self.nodes {
            node.kill().await;
        }
        self.start_all().await;
    }

    /// Cuts the power of these nodes' disks, ends the nodes, and mounts the disks again. A node
    /// may have ended by itself before; one that runs is frozen first, since no process outlives a
    /// power cut: Linux may report a sync as done that the cut overtook (measured without
    /// Lockstep: once in 40 cuts), and a node that ran on would acknowledge it.
    ///
    /// # Panics
    /// When there are no disks, or they cannot be mounted again.
    pub async fn cut_power(&mut self, ids: &[u64], cut: Cut) {
        for id in ids {
            if self.node_mut(*id).runs() {
                self.node(*id).pause().await;
            }
        }
        for id in ids {
            self.disk(*id).cut_power(cut);
        }
        for id in ids {
            self.node_mut(*id).end();
            let disk = self.disk_mut(*id);
            disk.unmount();
            disk.mount();
        }
    }

    /// The disk of a node.
    ///
    /// # Panics
    /// When there is none.
    pub fn disk(&self, id: u64) -> &Disk {
        self.disks.get(place_of(id)).expect("the plan has disks")
    }

    fn disk_mut(&mut self, id: u64) -> &mut Disk {
        self.disks.get_mut(place_of(id)).expect("the plan has disks")
    }

    /// Starts every node that does not run, all at once, and waits until all of them answer.
    pub async fn start_all(&mut self) {
        self.start_those(|_| true).await;
    }

    /// The same for the nodes that `chosen` picks by their ids.
    pub async fn start_those(&mut self, chosen: impl Fn(u64) -> bool) {
        let chosen = |node: &&mut Node| chosen(node.id);
        for node in self.nodes.iter_mut().filter(chosen) {
            if !node.runs() {
                node.spawn();
            }
        }
        for node in self.nodes.iter_mut().filter(chosen) {
            node.answers().await;
        }
    }
}

/// Where the disk of a node stands: ids count from 1.
fn place_of(id: u64) -> usize {
    usize::try_from(id - 1).expect("few nodes")
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        self.nodes.iter_mut().for_each(Node::end);
        if failed {
            eprintln!("seed {}; replay: {}", self.seed, seed::replay(self.seed));
            self.nodes.iter().for_each(Node::show_log);
        }
        if (failed || std::env::var_os("LOCKSTEP_KEEP").is_some())
            && let Some(directory) = self.directory.take()
        {
            self.disks.clear();
            eprintln!("its files are kept until the next run: {}", directory.keep().display());
        }
    }
}
