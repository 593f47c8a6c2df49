//! One client of a system under test: writes and reads a key, and checks what comes back.
//!
//! Both systems are called through generated tonic clients and nothing else, over the same number
//! of connections, so that a difference between them is a difference between the servers.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::future::try_join_all;
use lockstep_proto::v1::client_client::ClientClient;
use lockstep_proto::v1::{Consistency, ExecuteRequest, QueryRequest};
use tonic::transport::{Channel, Endpoint};

use crate::args::{Contender, Kind, Mode};
use crate::etcd::api::kv_client::KvClient;
use crate::etcd::api::{PutRequest, RangeRequest};
use crate::lockstep::MACHINE;
use crate::stream::{self, StreamCaller};

/// Connections that all clients of a contender share.
pub(crate) const CONNECTIONS: usize = 4;
/// Bytes of a key.
pub(crate) const KEY_BYTES: usize = 16;
/// Bytes of a value.
pub(crate) const VALUE_BYTES: usize = 100;
/// How long a node may take to accept a connection.
const CONNECT_WAIT: Duration = Duration::from_secs(1);

/// A client with at most one request in flight.
#[derive(Debug)]
pub(crate) enum Caller {
    Etcd(KvClient<Channel>),
    Unary(ClientClient<Channel>),
    Stream(StreamCaller),
}

/// Opens a connection to a node.
pub(crate) async fn connect(address: SocketAddr) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    let channel = endpoint.connect_timeout(CONNECT_WAIT).connect().await;
    channel.with_context(|| format!("connecting to {address}"))
}

/// Makes `count` callers of the node at `address`, spread evenly over the connections.
pub(crate) async fn callers(
    contender: Contender,
    address: SocketAddr,
    count: usize,
) -> Result<Vec<Caller>> {
    let connections = CONNECTIONS.min(count);
    let channels = try_join_all((0..connections).map(|_| connect(address))).await?;
    let mut callers = Vec::with_capacity(count);
    for (place, channel) in channels.into_iter().enumerate() {
        let share = count / connections + usize::from(place < count % connections);
        callers.extend(share_channel(contender, channel, share).await?);
    }
    Ok(callers)
}

/// Makes `count` callers on one connection.
pub(crate) async fn share_channel(
    contender: Contender,
    channel: Channel,
    count: usize,
) -> Result<Vec<Caller>> {
    Ok(match (contender.system.kind(), contender.mode) {
        (Kind::Etcd, _) => {
            vec![KvClient::new(channel); count].into_iter().map(Caller::Etcd).collect()
        }
        (Kind::Lockstep, Mode::Unary) => {
            vec![ClientClient::new(channel); count].into_iter().map(Caller::Unary).collect()
        }
        (Kind::Lockstep, Mode::Stream) => {
            stream::open(channel, count).await?.into_iter().map(Caller::Stream).collect()
        }
    })
}

impl Caller {
    /// Writes `value` under `key`; returns once it is durable on a quorum.
    pub(crate) async fn write(&mut self, key: Bytes, value: Bytes) -> Result<()> {
        let reply = match self {
            Self::Etcd(client) => {
                client.put(PutRequest { key, value }).await?;
                return Ok(());
            }
            Self::Unary(client) => {
                client.execute(execute(&[b"SET", &key, &value])).await?.into_inner()
            }
            Self::Stream(caller) => caller.execute(execute(&[b"SET", &key, &value])).await?,
        };
        ensure!(reply.reply == b"+OK\r\n"[..], "SET answered {:?}", reply.reply);
        Ok(())
    }

    /// Reads `key` linearizably; fails unless a whole value comes back.
    ///
    /// A stream carries commands alone, so there the read goes through the log.
    pub(crate) async fn read(&mut self, key: Bytes) -> Result<()> {
        let reply = match self {
            Self::Etcd(client) => {
                let reply = client.range(RangeRequest { key, serializable: false }).await?;
                let found = reply.into_inner().kvs.pop().context("no such key")?;
                ensure!(found.value.len() == VALUE_BYTES, "another value");
                return Ok(());
            }
            Self::Unary(client) => client.query(query(&[b"GET", &key])).await?.into_inner().reply,
            Self::Stream(caller) => caller.execute(execute(&[b"GET", &key])).await?.reply,
        };
        ensure!(reply.len() == bulk_bytes(VALUE_BYTES), "GET answered {reply:?}");
        Ok(())
    }
}

fn execute(words: &[&[u8]]) -> ExecuteRequest {
    ExecuteRequest { machine: MACHINE.to_owned(), command: array(words), session: None }
}

fn query(words: &[&[u8]]) -> QueryRequest {
    let consistency = Consistency::Linearizable.into();
    QueryRequest { machine: MACHINE.to_owned(), query: array(words), consistency }
}

/// A command as `guest-kv` reads it: an array of bulk strings of the Redis protocol (RESP2).
fn array(words: &[&[u8]]) -> Bytes {
    let mut command = Vec::with_capacity(64 + words.iter().map(|word| word.len()).sum::<usize>());
    command.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        command.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        command.extend_from_slice(word);
        command.extend_from_slice(b"\r\n");
    }
    command.into()
}

/// Bytes of a bulk string that holds `length` bytes, as a reply.
fn bulk_bytes(length: usize) -> usize {
    format!("${length}\r\n").len() + length + 2
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commands are what a Redis client would send.
    #[test]
    fn commands_are_resp_arrays() {
        assert_eq!(
            array(&[b"SET", b"k", b"v w"])[..],
            b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$3\r\nv w\r\n"[..]
        );
        assert_eq!(bulk_bytes(3), b"$3\r\nabc\r\n".len());
    }
}
