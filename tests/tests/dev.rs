//! `lockstep dev`: the main job in one command.

use std::path::Path;
use std::process::{ExitStatus, Stdio};

use lockstep_tests::cluster::{Plan, SOON};
use lockstep_tests::wait::until;
use lockstep_tests::{files, ports, program};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout};

/// A running `dev`. Dropped, it is asked to end, so that it can end its nodes.
struct Dev {
    process: Child,
    port: u16,
    /// What it prints later must find a reader.
    _lines: Lines<BufReader<ChildStdout>>,
}

impl Dev {
    /// Starts it and waits until it has said what to type next.
    async fn start(nodes: &str, port: u16, data: &Path) -> Self {
        let (dev, _) = Self::start_with("guest-kv", nodes, port, data).await;
        dev
    }

    /// The same with another guest; also what it printed.
    async fn start_with(guest: &str, nodes: &str, port: u16, data: &Path) -> (Self, String) {
        let mut process = tokio::process::Command::new(program::lockstep())
            .args(["dev", "--nodes", nodes, "--port", &port.to_string(), "--data-dir"])
            .arg(data)
            .arg("--guest")
            .arg(program::guest(guest))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("lockstep can be started");
        let mut lines = BufReader::new(process.stdout.take().expect("it is piped")).lines();
        let ready = async {
            let mut printed = String::new();
            while !printed.contains("lockstep status") {
                let line = lines.next_line().await.expect("its output can be read");
                let line = line.unwrap_or_else(|| panic!("it ended after printing: {printed}"));
                printed.push_str(&line);
                printed.push('\n');
            }
            printed
        };
        let typed = tokio::time::timeout(SOON, ready).await;
        let printed = typed.expect("it says soon what to type next");
        (Self { process, port, _lines: lines }, printed)
    }

    /// What `lockstep kv` prints, once the machine answers.
    async fn kv(&self, words: &[&str]) -> String {
        let endpoint = format!("127.0.0.1:{}", self.port);
        let call = ["kv", "--endpoint", &endpoint];
        until("the machine kv", SOON, async || {
            let ran = program::run(call.iter().chain(words)).await;
            if ran.code == Some(0) { Ok(ran.ok()) } else { Err(ran.err) }
        })
        .await
    }

    async fn end_by(mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        let status = tokio::time::timeout(SOON, self.process.wait()).await;
        status.expect("it ends soon").expect("it can be waited for")
    }

    fn signal(&self, signal: Signal) {
        let pid = self.process.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(pid) = pid {
            // It may have ended by itself.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        self.signal(Signal::TERM);
    }
}

/// It runs a node, or three, with the machine `kv`; it prints what to type next, starts again on
/// the same folder, and ends with all of its nodes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dev_runs_the_main_job() {
    for nodes in ["1", "3"] {
        let cluster = Plan::new(0).start_bare().await;
        let data = cluster.directory().join("dev-data");
        // Its nodes take ports in a row, and their peers' ports 100 higher.
        let port = ports::free_block(103);
        for (round, expected) in ["(nil)", "\"v\""].into_iter().enumerate() {
            let dev = Dev::start(nodes, port, &data).await;
            assert_eq!(dev.kv(&["GET", "k"]).await, expected, "round {round} of {nodes} nodes");
            assert_eq!(dev.kv(&["SET", "k", "v"]).await, "OK");
            let status = dev.end_by(Signal::TERM).await;
            assert!(status.success(), "{status}");
        }
        assert!(!files::snapshot(&data).is_empty(), "the data stays");
    }
}

/// It prints lines that fit the guest. Another `--guest` on data that has the machine is not used,
/// and it says so, and how to change it; the same one is no news.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dev_speaks_of_the_guest_that_runs() {
    let cluster = Plan::new(0).start_bare().await;
    let data = cluster.directory().join("dev-data");
    let port = ports::free_block(103);
    let rows: [(&str, &[&str], &[&str]); 3] = [
        (
            "counter",
            &["lockstep exec --machine kv", "lockstep query"],
            &["lockstep kv", "not used"],
        ),
        ("counter", &["lockstep exec --machine kv"], &["not used"]),
        (
            "guest-kv",
            &["is not used: machine kv runs counter", "--data-dir", "machine remove kv", "exec"],
            &["lockstep kv"],
        ),
    ];
    for (guest, said, not_said) in rows {
        let (dev, printed) = Dev::start_with(guest, "1", port, &data).await;
        program::assert_holds(guest, &printed, said);
        assert!(!not_said.iter().any(|part| printed.contains(part)), "{printed}");
        assert!(dev.end_by(Signal::TERM).await.success());
    }
}

/// Processes that name this folder on their command line.
fn processes_on(folder: &Path) -> usize {
    let folder = folder.to_str().expect("folders of tests are text");
    let processes = std::fs::read_dir("/proc").expect("the system shows its processes");
    let names = |process: std::io::Result<std::fs::DirEntry>| {
        let line = process.and_then(|process| std::fs::read(process.path().join("cmdline")));
        line.is_ok_and(|line| String::from_utf8_lossy(&line).contains(folder))
    };
    processes.map(names).filter(|names| *names).count()
}

/// The nodes of a `dev` that is killed stop by themselves, and leave their ports and folders to
/// the next one, which finds what was written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_a_killed_dev_stop() {
    let cluster = Plan::new(0).start_bare().await;
    let data = cluster.directory().join("dev-data");
    let port = ports::free_block(103);
    let dev = Dev::start("3", port, &data).await;
    assert_eq!(dev.kv(&["SET", "k", "v"]).await, "OK");
    dev.end_by(Signal::KILL).await;
    until("the nodes to end", SOON, async || match processes_on(&data) {
        0 => Ok(()),
        left => Err(format!("{left} are left")),
    })
    .await;
    let dev = Dev::start("3", port, &data).await;
    assert_eq!(dev.kv(&["GET", "k"]).await, "\"v\"");
    assert!(dev.end_by(Signal::TERM).await.success());
}

/// A node that shall stop with its standard input needs one that can end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_with_stdin_needs_a_pipe() {
    let mut cluster = Plan::new(0).start_bare().await;
    let id = cluster.prepare_another().await;
    cluster.node_mut(id).flags.push("--stop-with-stdin".to_owned());
    cluster.node_mut(id).refuses_to_start(&["standard input must be a pipe"]).await;
}

/// Where the data of node 1 is gone it forms no second cluster beside what the others have: it
/// ends, with all nodes, and says what to do. What the others have is as before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dev_does_not_hide_what_is_left() {
    let cluster = Plan::new(0).start_bare().await;
    let data = cluster.directory().join("dev-data");
    let port = ports::free_block(103);
    let dev = Dev::start("3", port, &data).await;
    assert_eq!(dev.kv(&["SET", "k", "v"]).await, "OK");
    assert!(dev.end_by(Signal::TERM).await.success());
    let kept = cluster.directory().join("kept");
    std::fs::rename(data.join("node-1"), &kept).expect("it can be moved");

    let (folder, port_text) = (data.display().to_string(), port.to_string());
    let call = ["dev", "--nodes", "3", "--port", &port_text, "--data-dir", &folder];
    let ran = tokio::time::timeout(SOON, program::run(call)).await.expect("it ends soon");
    let said = ["the data of node 1 is gone", &folder, "another --data-dir", "cluster remove 1"];
    ran.refused(&said);
    assert_eq!(processes_on(&data), 0, "it ends its nodes");

    std::fs::remove_dir_all(data.join("node-1")).expect("it was begun");
    std::fs::rename(&kept, data.join("node-1")).expect("it can be moved");
    let dev = Dev::start("3", port, &data).await;
    assert_eq!(dev.kv(&["GET", "k"]).await, "\"v\"");
    assert!(dev.end_by(Signal::TERM).await.success());
}
