//! One node as a process: `lockstep serve` with a data folder, two addresses and a log file.
//!
//! The folder and the addresses outlive the process, so that a node can be started again on what
//! it left behind. A node is ended by its own process id alone, and at the latest when dropped.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use lockstep_client::Client;
use lockstep_proto::v1::admin_client::AdminClient;
use lockstep_proto::v1::status_reply::Role;
use lockstep_proto::v1::{StatusReply, StatusRequest};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use tonic::transport::Endpoint;

use crate::clock::Clock;
use crate::faults::Faults;
use crate::program;
use crate::wait::until;

/// How long a node may take until it answers after a start, with whatever it recovers.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long one question for the status may take.
const STATUS_LIMIT: Duration = Duration::from_secs(1);
/// Lines of a node's log that a failed test shows.
const LOG_LINES_SHOWN: usize = 60;
/// Of its warnings and errors, a failed stop shows so many.
const COMPLAINTS_SHOWN: usize = 5;

/// A node, running or not.
pub struct Node {
    /// Its id.
    pub id: u64,
    /// Its data folder.
    pub data_dir: PathBuf,
    /// Where clients and operators connect.
    pub client_addr: String,
    /// Where the other nodes connect.
    pub peer_addr: String,
    /// The program that it runs from its next start on.
    pub program: PathBuf,
    /// What else is said on its command line.
    pub flags: Vec<String>,
    /// The faults that its disk can be given.
    pub faults: Option<Faults>,
    /// Its wall clock, where that can be set wrong.
    pub clock: Option<Clock>,
    config: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Node {
    /// Prepares a node with its folder and files below `directory`; nothing is started.
    ///
    /// # Panics
    /// When the configuration file cannot be written.
    pub fn new(id: u64, directory: &Path, client_addr: String, peer_addr: String) -> Self {
        let node = Self {
            id,
            data_dir: directory.join(format!("node-{id}")),
            client_addr,
            peer_addr,
            program: program::lockstep(),
            flags: Vec::new(),
            faults: None,
            clock: None,
            config: directory.join(format!("node-{id}.toml")),
            log: directory.join(format!("node-{id}.log")),
            child: None,
        };
        node.configure("");
        node
    }

    /// Replaces the configuration file; in force from the next start on.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn configure(&self, toml: &str) {
        std::fs::write(&self.config, toml).expect("the configuration can be written");
    }

    /// The command that starts it.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("serve").args(["--node-id", &self.id.to_string()]);
        command.arg("--data-dir").arg(&self.data_dir);
        command.args(["--client-addr", &self.client_addr, "--peer-addr", &self.peer_addr]);
        command.arg("--config").arg(&self.config).args(&self.flags);
        command.env_remove("LOCKSTEP_ENDPOINT").env_remove("RUST_LOG");
        command.envs(self.faults.iter().map(Faults::environment));
        command.envs(self.clock.iter().map(Clock::environment));
        let faults = self.faults.iter().map(Faults::library);
        let libraries = faults.chain(self.clock.iter().map(Clock::library));
        let libraries = std::env::join_paths(libraries).expect("no path has a colon");
        if !libraries.is_empty() {
            command.env("LD_PRELOAD", libraries);
        }
        command
    }

    /// Starts the process without waiting for anything.
    ///
    /// # Panics
    /// When it runs already or cannot be started.
    pub fn spawn(&mut self) {
        self.spawn_command(self.command());
    }

    /// Starts the process through a script of bash that sets limits first:
    /// `ulimit -n 10; exec "$@"`.
    ///
    /// # Panics
    /// As [`Node::spawn`] does.
    pub fn spawn_under(&mut self, script: &str) {
        let serve = self.command();
        let mut shell = Command::new("bash");
        shell.args(["-c", script, "bash"]).arg(serve.get_program()).args(serve.get_args());
        self.spawn_command(shell);
    }

    fn spawn_command(&mut self, mut command: Command) {
        assert!(self.child.is_none(), "node {} runs already", self.id);
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.expect("the log file can be opened");
        command.stdin(Stdio::null()).stderr(log.try_clone().expect("one more handle")).stdout(log);
        self.child = Some(command.spawn().expect("lockstep can be started"));
    }

    /// Starts it and waits until it answers.
    ///
    /// # Panics
    /// When it ends instead, or does not answer within a minute.
    pub async fn start(&mut self) {
        self.spawn();
        self.answers().await;
    }

    /// Waits until it answers.
    ///
    /// # Panics
    /// When it ends instead, or does not answer within a minute.
    pub async fn answers(&mut self) {
        let what = format!("node {} to answer", self.id);
        until(&what, START_LIMIT, async || {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok()?) {
                let log = self.log_text();
                panic!("node {} ended at its start ({status}):\n{log}", self.id);
            }
            self.status().await.map(|_| ())
        })
        .await;
    }

    /// Starts it, expects that it ends by itself with exit code 1 and complains with every one of
    /// `parts`, in any case of letters. Returns the complaint.
    ///
    /// # Panics
    /// When it runs on, ends otherwise, or complains about something else.
    pub async fn refuses_to_start(&mut self, parts: &[&str]) -> String {
        let before = self.log_text().len();
        self.spawn();
        self.ends_refusing(before, parts).await
    }

    /// The faults of its disk.
    ///
    /// # Panics
    /// When the cluster was not planned with them.
    pub fn faults(&self) -> &Faults {
        self.faults.as_ref().expect("the plan has faults")
    }

    /// Its wall clock.
    ///
    /// # Panics
    /// When the cluster was not planned with one that can be set.
    pub fn clock(&self) -> &Clock {
        self.clock.as_ref().expect("the plan has clocks")
    }

    /// What [`Node::refuses_to_start`] expects, of a process that was started in another way when
    /// its log was `before` bytes long.
    ///
    /// # Panics
    /// As [`Node::refuses_to_start`] does.
    pub async fn ends_refusing(&mut self, before: usize, parts: &[&str]) -> String {
        let status = self.ends(START_LIMIT).await;
        let complaint = self.log_text().split_off(before);
        let what = format!("node {} at its start", self.id);
        assert_eq!(status.code(), Some(1), "{what}: {status}: {complaint}");
        program::assert_holds(&what, &complaint, parts);
        assert!(!complaint.contains("panicked"), "{what} panicked: {complaint}");
        complaint
    }

    /// Waits until the process has ended.
    ///
    /// # Panics
    /// When it was not started, or runs on beyond `limit`.
    pub async fn ends(&mut self, limit: Duration) -> ExitStatus {
        let child = self.child.as_mut().expect("the node was started");
        let what = format!("node {} to end", self.id);
        let status = until(&what, limit, async || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("it runs on".to_owned()),
            Err(error) => Err(error.to_string()),
        });
        let status = status.await;
        self.child = None;
        status
    }

    /// True while its process runs.
    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// True when it was ever started.
    pub fn was_started(&self) -> bool {
        self.log.exists()
    }

    /// True while its process is frozen.
    pub fn is_paused(&self) -> bool {
        let process = self.child.as_ref().map(|child| format!("/proc/{}", child.id()));
        process.is_some_and(|process| is_stopped(Path::new(&process)))
    }

    /// Sends the process a signal.
    ///
    /// # Panics
    /// When it was not started.
    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("the node was started");
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a process has an id"), signal).expect("it is our own process");
    }

    /// Ends the process with SIGKILL, as a crash would.
    ///
    /// # Panics
    /// When it does not run.
    pub async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.ends(Duration::from_secs(10)).await;
    }

    /// Asks the process with this signal to end; returns how long it took.
    ///
    /// # Panics
    /// When it does not end within `limit`, or not with exit code 0.
    pub async fn stop_by(&mut self, signal: Signal, limit: Duration) -> Duration {
        let started = Instant::now();
        self.signal(signal);
        let status = self.ends(limit).await;
        let complaints = self.complaints();
        assert!(status.success(), "node {} stopped with {status}:\n{complaints}", self.id);
        started.elapsed()
    }

    /// Stops the process gracefully.
    ///
    /// # Panics
    /// When it takes longer than it should, or fails.
    pub async fn stop(&mut self) {
        self.stop_by(Signal::TERM, Duration::from_secs(10)).await;
    }

    /// Freezes the process: once this returns, it does nothing, and does not know that time
    /// passes.
    ///
    /// # Panics
    /// When it does not run.
    pub async fn pause(&self) {
        self.signal(Signal::STOP);
        // The signal stops one thread, when that is scheduled, and the others through it.
        let tasks = format!("/proc/{}/task", self.child.as_ref().expect("it runs").id());
        until("every thread to stop", Duration::from_secs(10), async || {
            let threads = std::fs::read_dir(&tasks).map_err(|error| error.to_string())?;
            let running = threads.flatten().find(|thread| !is_stopped(&thread.path()));
            running.map_or(Ok(()), |thread| Err(format!("{} runs", thread.path().display())))
        })
        .await;
    }

    /// Lets a frozen process go on.
    ///
    /// # Panics
    /// When it does not run.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Asks this very node what it knows.
    pub async fn status(&self) -> Result<StatusReply, String> {
        let said = |error: &dyn std::fmt::Display| format!("node {}: {error}", self.id);
        let endpoint = Endpoint::from_shared(format!("http://{}", self.client_addr))
            .map_err(|error| said(&error))?
            .connect_timeout(STATUS_LIMIT)
            .timeout(STATUS_LIMIT);
        let channel = endpoint.connect().await.map_err(|error| said(&error))?;
        let reply = AdminClient::new(channel).status(StatusRequest {}).await;
        reply.map(tonic::Response::into_inner).map_err(|status| said(&status.message()))
    }

    /// Waits until this node says what `wanted` looks for, and returns what it found.
    ///
    /// # Panics
    /// When `limit` has passed.
    pub async fn says<T>(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&StatusReply) -> Option<T>,
    ) -> T {
        let what = format!("node {} to say that {what}", self.id);
        until(&what, limit, async || {
            let status = self.status().await?;
            wanted(&status).ok_or_else(|| summary(&status))
        })
        .await
    }

    /// Ends the process, if it runs, whatever state it is in.
    pub fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended already; what counts is that it is gone afterwards.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Everything it has printed, from its first start on.
    pub fn log_text(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A client that knows this node alone.
    ///
    /// # Panics
    /// When the address is none.
    pub fn client(&self) -> Client {
        Client::connect([self.client_addr.clone()]).expect("an address is an endpoint")
    }

    /// Id of its thread with this name.
    ///
    /// # Panics
    /// When it has none.
    pub fn thread(&self, name: &str) -> i32 {
        let child = self.child.as_ref().expect("the node runs");
        let threads = std::fs::read_dir(format!("/proc/{}/task", child.id()));
        let is_named = |thread: &std::fs::DirEntry| {
            let called = std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
            called.trim_end() == name
        };
        let mut threads = threads.expect("a process has threads").flatten();
        let thread = threads.find(is_named).expect("the node has a thread of this name");
        let id = thread.file_name().into_string().ok().and_then(|id| id.parse().ok());
        id.expect("a thread has a number")
    }

    /// Memory that its process holds, in bytes.
    ///
    /// # Panics
    /// When it doesn't run.
    pub fn resident_bytes(&self) -> u64 {
        let child = self.child.as_ref().expect("the node runs");
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
        let status = status.expect("a running process has a status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).expect("it has a size");
        kib.parse::<u64>().expect("the size is a number") << 10
    }

    /// Lets it open no descriptor from this number on; the limit before.
    ///
    /// # Panics
    /// When it does not run.
    pub fn allow_files(&self, files: u64) -> u64 {
        let child = self.child.as_ref().expect("the node runs");
        let pid = Pid::from_raw(child.id().cast_signed()).expect("a process has an id");
        let maximum = getrlimit(Resource::Nofile).maximum;
        let limit = Rlimit { current: Some(files), maximum };
        let before = prlimit(Some(pid), Resource::Nofile, limit);
        before.expect("its limit can be set").current.expect("it has a limit")
    }

    /// Lets it open so many descriptors more, and no others; the limit before.
    ///
    /// # Panics
    /// When it does not run.
    pub fn spare_files(&self, spare: usize) -> u64 {
        let child = self.child.as_ref().expect("the node runs");
        let folder = std::fs::read_dir(format!("/proc/{}/fd", child.id())).expect("it is there");
        let open: BTreeSet<u64> = folder
            .map(|entry| entry.expect("it can be listed").file_name())
            .map(|name| name.to_string_lossy().parse().expect("it is a number"))
            .collect();
        // A new descriptor has the lowest number that is free.
        let limit = (0..).filter(|number| !open.contains(number)).nth(spare);
        self.allow_files(limit.expect("numbers do not end"))
    }

    /// The last of its warnings and errors, and the line it ended with.
    fn complaints(&self) -> String {
        let text = self.log_text();
        let is_complaint =
            |line: &&str| ["WARN", "ERROR", "error:"].iter().any(|level| line.contains(level));
        let lines: Vec<&str> = text.lines().filter(is_complaint).collect();
        lines[lines.len().saturating_sub(COMPLAINTS_SHOWN)..].join("\n")
    }

    /// The end of its log, for people.
    pub fn show_log(&self) {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
        eprintln!("---- node {}, last {} of {} lines", self.id, shown.len(), lines.len());
        shown.iter().for_each(|line| eprintln!("{line}"));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
    }
}

/// True when a thread, by its folder under `/proc`, is stopped by a signal or gone.
fn is_stopped(thread: &Path) -> bool {
    let Ok(stat) = std::fs::read_to_string(thread.join("stat")) else { return true };
    // The state follows the name, which stands in parentheses and may hold anything.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

/// A status in a line, for messages.
pub fn summary(status: &StatusReply) -> String {
    let role = Role::try_from(status.role).map_or("?", |role| role.as_str_name());
    let nodes: Vec<String> = status
        .nodes
        .iter()
        .map(|node| format!("{}{}", node.node_id, if node.voter { "" } else { " (learner)" }))
        .collect();
    format!(
        "node {} is {role} of term {}, leader {}, last {}, committed {}, applied {}, snapshot {}, \
         purged {}, members [{}], alarms {:?}",
        status.node_id,
        status.term,
        status.leader_id,
        status.last_log_index,
        status.committed_index,
        status.applied_index,
        status.snapshot_index,
        status.purged_index,
        nodes.join(", "),
        status.alarms,
    )
}
