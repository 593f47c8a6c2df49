//! Passing requests on to the leader: one hop, on connections that are kept.
//!
//! It does not look for the leader and does not try again. The replica says who leads; when the
//! leader can't be reached, the error goes back to the client, which knows what it wants.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use lockstep_client::{Client, Executed, Options, Stream};

/// The connections to the node that was the leader when last asked.
#[derive(Default)]
pub(super) struct Forward {
    leader: Mutex<Option<Leader>>,
}

#[derive(Clone)]
struct Leader {
    address: String,
    client: Client,
    commands: Stream,
}

impl Forward {
    /// A client of the leader, whose calls take `timeout` at most.
    pub(super) fn client(
        &self,
        address: &str,
        timeout: Duration,
    ) -> Result<Client, lockstep_client::Error> {
        Ok(self.leader(address)?.client.with_timeout(timeout))
    }

    /// Passes a command on. All clients of this node share one stream: commands enter the leader's
    /// log in the order in which the returned futures are first polled.
    pub(super) async fn execute(
        &self,
        address: &str,
        machine: &str,
        command: Bytes,
        timeout: Duration,
    ) -> Result<Executed, lockstep_client::Error> {
        let commands = self.leader(address)?.commands;
        commands.execute_within(machine, command, timeout).await
    }

    fn leader(&self, address: &str) -> Result<Leader, lockstep_client::Error> {
        // A panic while it was held leaves a whole value behind: it is only ever replaced.
        let mut known = self.leader.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(leader) = known.as_ref().filter(|leader| leader.address == address) {
            return Ok(leader.clone());
        }
        let client = connect(address)?;
        let commands = client.stream();
        let leader = Leader { address: address.to_owned(), client, commands };
        *known = Some(leader.clone());
        Ok(leader)
    }
}

/// A client that asks one node, once, and marks its requests as passed on.
pub(super) fn connect(address: &str) -> Result<Client, lockstep_client::Error> {
    Client::with_options([address], Options { forwarder: true, ..Options::default() })
}
