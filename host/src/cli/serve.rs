//! `lockstep serve`: runs one node until SIGTERM or SIGINT, and with `--stop-with-stdin` until
//! whoever started it is gone.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use crate::config::{Config, FileConfig};
use crate::node;
use crate::types::NodeId;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Id of this node, from 1, never used for another disk
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..u64::MAX), value_name = "N")]
    node_id: u64,
    /// Folder that holds everything the node keeps
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Where clients and operators connect
    #[arg(long, value_name = "IP:PORT")]
    client_addr: SocketAddr,
    /// Where the other nodes connect
    #[arg(long, value_name = "IP:PORT")]
    peer_addr: SocketAddr,
    /// TOML file with the other settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Pass requests for the leader on to it instead of naming its address
    #[arg(long)]
    forward: bool,
    /// Listen on other addresses than loopback, without encryption or authentication
    #[arg(long)]
    insecure: bool,
    /// Stop at the end of standard input, a pipe that `dev` holds the other end of
    #[arg(long, hide = true)]
    stop_with_stdin: bool,
}

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let input = arguments.stop_with_stdin.then(input_pipe).transpose()?;
    let config = tokio::task::spawn_blocking(move || arguments.into_config()).await??;
    if config.insecure {
        tracing::warn!(
            client_addr = %config.client_addr,
            peer_addr = %config.peer_addr,
            "--insecure: whoever can reach these addresses can read and change everything"
        );
    }
    let Some(input) = input else { return node::run(config).await };
    let signal = node::shutdown_signal()?;
    let shutdown = async {
        tokio::select! {
            () = signal => {}
            () = ends(input) => tracing::info!("standard input ended: stopping"),
        }
    };
    node::Node::start(config).await?.run_until(shutdown).await
}

/// Standard input, to be watched without a thread that a stop would have to wait for.
fn input_pipe() -> anyhow::Result<pipe::Receiver> {
    let input = std::io::stdin().as_fd().try_clone_to_owned()?;
    pipe::Receiver::from_owned_fd(input).context("--stop-with-stdin: standard input must be a pipe")
}

/// Completes once nobody holds the other end of a pipe. The system closes it however its holder
/// ends.
async fn ends(mut input: pipe::Receiver) {
    let mut ignored = [0; 64];
    while input.read(&mut ignored).await.is_ok_and(|count| count > 0) {}
}

impl Arguments {
    fn into_config(self) -> anyhow::Result<Config> {
        let file =
            self.config.as_deref().map_or_else(|| Ok(FileConfig::default()), FileConfig::load)?;
        check_addresses(self.client_addr, self.peer_addr, self.insecure)?;
        Ok(Config {
            node_id: NodeId(self.node_id),
            data_dir: self.data_dir,
            client_addr: self.client_addr,
            peer_addr: self.peer_addr,
            insecure: self.insecure,
            forward: self.forward,
            file,
        })
    }
}

/// Refuses addresses that would expose the node, or by which nobody could find it again.
fn check_addresses(client: SocketAddr, peer: SocketAddr, insecure: bool) -> anyhow::Result<()> {
    for (flag, address) in [("--client-addr", client), ("--peer-addr", peer)] {
        if address.port() == 0 {
            bail!("{flag} {address}: name a port, since the other nodes keep the address");
        }
        if !address.ip().is_loopback() && !insecure {
            bail!(
                "{flag} {address} can be reached from other machines, and this version has no \
                 encryption: use 127.0.0.1, or add --insecure if the network is trusted"
            );
        }
    }
    if client == peer {
        bail!("--client-addr and --peer-addr are both {client}: they must differ");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only loopback is listened on, unless --insecure says otherwise.
    #[test]
    fn addresses_are_checked() {
        let check = |client: &str, peer: &str, insecure| {
            check_addresses(client.parse().unwrap(), peer.parse().unwrap(), insecure).is_ok()
        };
        assert!(check("127.0.0.1:1", "127.0.0.1:2", false));
        assert!(check("[::1]:1", "127.0.0.1:1", false));
        assert!(!check("0.0.0.0:1", "127.0.0.1:2", false));
        assert!(!check("127.0.0.1:1", "10.0.0.1:2", false));
        assert!(check("0.0.0.0:1", "10.0.0.1:2", true));
        assert!(!check("127.0.0.1:1", "127.0.0.1:1", true));
        assert!(!check("127.0.0.1:0", "127.0.0.1:1", true));
    }
}
