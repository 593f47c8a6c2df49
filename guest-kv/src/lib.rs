//! The reference guest: an ordered map that answers SET, GET, DEL, EXISTS and PING as Redis 7.0
//! does, byte by byte.
//!
//! Commands are RESP2 arrays of bulk strings, replies are RESP2. A reply that is an error
//! (`-ERR ..`) counts as rejected, and leaves the state as it was. GET, EXISTS and PING are
//! queries too.
//!
//! It does not have Redis's other commands, types, databases, inline commands or RESP3.
//!
//! Invariant: time is the entry's. A key whose time has passed is absent from then on, whenever
//! its bytes are dropped.

mod command;
mod error;
mod export;
mod key;
mod request;
mod state;

use lockstep_guest_sdk::{Context, Rejection, Reply, StateMachine};

pub use command::Command;
pub use state::Kv;

impl StateMachine for Kv {
    const NAME: &'static str = "guest-kv";
    const SCHEMA_VERSION: u32 = export::SCHEMA_VERSION;
    const READ_ONLY: &'static [&'static str] = &["GET", "EXISTS", "PING"];
    const USES_TIME: bool = true;

    type Command<'a> = Command<'a>;

    fn apply(
        &mut self,
        context: &Context,
        command: Command<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Rejection> {
        self.drop_due(context.time_ms);
        match command {
            Command::Set(set) => self.set(context.time_ms, &set, reply)?,
            Command::Del(keys) => {
                let removed = keys.filter(|key| self.remove(context.time_ms, key)).count();
                write_integer(reply, removed);
            }
            read => self.read(context.time_ms, &read, reply)?,
        }
        Ok(())
    }

    fn query(
        &self,
        context: &Context,
        query: Command<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Rejection> {
        self.read(context.time_ms, &query, reply)
    }
}

impl Kv {
    /// Answers what changes nothing, and refuses the rest.
    fn read(
        &self,
        time_ms: u64,
        command: &Command<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Rejection> {
        match command {
            Command::Get(key) => write_bulk(reply, self.get(time_ms, key)),
            Command::Exists(keys) => {
                let found = keys.clone().filter(|key| self.get(time_ms, key).is_some()).count();
                write_integer(reply, found);
            }
            Command::Ping(None) => reply.push(b"+PONG\r\n"),
            Command::Ping(Some(message)) => write_bulk(reply, Some(message)),
            Command::Set(_) => return Err(error::not_a_query("set")),
            Command::Del(_) => return Err(error::not_a_query("del")),
        }
        Ok(())
    }
}

/// Writes a bulk string, or the null one.
fn write_bulk(reply: &mut Reply<'_>, value: Option<&[u8]>) {
    let Some(value) = value else { return reply.push(b"$-1\r\n") };
    write_number(reply, b'$', value.len());
    reply.push(value);
    reply.push(b"\r\n");
}

fn write_integer(reply: &mut Reply<'_>, number: usize) {
    write_number(reply, b':', number);
}

/// Writes a line of a type byte and a number, without the machinery of formatting. Up to three
/// digits, most of all numbers, go without a copy of variable length: that is a call out of the
/// sandbox.
fn write_number(reply: &mut Reply<'_>, kind: u8, number: usize) {
    let digit = |unit: usize| b"0123456789"[number / unit % 10];
    match number {
        0..10 => reply.push(&[kind, digit(1), b'\r', b'\n']),
        10..100 => reply.push(&[kind, digit(10), digit(1), b'\r', b'\n']),
        100..1000 => reply.push(&[kind, digit(100), digit(10), digit(1), b'\r', b'\n']),
        _ => {
            reply.push(&[kind]);
            write!(reply, "{number}\r\n");
        }
    }
}

#[cfg(target_family = "wasm")]
lockstep_guest_sdk::export!(Kv);
