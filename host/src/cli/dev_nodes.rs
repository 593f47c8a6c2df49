//! The node processes of `lockstep dev --nodes 3`: started, watched, and stopped with it. Each
//! holds the reading end of a pipe from this process, and stops by itself when that ends, as it
//! does when this process is killed.
//!
//! A node that ends while others run is reported with the command that starts it again, and not
//! restarted: killing one is what `dev` is for.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use rustix::process::{Pid, Signal};
use tokio::process::{Child, ChildStdin, Command};
use tokio::signal::unix::{Signal as UnixSignal, SignalKind, signal};

use super::dev::Logging;
use super::output::say;
use crate::config::Config;

/// How long the nodes may take to stop before they are killed: a node promises 5 seconds.
const STOP_MAX: Duration = Duration::from_secs(8);

/// The processes.
pub(super) struct Nodes {
    nodes: Vec<Node>,
    terminate: UnixSignal,
    interrupt: UnixSignal,
}

/// What happens while the nodes run.
pub(super) enum Event {
    /// SIGTERM or SIGINT came.
    Stop,
    /// A process ended.
    Ended {
        /// Which one, and how.
        how: String,
        /// The command that starts it again.
        restart: String,
    },
}

struct Node {
    config: Config,
    process: Child,
    ended: bool,
    /// Its end would stop the node. Apart from the process, since waiting for that closes it.
    _lifeline: Option<ChildStdin>,
}

impl Nodes {
    /// Starts a process for each configuration.
    pub(super) fn start(configs: Vec<Config>, logging: &Logging) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find the lockstep program")?;
        let start = |config: Config| -> anyhow::Result<Node> {
            say!("starting node {}, data in {}", config.node_id, config.data_dir.display());
            let mut process = Command::new(&program)
                .args(arguments(&config))
                .arg("--stop-with-stdin")
                .stdin(Stdio::piped())
                .args(["--log-level", &logging.level, "--log-format", logging.format.name()])
                .kill_on_drop(true)
                .spawn()
                .with_context(|| format!("cannot start {}", program.display()))?;
            let lifeline = process.stdin.take();
            Ok(Node { config, process, ended: false, _lifeline: lifeline })
        };
        Ok(Self {
            nodes: configs.into_iter().map(start).collect::<Result<_, _>>()?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits until a process ends or this one is to stop.
    pub(super) async fn event(&mut self) -> Event {
        let (index, how) = tokio::select! {
            end = first_end(&mut self.nodes) => end,
            _ = self.terminate.recv() => return Event::Stop,
            _ = self.interrupt.recv() => return Event::Stop,
        };
        let Node { config, ended, .. } = &mut self.nodes[index];
        *ended = true;
        Event::Ended {
            how: format!("node {} ended ({how})", config.node_id),
            restart: format!("lockstep {}", arguments(config).join(" ")),
        }
    }

    /// The process ids, for people.
    pub(super) fn pids(&self) -> String {
        let pids = self.nodes.iter().filter_map(|node| {
            let pid = node.process.id()?;
            Some(format!("node {} is process {pid}", node.config.node_id))
        });
        pids.collect::<Vec<_>>().join(", ")
    }

    /// Reports nodes that end, until a stop signal or until none is left.
    pub(super) async fn watch(&mut self) {
        while self.nodes.iter().any(|node| !node.ended) {
            match self.event().await {
                Event::Stop => return,
                Event::Ended { how, restart } => {
                    say!("{how}. To start it again:\n  {restart}");
                }
            }
        }
        say!("no node is left");
    }

    /// Asks every process to stop, and kills those that do not.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        for node in &self.nodes {
            let pid = node.process.id().and_then(|pid| i32::try_from(pid).ok());
            if let Some(pid) = pid.and_then(Pid::from_raw) {
                // One that has just ended can't be asked; waiting for it below is all the same.
                let _ = rustix::process::kill_process(pid, Signal::TERM);
            }
        }
        for Node { config, process, .. } in &mut self.nodes {
            if tokio::time::timeout(STOP_MAX, process.wait()).await.is_err() {
                say!("node {} did not stop: killing it", config.node_id);
                process.kill().await?;
            }
        }
        Ok(())
    }
}

/// The first of the running processes to end, and how.
async fn first_end(nodes: &mut [Node]) -> (usize, String) {
    let running = nodes.iter_mut().enumerate().filter(|(_, node)| !node.ended);
    let mut ends: FuturesUnordered<_> = running
        .map(|(index, node)| async move { (index, describe(node.process.wait().await)) })
        .collect();
    match ends.next().await {
        Some(end) => end,
        None => std::future::pending().await,
    }
}

fn describe(end: std::io::Result<ExitStatus>) -> String {
    end.map_or_else(|error| error.to_string(), |status| status.to_string())
}

/// The command line of one node.
fn arguments(config: &Config) -> Vec<String> {
    let mut arguments = vec![
        "serve".to_owned(),
        "--node-id".to_owned(),
        config.node_id.to_string(),
        "--data-dir".to_owned(),
        config.data_dir.display().to_string(),
        "--client-addr".to_owned(),
        config.client_addr.to_string(),
        "--peer-addr".to_owned(),
        config.peer_addr.to_string(),
    ];
    if config.forward {
        arguments.push("--forward".to_owned());
    }
    arguments
}
