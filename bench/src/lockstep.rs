//! Lockstep as a system under test: started, formed and given its machine by the command line that
//! operators use, asked who leads by the admin service.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use lockstep_proto::v1::admin_client::AdminClient;
use lockstep_proto::v1::status_reply::Role;
use lockstep_proto::v1::{StatusReply, StatusRequest};
use tokio::process::Command;
use tokio::time::{Instant, timeout};

use crate::args::{Args, System};
use crate::caller;
use crate::cluster::{Cluster, READY_WAIT};
use crate::node::{Spec, free_addresses};

/// Name of the machine that runs the guest.
pub(crate) const MACHINE: &str = "kv";

/// How to start each node of a cluster of `size`.
pub(crate) fn specs(args: &Args, system: System, size: usize, dir: &Path) -> Result<Vec<Spec>> {
    let program = program(args, system);
    for (path, option) in [(program, "LOCKSTEP_BIN or --before"), (&args.guest, "--guest")] {
        if !path.exists() {
            bail!("no {}: build it, or say where it is with {option}", path.display());
        }
    }
    let addresses = free_addresses(2 * size)?;
    let (clients, peers) = addresses.split_at(size);
    let spec = |place: usize| {
        let name = format!("{}-{place}", system.name());
        let data_dir = dir.join(&name);
        Spec {
            program: program.to_owned(),
            arguments: arguments(place, clients[place], peers[place], &data_dir),
            client_addr: clients[place],
            data_dir,
            log: dir.join(name + ".log"),
        }
    };
    Ok((0..size).map(spec).collect())
}

fn program(args: &Args, system: System) -> &Path {
    let before = args.before.as_deref().filter(|_| system == System::Before);
    before.unwrap_or(&args.lockstep)
}

fn arguments(place: usize, client: SocketAddr, peer: SocketAddr, data_dir: &Path) -> Vec<String> {
    vec![
        "serve".to_owned(),
        format!("--node-id={}", place + 1),
        format!("--data-dir={}", data_dir.display()),
        format!("--client-addr={client}"),
        format!("--peer-addr={peer}"),
    ]
}

/// Makes a cluster of freshly started nodes, with the machine running on every one of them.
pub(crate) async fn form(args: &Args, cluster: &mut Cluster) -> Result<()> {
    let addresses = cluster.addresses();
    let (first, others) = addresses.split_first().context("a cluster has a node")?;
    let first = first.to_string();
    wait_for(cluster, "its nodes to answer", |_| true).await?;
    let program = program(args, cluster.system);
    command(program, &["cluster", "init", "--endpoint", &first]).await?;
    for other in others {
        command(program, &["cluster", "add", &other.to_string(), "--endpoint", &first]).await?;
    }
    let guest = args.guest.to_str().context("--guest is not UTF-8")?;
    command(program, &["machine", "create", MACHINE, guest, "--endpoint", &first]).await?;
    wait_for(cluster, "every node to run the machine", |status| {
        status.machines.iter().any(|machine| machine.name == MACHINE && machine.parked.is_empty())
    })
    .await
}

async fn command(program: &Path, arguments: &[&str]) -> Result<()> {
    let child = Command::new(program).args(arguments).kill_on_drop(true).output();
    let output = timeout(READY_WAIT, child)
        .await
        .with_context(|| format!("lockstep {arguments:?} takes too long"))?
        .with_context(|| format!("running {}", program.display()))?;
    if !output.status.success() {
        bail!("lockstep {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Waits until every node answers with a status that is `ready`.
async fn wait_for(
    cluster: &mut Cluster,
    what: &str,
    ready: impl Fn(&StatusReply) -> bool,
) -> Result<()> {
    let deadline = Instant::now() + READY_WAIT;
    loop {
        match statuses(&cluster.addresses()).await {
            Ok(statuses) if statuses.iter().all(&ready) => return Ok(()),
            Ok(_) if Instant::now() > deadline => bail!("waited in vain for {what}"),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("waited in vain for {what}")));
            }
            Ok(_) | Err(_) => cluster.pause().await?,
        }
    }
}

/// Place of the node that says it leads, in the highest term: one that was frozen may still say so.
pub(crate) async fn leader(addresses: &[SocketAddr]) -> Result<Option<usize>> {
    let statuses = statuses(addresses).await?;
    let leaders = statuses.iter().enumerate();
    let leaders = leaders.filter(|(_, status)| status.role() == Role::Leader);
    Ok(leaders.max_by_key(|(_, status)| status.term).map(|(place, _)| place))
}

/// The highest term that a node has seen.
pub(crate) async fn term(addresses: &[SocketAddr]) -> Result<u64> {
    let statuses = statuses(addresses).await?;
    statuses.iter().map(|status| status.term).max().context("a cluster has a node")
}

async fn statuses(addresses: &[SocketAddr]) -> Result<Vec<StatusReply>> {
    let mut statuses = Vec::with_capacity(addresses.len());
    for &address in addresses {
        let mut client = AdminClient::new(caller::connect(address).await?);
        statuses.push(client.status(StatusRequest {}).await?.into_inner());
    }
    Ok(statuses)
}
