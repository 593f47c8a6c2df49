//! A real Redis on a free loopback port, for as long as the test runs.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lockstep_not_run::not_run;

const SERVER: &str = "/usr/bin/redis-server";

/// A server and a connection to it. It ends with the value.
pub(crate) struct Redis {
    server: Child,
    connection: BufReader<TcpStream>,
}

impl Redis {
    /// Starts a server, or says that the comparison is not run.
    pub(crate) fn start() -> Option<Self> {
        if !std::path::Path::new(SERVER).exists() {
            not_run("redis-server is not installed");
            return None;
        }
        // Another process may take the port between its choice and the server's start.
        let started = (0..10).find_map(|_| Self::start_on(free_port()));
        Some(started.expect("redis-server starts on a free port"))
    }

    fn start_on(port: u16) -> Option<Self> {
        let port_text = port.to_string();
        let mut server = Command::new(SERVER)
            .args(["--bind", "127.0.0.1", "--port", &port_text, "--save", "", "--appendonly", "no"])
            .stdout(Stdio::piped())
            .current_dir(std::env::temp_dir())
            .spawn()
            .expect("redis-server can be started");
        let output = server.stdout.take().expect("its output was piped");
        let mut lines = BufReader::new(output).lines();
        let ready = lines.any(|line| line.is_ok_and(|line| line.contains("Ready to accept")));
        if !ready {
            // Its output ended, so it did too.
            let _ = server.wait();
            return None;
        }
        let stream =
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("a server that is ready");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout can be set");
        stream.set_nodelay(true).expect("a connection can be told not to wait");
        Some(Self { server, connection: BufReader::new(stream) })
    }

    /// Sends a request and returns the bytes of its reply.
    pub(crate) fn ask(&mut self, request: &[u8]) -> Vec<u8> {
        self.connection.get_mut().write_all(request).expect("redis-server reads");
        let mut reply = Vec::new();
        self.connection.read_until(b'\n', &mut reply).expect("redis-server answers");
        if let Some(length) = reply.strip_prefix(b"$") {
            let length = std::str::from_utf8(length).expect("a length is text").trim();
            if let Ok(length) = length.parse::<usize>() {
                let start = reply.len();
                reply.resize(start + length + 2, 0);
                self.connection.read_exact(&mut reply[start..]).expect("a whole reply");
            }
        }
        reply
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port is free");
    listener.local_addr().expect("a bound socket has an address").port()
}
