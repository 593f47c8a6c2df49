//! One daemon under test: its process, its data folder and its log.
//!
//! Invariant: a dropped `Node` takes its process with it.

use std::fs::{self, File, OpenOptions};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::machine::{self, Usage};

/// How long a daemon may take to stop on a signal.
const STOP_WAIT: Duration = Duration::from_secs(30);
/// Where free ports are looked for.
const PORTS: std::ops::Range<u16> = 10_000..30_000;
/// Ports to try before giving up.
const PORT_TRIES: usize = 1000;
/// Bytes of a daemon's log that an error quotes.
const LOG_TAIL_BYTES: usize = 2000;

/// How to start a daemon, and where it is.
#[derive(Debug)]
pub(crate) struct Spec {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) client_addr: SocketAddr,
    pub(crate) data_dir: PathBuf,
    /// Takes what the daemon writes to its standard streams.
    pub(crate) log: PathBuf,
}

/// A daemon, running or stopped.
#[derive(Debug)]
pub(crate) struct Node {
    spec: Spec,
    process: Option<Child>,
}

impl Node {
    /// Starts the daemon; doesn't wait until it serves.
    pub(crate) fn start(spec: Spec) -> Result<Self> {
        let mut node = Self { spec, process: None };
        node.restart()?;
        Ok(node)
    }

    /// Starts a stopped daemon on the data that it left.
    pub(crate) fn restart(&mut self) -> Result<()> {
        let log = self.open_log()?;
        let process = Command::new(&self.spec.program)
            .args(&self.spec.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", self.spec.program.display()))?;
        self.process = Some(process);
        Ok(())
    }

    fn open_log(&self) -> Result<File> {
        let path = &self.spec.log;
        let log = OpenOptions::new().create(true).append(true).open(path);
        log.with_context(|| format!("opening {}", path.display()))
    }

    /// Sends `signal` without waiting.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid()?;
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("impossible pid")?;
        kill_process(pid, signal).context("signalling a node")
    }

    /// Waits until the daemon, which was signalled, is gone.
    pub(crate) async fn wait(&mut self) -> Result<()> {
        let Some(process) = &mut self.process else { return Ok(()) };
        if timeout(STOP_WAIT, process.wait()).await.is_err() {
            bail!("{} did not stop; its log ends:\n{}", self.client_addr(), self.log_tail());
        }
        self.process = None;
        Ok(())
    }

    /// Fails, with the end of the log, when the daemon has ended by itself.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let Some(status) = process.try_wait()? else { return Ok(()) };
        let program = self.spec.program.display();
        bail!("{program} ended by itself ({status}); its log ends:\n{}", self.log_tail())
    }

    fn log_tail(&self) -> String {
        let log = fs::read(&self.spec.log).unwrap_or_default();
        let from = log.len().saturating_sub(LOG_TAIL_BYTES);
        String::from_utf8_lossy(&log[from..]).into_owned()
    }

    /// CPU time and memory so far.
    pub(crate) fn usage(&self) -> Result<Usage> {
        machine::usage(&self.pid()?.to_string())
    }

    /// Bytes of its data folder on disk.
    pub(crate) fn disk_bytes(&self) -> Result<u64> {
        machine::disk_bytes(&self.spec.data_dir)
    }

    /// Where clients reach it.
    pub(crate) fn client_addr(&self) -> SocketAddr {
        self.spec.client_addr
    }

    fn pid(&self) -> Result<u32> {
        self.process.as_ref().and_then(Child::id).context("the node is stopped")
    }
}

/// Loopback addresses that nobody listens on, all different.
///
/// Below the kernel's range for outgoing connections, so that none takes a stopped node's port.
pub(crate) fn free_addresses(count: usize) -> Result<Vec<SocketAddr>> {
    let mut listeners = Vec::with_capacity(count);
    for _ in 0..PORT_TRIES {
        if listeners.len() == count {
            return Ok(listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?);
        }
        let port = fastrand::u16(PORTS);
        listeners.extend(TcpListener::bind(("127.0.0.1", port)));
    }
    bail!("found no {count} free ports on loopback")
}
