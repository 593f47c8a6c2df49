//! `lockstep exec` and `lockstep query`: bytes to a machine, bytes back.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use hex::FromHexError;
use lockstep_client::Consistency;
use tokio::io::AsyncReadExt as _;

use super::endpoint::Endpoint;

#[derive(Debug, clap::Args)]
pub(super) struct ExecArguments {
    #[command(flatten)]
    message: Message,
}

#[derive(Debug, clap::Args)]
pub(super) struct QueryArguments {
    #[command(flatten)]
    message: Message,
    /// Accept whatever the asked node has applied, however old
    #[arg(long)]
    stale: bool,
}

#[derive(Debug, clap::Args)]
struct Message {
    #[command(flatten)]
    endpoint: Endpoint,
    /// The machine
    #[arg(long, value_name = "NAME")]
    machine: String,
    /// What to send; without it and without --file, standard input is sent
    input: Option<String>,
    /// Send the bytes of a file
    #[arg(long, value_name = "FILE", conflicts_with = "input")]
    file: Option<PathBuf>,
    /// INPUT is hexadecimal, and the reply is printed so
    #[arg(long)]
    hex: bool,
    /// Print the bytes of the reply as they are
    #[arg(long)]
    raw: bool,
}

pub(super) async fn run_exec(arguments: ExecArguments) -> anyhow::Result<ExitCode> {
    let message = arguments.message;
    let client = message.endpoint.client()?;
    let executed = client.execute(&message.machine, message.input().await?).await?;
    message.print(&executed.reply, executed.rejected)
}

pub(super) async fn run_query(arguments: QueryArguments) -> anyhow::Result<ExitCode> {
    let QueryArguments { message, stale } = arguments;
    let client = message.endpoint.client()?;
    let consistency = if stale { Consistency::Stale } else { Consistency::Linearizable };
    let input = message.input().await?;
    let answered = client.query(&message.machine, input, consistency).await?;
    message.print(&answered.reply, answered.rejected)
}

impl Message {
    async fn input(&self) -> anyhow::Result<Bytes> {
        if let Some(text) = &self.input {
            return if self.hex { decode_hex(text) } else { Ok(Bytes::from(text.clone())) };
        }
        if let Some(path) = &self.file {
            let bytes = tokio::fs::read(path).await;
            return Ok(bytes.with_context(|| format!("cannot read {}", path.display()))?.into());
        }
        let mut bytes = Vec::new();
        let read = tokio::io::stdin().read_to_end(&mut bytes).await;
        read.context("cannot read standard input")?;
        Ok(bytes.into())
    }

    fn print(&self, reply: &[u8], rejected: bool) -> anyhow::Result<ExitCode> {
        let mut out = std::io::stdout().lock();
        if self.raw {
            out.write_all(reply)?;
        } else if self.hex {
            writeln!(out, "{}", hex::encode(reply))?;
        } else {
            writeln!(out, "{}", text(reply))?;
        }
        out.flush()?;
        if rejected {
            eprintln!("the guest rejected this");
        }
        Ok(if rejected { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

/// Text as it is; bytes that are no text escaped, so that nothing is lost.
fn text(reply: &[u8]) -> String {
    match std::str::from_utf8(reply) {
        Ok(text) => text.to_owned(),
        Err(_) => reply.escape_ascii().to_string(),
    }
}

fn decode_hex(text: &str) -> anyhow::Result<Bytes> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    match hex::decode(&digits) {
        Ok(bytes) => Ok(bytes.into()),
        Err(FromHexError::OddLength) => {
            bail!("the input has {} hexadecimal digits: two are needed for each byte", digits.len())
        }
        Err(_) => bail!("the input is not hexadecimal: use 0 to 9 and a to f, or leave --hex out"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hexadecimal is read in either case, with spaces; anything else is refused.
    #[test]
    fn hex_is_decoded() {
        assert_eq!(decode_hex("00fF 10").unwrap(), &[0, 255, 16][..]);
        assert_eq!(decode_hex("").unwrap(), "");
        assert!(decode_hex("0").is_err());
        assert!(decode_hex("0g").is_err());
        assert!(decode_hex("\u{e9}").is_err());
    }

    /// Replies that are no text lose nothing when printed as text.
    #[test]
    fn text_is_printed() {
        assert_eq!(text("h\u{e9}".as_bytes()), "h\u{e9}");
        assert_eq!(text(&[0xff, b'a']), "\\xffa");
    }
}
