//! `lockstep kv`: a command in Redis's words to a machine that runs `guest-kv`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::process::ExitCode;

use anyhow::Context as _;
use lockstep_client::Consistency;
use lockstep_client::resp::{Reply, encode_command};

use super::endpoint::Endpoint;
use super::output::say;

/// Commands that change nothing; they go as linearizable queries, which write no log entry.
const READS: [&[u8]; 3] = [b"GET", b"EXISTS", b"PING"];

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    endpoint: Endpoint,
    /// Machine that runs guest-kv
    #[arg(long, default_value = "kv", value_name = "NAME")]
    machine: String,
    /// The command and its arguments, as `SET key value`
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD ARGS")]
    words: Vec<OsString>,
}

impl Arguments {
    #[cfg(test)]
    pub(super) fn words(&self) -> &[OsString] {
        &self.words
    }
}

/// Prints the reply; an error reply of the guest is a failure for the exit code.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { endpoint, machine, words } = arguments;
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    let client = endpoint.client()?;
    let command = encode_command(&words);
    let reply = if is_read(words[0]) {
        client.query(&machine, command, Consistency::Linearizable).await?.reply
    } else {
        client.execute(&machine, command).await?.reply
    };
    let reply = Reply::parse(&reply)
        .with_context(|| format!("machine {machine:?} does not speak RESP: use `lockstep exec`"))?;
    say!("{}", reply.print());
    Ok(if reply.is_error() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn is_read(name: &[u8]) -> bool {
    READS.iter().any(|read| read.eq_ignore_ascii_case(name))
}
