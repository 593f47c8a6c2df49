//! The `lockstep` program itself, against a node whose answers are scripted: what it prints where,
//! and with which code it exits.

#[path = "../../clients/rust/tests/fake/mod.rs"]
mod fake;

use std::process::Stdio;

use fake::{Answer, Node};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tonic::Code;

struct Ran {
    code: Option<i32>,
    out: Vec<u8>,
    err: String,
}

async fn lockstep(arguments: &[&str], input: &[u8]) -> Ran {
    let mut process = Command::new(env!("CARGO_BIN_EXE_lockstep"))
        .args(arguments)
        .env_remove("LOCKSTEP_ENDPOINT")
        .env_remove("LOCKSTEP_LOG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("cargo built the program");
    // A program that does not read its input may have ended already.
    let _ = process.stdin.take().expect("it is piped").write_all(input).await;
    let output = process.wait_with_output().await.expect("it was started");
    let err = String::from_utf8(output.stderr).expect("messages are text");
    Ran { code: output.status.code(), out: output.stdout, err }
}

/// What nobody reads is not printed, and no failure; what a full disk does not take is one.
#[test]
fn standard_output_may_be_closed_or_full() {
    use std::fs::OpenOptions;
    use std::process::Command;
    let (reader, closed) = std::io::pipe().expect("a pipe can be made");
    drop(reader);
    let full = OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
    let rows = [
        (Stdio::from(closed), Some(0), ""),
        (Stdio::from(full), Some(1), "error: cannot write to standard output"),
    ];
    for (out, code, message) in rows {
        let mut program = Command::new(env!("CARGO_BIN_EXE_lockstep"));
        let output = program.arg("version").stdout(out).output().expect("cargo built it");
        let err = String::from_utf8(output.stderr).expect("messages are text");
        assert_eq!(output.status.code(), code, "{err}");
        assert!(err.starts_with(message) && err.lines().count() <= 1, "{err}");
    }
}

/// `kv` prints replies as redis-cli does; an error reply of the guest exits with 1.
#[tokio::test]
async fn kv_prints_like_redis_cli() {
    let node = Node::start(|_, command| match command {
        b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n" => Answer::Say(b"+OK\r\n"),
        b"*2\r\n$3\r\nget\r\n$1\r\nk\r\n" => Answer::Say(b"$1\r\nv\r\n"),
        b"*2\r\n$3\r\nGET\r\n$1\r\nx\r\n" => Answer::Say(b"$-1\r\n"),
        b"*2\r\n$3\r\nDEL\r\n$1\r\nk\r\n" => Answer::Say(b":1\r\n"),
        _ => Answer::Say(b"-ERR unknown command\r\n"),
    })
    .await;
    let rows: [(&[&str], &str, i32); 5] = [
        (&["SET", "k", "v"], "OK\n", 0),
        (&["get", "k"], "\"v\"\n", 0),
        (&["GET", "x"], "(nil)\n", 0),
        (&["DEL", "k"], "(integer) 1\n", 0),
        (&["NOPE"], "(error) ERR unknown command\n", 1),
    ];
    for (command, expected, code) in rows {
        let arguments = [&["kv", "--endpoint", node.address.as_str()], command].concat();
        let ran = lockstep(&arguments, b"").await;
        assert_eq!(String::from_utf8(ran.out).unwrap(), expected, "{command:?} {}", ran.err);
        assert_eq!(ran.code, Some(code), "{command:?}");
    }
}

/// `exec` and `query` take text, hexadecimal, a file or standard input, and print all three ways.
#[tokio::test]
async fn bytes_go_in_and_out() {
    let node = Node::start(|_, _| Answer::Echo).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"\xff\x00").unwrap();
    let path = file.path().to_str().unwrap();
    let rows: [(&[&str], &[u8], &[u8]); 7] = [
        (&["text"], b"", b"text\n"),
        (&["--hex", "00fF"], b"", b"00ff\n"),
        (&["--hex", "--raw", "00ff"], b"", b"\x00\xff"),
        (&["--file", path], b"", b"\\xff\\x00\n"),
        (&["--file", path, "--raw"], b"", b"\xff\x00"),
        (&["--hex"], b"ab", b"6162\n"),
        (&[], b"from input", b"from input\n"),
    ];
    for subcommand in ["exec", "query"] {
        for (command, input, expected) in rows {
            let fixed = [subcommand, "--machine", "m", "--endpoint", node.address.as_str()];
            let ran = lockstep(&[&fixed, command].concat(), input).await;
            assert_eq!(ran.out, expected, "{subcommand} {command:?} {}", ran.err);
            assert_eq!(ran.code, Some(0));
        }
    }
}

/// A failure is one sentence on standard error, with code 1, and nothing on standard output.
#[tokio::test]
async fn failures_go_to_standard_error() {
    let node =
        Node::start(|_, _| Answer::Fail(Code::NotFound, "NO_SUCH_MACHINE", "NOT_APPLIED", None))
            .await;
    let endpoint = node.address.as_str();
    let serve = ["serve", "--node-id", "1", "--data-dir", "unused", "--peer-addr", "127.0.0.1:1"];
    let rows: [(&[&str], &str); 5] = [
        (&["kv", "--endpoint", endpoint, "GET", "k"], "scripted"),
        (&["kv", "--endpoint", "127.0.0.1:1", "--timeout", "1", "GET", "k"], "cannot connect"),
        (&["kv", "--endpoint", "nonsense", "GET", "k"], "nonsense"),
        (&[&serve[..], &["--client-addr", "0.0.0.0:1"]].concat(), "--insecure"),
        (&[&serve[..], &["--client-addr", "127.0.0.1:2", "--config", "none"]].concat(), "none"),
    ];
    for (arguments, expected) in rows {
        let ran = lockstep(arguments, b"").await;
        assert_eq!((ran.code, ran.out.len()), (Some(1), 0), "{arguments:?}");
        assert!(ran.err.starts_with("error: "), "{}", ran.err);
        assert!(ran.err.contains(expected), "{}", ran.err);
        assert_eq!(ran.err.trim_end().lines().count(), 1, "{}", ran.err);
    }
}

/// Wrong usage exits with 2.
#[tokio::test]
async fn wrong_usage_exits_with_2() {
    for arguments in [&["unknown"][..], &["kv"], &["status", "--unknown-flag"]] {
        let ran = lockstep(arguments, b"").await;
        assert_eq!(ran.code, Some(2), "{arguments:?}");
    }
}
