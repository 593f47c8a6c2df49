//! `Client`: one handle on a cluster, cheap to clone, for many tasks at once.
//!
//! Invariant: a command is sent again only after an error that says NOT_APPLIED.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lockstep_proto::v1;
use lockstep_proto::v1::client_client::ClientClient;
use tokio::time::{Instant, timeout_at};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::error::{Error, Outcome, is_broken_connection};
use crate::reason;
use crate::retry::Retry;
use crate::routes::{Link, Route, Routes};
use crate::stream::Stream;

/// Metadata key of requests that a node passes on.
pub const FORWARDED_HEADER: &str = "lockstep-forwarded";
/// Longest command or query, in bytes. Checked here too, because gRPC refuses what is much longer
/// without saying that nothing was applied.
pub const COMMAND_BYTES_MAX: usize = 1 << 20;

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// TCP connections to each node. One is enough for hundreds of callers; more let a server with
    /// idle cores read them in parallel.
    pub connections: usize,
    /// How long a command or query may take, retries included.
    pub timeout: Duration,
    /// How long an admin call may take, retries included: a module is compiled meanwhile.
    pub admin_timeout: Duration,
    /// How long one attempt to connect may take.
    pub connect_timeout: Duration,
    /// Commands that one [`Stream`] may have under way; more wait for a place.
    pub stream_in_flight_max: usize,
    /// The caller is a node that passes on a request of its own client. Each call is marked, so
    /// that no node passes it on again, and is attempted once, at the endpoint given: the client
    /// behind it is the one to try again.
    pub forwarder: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connections: 1,
            timeout: Duration::from_secs(5),
            admin_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(1),
            stream_in_flight_max: 16_384,
            forwarder: false,
        }
    }
}

/// A guest's reply to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executed {
    /// What the guest answered.
    pub reply: Bytes,
    /// The guest says that it refused the command.
    pub rejected: bool,
    /// Index of the log entry that held the command.
    pub index: u64,
}

impl From<v1::ExecuteReply> for Executed {
    fn from(reply: v1::ExecuteReply) -> Self {
        Self { reply: reply.reply, rejected: reply.rejected, index: reply.index }
    }
}

/// A guest's reply to a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// What the guest answered.
    pub reply: Bytes,
    /// The guest says that it refused the query.
    pub rejected: bool,
    /// The machine had applied the log up to here.
    pub applied_index: u64,
}

/// How fresh the answer to a query must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Reflects every command acknowledged before the query was sent.
    #[default]
    Linearizable,
    /// Whatever the asked node, one of the endpoints given, has applied.
    Stale,
}

/// A client of one cluster.
#[derive(Clone)]
pub struct Client {
    routes: Arc<Routes>,
    options: Options,
}

/// One call, whatever it asks.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) route: Route,
    /// Whatever became of it, sending it again does no harm: it changes nothing, or doing it twice
    /// is the same as doing it once.
    pub(crate) idempotent: bool,
    pub(crate) deadline: Instant,
    /// It is passed on for another client.
    pub(crate) forwarded: bool,
}

impl Call {
    /// Wraps a message with what is left of the deadline (`grpc-timeout`).
    pub(crate) fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        request.set_timeout(self.deadline.saturating_duration_since(Instant::now()));
        if self.forwarded {
            mark_forwarded(&mut request);
        }
        request
    }
}

/// Marks a request that a node passes on, so that it is passed on no further.
pub(crate) fn mark_forwarded<M>(request: &mut Request<M>) {
    request.metadata_mut().insert(FORWARDED_HEADER, MetadataValue::from_static("1"));
}

/// Refuses a command or query that every node would refuse, before it is sent.
pub(crate) fn check_size(what: &str, bytes: &Bytes) -> Result<(), Error> {
    if bytes.len() <= COMMAND_BYTES_MAX {
        return Ok(());
    }
    let length = bytes.len();
    let text = format!("{what} has {length} bytes, the limit is {COMMAND_BYTES_MAX}");
    Err(Error::local(Outcome::NotApplied, reason::TOO_LARGE, Code::ResourceExhausted, text))
}

impl Client {
    /// A client for the cluster that has these endpoints, each `host:port`. It dials at first use;
    /// the errors of this function are about the addresses themselves.
    pub fn connect<I>(endpoints: I) -> Result<Self, Error>
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        Self::with_options(endpoints, Options::default())
    }

    /// The same, with options.
    pub fn with_options<I>(endpoints: I, options: Options) -> Result<Self, Error>
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        let endpoints = endpoints.into_iter().map(Into::into).collect();
        Ok(Self { routes: Arc::new(Routes::new(endpoints, options.clone())?), options })
    }

    /// The same client, on the same connections, whose calls of every kind take `timeout` at most.
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        let options = Options { timeout, admin_timeout: timeout, ..self.options.clone() };
        Self { routes: Arc::clone(&self.routes), options }
    }

    /// Orders one command and waits for the guest's reply to it.
    pub async fn execute(
        &self,
        machine: &str,
        command: impl Into<Bytes>,
    ) -> Result<Executed, Error> {
        let message = v1::ExecuteRequest {
            machine: machine.to_owned(),
            command: command.into(),
            session: None,
        };
        check_size("the command", &message.command)?;
        let call = self.call_for(Route::Leader, false, self.options.timeout);
        let attempt = async |channel| {
            let mut service = ClientClient::new(channel);
            service.execute(call.request(message.clone())).await
        };
        let reply = self.call(call, attempt).await?;
        Ok(reply.into_inner().into())
    }

    /// Asks a machine without changing it.
    pub async fn query(
        &self,
        machine: &str,
        query: impl Into<Bytes>,
        consistency: Consistency,
    ) -> Result<Answered, Error> {
        let (route, wire) = match consistency {
            Consistency::Linearizable => (Route::Leader, v1::Consistency::Linearizable),
            Consistency::Stale => (Route::Any, v1::Consistency::Stale),
        };
        let message = v1::QueryRequest {
            machine: machine.to_owned(),
            query: query.into(),
            consistency: wire.into(),
        };
        check_size("the query", &message.query)?;
        let call = self.call_for(route, true, self.options.timeout);
        let attempt = async |channel| {
            let mut service = ClientClient::new(channel);
            service.query(call.request(message.clone())).await
        };
        let v1::QueryReply { reply, rejected, applied_index } =
            self.call(call, attempt).await?.into_inner();
        Ok(Answered { reply, rejected, applied_index })
    }

    /// Opens a pipelined stream of commands, for many callers at once. Each call of this function
    /// opens another one. Must be called within a tokio runtime, which runs the stream.
    pub fn stream(&self) -> Stream {
        Stream::open(self.clone())
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn routes(&self) -> &Routes {
        &self.routes
    }

    pub(crate) fn call_for(&self, route: Route, idempotent: bool, timeout: Duration) -> Call {
        let forwarded = self.options.forwarder;
        Call { route, idempotent, deadline: Instant::now() + timeout, forwarded }
    }

    /// Makes attempts until one succeeds, fails for good, or the deadline leaves no time for
    /// another; then the last error says why.
    pub(crate) async fn call<T, F>(
        &self,
        call: Call,
        mut attempt: impl FnMut(Channel) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut retry = Retry::new();
        // A long call may take long, but a node that isn't there is not waited for any longer than
        // by a short one.
        let connected_until = call.deadline.min(Instant::now() + self.options.timeout);
        // What a node that is there says tells more than that another is not.
        let mut answered = None;
        loop {
            let link = self.routes.link(call.route);
            let error = match self.once(&link, call.deadline, &mut attempt).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if self.options.forwarder {
                return Err(error);
            }
            self.routes.learn(&link, &error);
            let until = match error.reason.as_str() {
                reason::UNREACHABLE => connected_until,
                _ => call.deadline,
            };
            if !self.may_repeat(call, &error) || !retry.pause(&error, until).await {
                return Err(answered.filter(|_| tells_little(call, &error)).unwrap_or(error));
            }
            if error.reason != reason::UNREACHABLE {
                answered = Some(error);
            }
        }
    }

    fn may_repeat(&self, call: Call, error: &Error) -> bool {
        // A lone node that is in no cluster will not get into one by waiting.
        if error.reason == reason::UNINITIALIZED && !self.routes.has_others() {
            return false;
        }
        error.is_transient() || (call.idempotent && error.is_transient_if_idempotent())
    }

    async fn once<T, F>(
        &self,
        link: &Link,
        deadline: Instant,
        attempt: &mut impl FnMut(Channel) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let connections = match timeout_at(deadline, link.connections()).await {
            Ok(Ok(connections)) => connections,
            Ok(Err(error)) => {
                self.routes.forget(link);
                return Err(error);
            }
            Err(_) => {
                let text = format!("no connection to {} before the deadline", link.address);
                return Err(Error::unreachable(text));
            }
        };
        match timeout_at(deadline, attempt(connections.channel())).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(status)) => {
                if is_broken_connection(&status) {
                    self.routes.forget(link);
                }
                Err(Error::from_status(&status))
            }
            Err(_) => Err(Error::deadline_after_sending()),
        }
    }
}

/// True for an error behind which the answer of an earlier attempt should be shown: the node of
/// this one is not there, or the deadline came before its answer, which does not matter to a call
/// that may be repeated.
fn tells_little(call: Call, error: &Error) -> bool {
    let late = error.reason == reason::DEADLINE_EXCEEDED && error.outcome == Outcome::Unknown;
    error.reason == reason::UNREACHABLE || (call.idempotent && late)
}
