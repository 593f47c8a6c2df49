//! `lockstep kv`: a command in Redis's words to a machine that runs `guest-kv`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::CommandFactory as _;
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
    /// The command and its arguments, as `SET key value`; flags of lockstep come before it
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD ARGS")]
    words: Vec<OsString>,
}

impl Arguments {
    /// Refuses a flag of lockstep itself among the words: it was meant for lockstep, which would
    /// talk to another cluster without it. After `--` every word is one of the command. `line` is
    /// all of the command line, which ends with the words.
    pub(super) fn check(&self, line: &[OsString]) -> Result<(), String> {
        let before = line.len().checked_sub(self.words.len() + 1);
        if before.is_some_and(|before| line[before] == "--") {
            return Ok(());
        }
        for word in &self.words {
            let text = word.to_string_lossy();
            let flag = text.split('=').next().unwrap_or_default();
            if flag.starts_with('-') && is_own_flag(flag) {
                return Err(format!(
                    "{flag} is a flag of lockstep: write it before the command, as in `lockstep \
                     kv {flag} ... GET key`. If it is a word of the command: `lockstep kv -- SET \
                     key {flag}`"
                ));
            }
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn words(&self) -> &[OsString] {
        &self.words
    }
}

fn is_own_flag(flag: &str) -> bool {
    let mut cli = super::Cli::command();
    cli.build();
    let kv = cli.find_subcommand("kv").expect("this is it");
    let is_flag = |argument: &clap::Arg| {
        let long = argument.get_long().is_some_and(|long| flag.strip_prefix("--") == Some(long));
        long || argument.get_short().is_some_and(|short| flag == format!("-{short}"))
    };
    kv.get_arguments().any(is_flag)
}

/// Prints the reply; an error reply of the guest is a failure for the exit code.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let words: Vec<&[u8]> = arguments.words.iter().map(|word| word.as_bytes()).collect();
    let client = arguments.endpoint.client()?;
    let machine = &arguments.machine;
    let command = encode_command(&words);
    let reply = if is_read(words[0]) {
        client.query(machine, command, Consistency::Linearizable).await?.reply
    } else {
        client.execute(machine, command).await?.reply
    };
    let reply = Reply::parse(&reply)
        .with_context(|| format!("machine {machine:?} does not speak RESP: use `lockstep exec`"))?;
    say!("{}", reply.print());
    Ok(if reply.is_error() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn is_read(name: &[u8]) -> bool {
    READS.iter().any(|read| read.eq_ignore_ascii_case(name))
}
