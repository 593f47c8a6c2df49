//! `lockstep dev`: a node, or three, on loopback, with a machine `kv`, ready to use. Run again on
//! the same data folder, it goes on where it was.
//!
//! One node runs in this process; three run as processes of their own, so that each can be killed.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use lockstep_client::{Client, reason, v1};
use sha2::{Digest as _, Sha256};

use super::cluster::in_another;
use super::dev_nodes::{Event, Nodes};
use super::machine::read_module;
use super::output::say;
use crate::config::{Config, FileConfig};
use crate::node;
use crate::telemetry::Format;
use crate::types::{NodeId, short};

/// The machine that `dev` creates.
const MACHINE: &str = "kv";
/// The guest that `lockstep kv` speaks to.
const REFERENCE_GUEST: &str = "guest-kv";
/// A node's peer port is its client port plus this.
const PEER_PORT_OFFSET: u16 = 100;
/// How long a step may take: starting compiles guests and replays the log.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Arguments {
    /// How many nodes: 1 or 3
    #[arg(long, default_value_t = 1, value_parser = parse_nodes, value_name = "N")]
    nodes: u16,
    /// Folder for the nodes' data folders
    #[arg(long, default_value = "./data", value_name = "DIR")]
    data_dir: PathBuf,
    /// Client port of the first node; the next ones follow, peers use ports 100 higher
    #[arg(
        long,
        default_value_t = 7400,
        value_parser = clap::value_parser!(u16).range(1..=65_000),
        value_name = "PORT"
    )]
    port: u16,
    /// Module for machine `kv`, needed the first time
    #[arg(long, value_name = "FILE")]
    guest: Option<PathBuf>,
    /// Pass requests for the leader on to it
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    forward: bool,
}

fn parse_nodes(text: &str) -> Result<u16, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("1 or 3 nodes: an even number tolerates no more failures than one less".into()),
    }
}

/// How this process logs, for the processes it starts.
#[derive(Clone, Debug)]
pub(super) struct Logging {
    pub(super) level: String,
    pub(super) format: Format,
}

impl Arguments {
    fn client_addr(&self, id: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port + id - 1).into()
    }

    fn endpoints(&self) -> Vec<String> {
        (1..=self.nodes).map(|id| self.client_addr(id).to_string()).collect()
    }

    /// The settings of one node.
    pub(super) fn config(&self, id: u16) -> Config {
        let client_addr = self.client_addr(id);
        let peer_port = client_addr.port() + PEER_PORT_OFFSET;
        Config {
            node_id: NodeId(id.into()),
            data_dir: self.data_dir.join(format!("node-{id}")),
            client_addr,
            peer_addr: (Ipv4Addr::LOCALHOST, peer_port).into(),
            insecure: false,
            forward: self.forward,
            file: FileConfig::default(),
        }
    }
}

pub(super) async fn run(arguments: Arguments, logging: Logging) -> anyhow::Result<()> {
    if arguments.nodes == 1 {
        run_one(arguments).await
    } else {
        run_three(arguments, logging).await
    }
}

async fn run_one(arguments: Arguments) -> anyhow::Result<()> {
    say!("starting a node, data in {}", arguments.config(1).data_dir.display());
    let mut node = Box::pin(node::run(arguments.config(1)));
    let guest = tokio::select! {
        result = &mut node => return result,
        result = prepare(&arguments) => result?,
    };
    print_next(&arguments, &guest);
    node.await
}

async fn run_three(arguments: Arguments, logging: Logging) -> anyhow::Result<()> {
    let configs: Vec<Config> = (1..=arguments.nodes).map(|id| arguments.config(id)).collect();
    let mut nodes = Nodes::start(configs, &logging)?;
    let prepared = tokio::select! {
        result = prepare(&arguments) => result,
        event = nodes.event() => match event {
            Event::Ended { how, .. } => Err(anyhow::anyhow!(how)),
            Event::Stop => return nodes.stop().await,
        },
    };
    match prepared {
        Ok(guest) => {
            print_next(&arguments, &guest);
            say!("kill any one node and go on: {}", nodes.pids());
            nodes.watch().await;
            nodes.stop().await
        }
        Err(error) => {
            nodes.stop().await?;
            Err(error)
        }
    }
}

/// Brings the nodes to where they can be used, from wherever they are, and returns the name of the
/// guest.
async fn prepare(arguments: &Arguments) -> anyhow::Result<String> {
    let first = client_of(&arguments.client_addr(1).to_string())?;
    let client = Client::connect(arguments.endpoints())?.with_timeout(STEP_TIMEOUT);
    let status = first.status().await.context("node 1 does not answer")?;
    if status.cluster_id.is_empty() {
        let others = arguments.endpoints().into_iter().skip(1);
        let others = others
            .map(|address| anyhow::Ok((address.clone(), client_of(&address)?)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        if let Some((_, other)) = in_another(&status.cluster_id, &others).await {
            bail!(wiped(arguments, &other));
        }
        let cluster = first.cluster_init().await.context("cannot form a cluster")?;
        say!("formed cluster {}", hex::encode(&cluster));
    }
    check_quorum(arguments, &status.nodes)?;
    let voters = status.nodes.iter().filter(|node| node.voter).map(|node| node.node_id);
    let voters: Vec<u64> = voters.collect();
    for id in (2..=arguments.nodes).filter(|id| !voters.contains(&u64::from(*id))) {
        say!("adding node {id}");
        add(&client, &arguments.client_addr(id).to_string()).await?;
    }
    create_machine(&client, arguments).await
}

/// What to do about a node 1 that has lost its data. A new cluster would hide what the others have,
/// and the node cannot be let in under an id that joined with another disk.
fn wiped(arguments: &Arguments, other: &v1::StatusReply) -> String {
    let folder = arguments.data_dir.display();
    format!(
        "the data of node 1 is gone from {folder}, and node {} has that of cluster {}: `lockstep \
         dev` does not mend that. To begin anew, remove {folder} or choose another --data-dir. To \
         keep the data, run the other nodes with `lockstep serve`, `lockstep cluster remove 1`, \
         and `lockstep cluster add` a node with a new id",
        other.node_id,
        hex::encode(&other.cluster_id),
    )
}

/// A client of one node, which may still be starting.
fn client_of(address: &str) -> anyhow::Result<Client> {
    Ok(Client::connect([address])?.with_timeout(STEP_TIMEOUT))
}

/// Three nodes started as one have no majority: say so instead of waiting for a leader.
fn check_quorum(arguments: &Arguments, nodes: &[v1::Node]) -> anyhow::Result<()> {
    let voters = nodes.iter().filter(|node| node.voter).count();
    if voters > 1 && arguments.nodes == 1 {
        bail!(
            "the data in {} is of a cluster of {voters} nodes: run `lockstep dev --nodes 3`, or \
             choose another --data-dir",
            arguments.data_dir.display()
        );
    }
    Ok(())
}

/// Adds a node; it may still be starting, so that is tried until it answers.
async fn add(client: &Client, address: &str) -> anyhow::Result<()> {
    let node = client_of(address)?;
    node.status().await.with_context(|| format!("the node at {address} does not answer"))?;
    client.cluster_add(address, false).await.with_context(|| format!("cannot add {address}"))?;
    Ok(())
}

/// Creates the machine, unless there is one, and returns the name of its guest.
async fn create_machine(client: &Client, arguments: &Arguments) -> anyhow::Result<String> {
    let ping = lockstep_client::resp::encode_command(&["PING"]);
    // A linearizable query waits for a leader that has applied its log.
    match client.query(MACHINE, ping, lockstep_client::Consistency::Linearizable).await {
        Err(error) if error.reason == reason::NO_SUCH_MACHINE => {}
        // A guest other than the reference guest may fail in it, which is an answer as well.
        Err(error) if error.outcome != lockstep_client::Outcome::AppliedError => {
            return Err(error).context("the cluster does not answer");
        }
        _ => return keep_machine(client, arguments).await,
    }
    let Some(file) = &arguments.guest else {
        bail!(
            "there is no machine `{MACHINE}` yet: name the module for it with --guest FILE \
             (`cargo xtask dev` builds guest-kv and does so)"
        );
    };
    let digest = client.upload_module(read_module(file).await?).await?;
    let machine = client.create_machine(MACHINE, digest, v1::Limits::default()).await?;
    say!("created machine {MACHINE} on {}", file.display());
    Ok(machine.guest_name)
}

/// The machine is there: `--guest` changes no machine, and says so where it names another module.
async fn keep_machine(client: &Client, arguments: &Arguments) -> anyhow::Result<String> {
    let machine = client.describe_machine(MACHINE).await?;
    if let Some(file) = &arguments.guest {
        let digest: [u8; 32] = Sha256::digest(read_module(file).await?).into();
        if machine.module_digest != digest[..] {
            say!(
                "--guest {} is not used: machine {MACHINE} runs {} (module {}) already. To begin \
                 anew with the other, choose another --data-dir, or run `lockstep machine remove \
                 {MACHINE}` and this command again; its data goes with it",
                file.display(),
                machine.guest_name,
                short(&hex::encode(&machine.module_digest))
            );
        }
    }
    Ok(machine.guest_name)
}

/// Says what to type next to a machine that runs this guest.
fn print_next(arguments: &Arguments, guest: &str) {
    let endpoints = arguments.endpoints().join(",");
    let option = match (arguments.nodes, arguments.port) {
        (1, 7400) => String::new(),
        _ => format!(" --endpoint {endpoints}"),
    };
    say!("");
    say!("ready on {endpoints}. In another terminal:");
    say!("");
    if guest == REFERENCE_GUEST {
        say!("  lockstep kv{option} SET greeting hello");
        say!("  lockstep kv{option} GET greeting");
    } else {
        say!("  lockstep exec --machine {MACHINE}{option} COMMAND");
        say!("  lockstep query --machine {MACHINE}{option} QUERY");
        say!("  lockstep machine describe {MACHINE}{option}");
    }
    say!("  lockstep status{option}");
    say!("");
    say!("Ctrl-C stops it; the data stays in {}.", arguments.data_dir.display());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each node has a folder and ports of its own.
    #[test]
    fn nodes_do_not_collide() {
        let arguments =
            Arguments { nodes: 3, data_dir: "d".into(), port: 7400, guest: None, forward: true };
        let third = arguments.config(3);
        assert_eq!(third.client_addr.to_string(), "127.0.0.1:7402");
        assert_eq!(third.peer_addr.to_string(), "127.0.0.1:7502");
        assert_eq!(third.data_dir, PathBuf::from("d/node-3"));
        assert_eq!(arguments.endpoints().join(","), "127.0.0.1:7400,127.0.0.1:7401,127.0.0.1:7402");
    }
}
