//! `Client`: one handle on a cluster, cheap to clone, for many tasks at once.
//!
//! Invariants: a command is sent again only after an error that says NOT_APPLIED. A read that has
//! waited for a node asks another one as well; no error of a read says that it may be applied.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use lockstep_proto::v1;
use lockstep_proto::v1::client_client::ClientClient;
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::attempts::{Attempts, Next};
use crate::error::{Error, Outcome, is_broken_connection};
use crate::reason;
use crate::routes::{Link, Route, Routes};
use crate::stream::Stream;

/// Metadata key of requests that a node passes on.
pub const FORWARDED_HEADER: &str = "lockstep-forwarded";
/// Metadata key of requests that a node shall pass on to the leader, whatever its own settings:
/// the client cannot reach the leader's address.
pub const FORWARD_HEADER: &str = "lockstep-forward";
/// Longest command or query, in bytes. Checked here too, because gRPC refuses what is much longer
/// without saying that nothing was applied.
pub const COMMAND_BYTES_MAX: usize = 1 << 20;

/// How long a read waits for a node before it asks another one as well.
const HEDGE_AFTER: Duration = Duration::from_millis(500);

/// A node is given a tenth less time than is left, at most by this, so that what it says about the
/// command comes before the client gives up.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(100);

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
    /// How long one attempt to connect may take, until the node has said something.
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

/// What sending a call twice would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It might be applied twice.
    Once,
    /// The same as sending it once.
    Repeatable,
    /// Nothing: it only reads.
    Read,
}

/// One call, whatever it asks.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) route: Route,
    pub(crate) kind: Kind,
    pub(crate) deadline: Instant,
    /// It is passed on for another client.
    pub(crate) forwarded: bool,
    /// The node is asked to pass it on.
    pub(crate) forward: bool,
}

impl Call {
    /// Wraps a message with what is left for the node (`grpc-timeout`).
    pub(crate) fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        request.set_timeout(left_for_node(self.deadline));
        mark(&mut request, self.forwarded, self.forward);
        request
    }
}

/// How much of the time until the deadline the node may take.
pub(crate) fn left_for_node(deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    left - (left / 10).min(ANSWER_TIME_MAX)
}

/// Marks a request that a node has passed on, so that it is passed on no further, or one that a
/// node shall pass on.
pub(crate) fn mark<M>(request: &mut Request<M>, forwarded: bool, forward: bool) {
    let marks = [(FORWARDED_HEADER, forwarded), (FORWARD_HEADER, forward)];
    for (key, _) in marks.into_iter().filter(|(_, is_set)| *is_set) {
        request.metadata_mut().insert(key, MetadataValue::from_static("1"));
    }
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
        let call = self.call_for(Route::Leader, Kind::Once, self.options.timeout);
        let attempt = async |channel, call: Call| {
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
        let call = self.call_for(route, Kind::Read, self.options.timeout);
        let attempt = async |channel, call: Call| {
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

    pub(crate) fn call_for(&self, route: Route, kind: Kind, timeout: Duration) -> Call {
        let forwarded = self.options.forwarder;
        Call { route, kind, deadline: Instant::now() + timeout, forwarded, forward: false }
    }

    /// Makes attempts until one succeeds, fails for good, or the deadline leaves no time for
    /// another; then the last error says why.
    pub(crate) async fn call<T, F>(
        &self,
        call: Call,
        attempt: impl Fn(Channel, Call) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let result = match call.kind {
            _ if self.options.forwarder => {
                self.once(&self.routes.link(call.route), call, &attempt).await
            }
            Kind::Once | Kind::Repeatable => self.one_by_one(call, attempt).await,
            Kind::Read => self.hedged(call, attempt).await,
        };
        result.map_err(|error| match call.kind {
            Kind::Once | Kind::Repeatable => self.routes.explain(error),
            Kind::Read => self.routes.explain(error.of_read()),
        })
    }

    /// One attempt after the other.
    async fn one_by_one<T, F>(
        &self,
        call: Call,
        attempt: impl Fn(Channel, Call) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut attempts = self.attempts(&call);
        loop {
            let link = self.routes.link(call.route);
            let error = match self.once(&link, call, &attempt).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            self.routes.learn(&link, &error);
            let is_led = error.leader_addr.is_some();
            match attempts.after(error, is_led) {
                // Even a wait that is over takes the timer a millisecond.
                Next::At(at) if at <= Instant::now() => {}
                Next::At(at) => sleep_until(at).await,
                Next::TooLate | Next::Never => return Err(attempts.told()),
            }
        }
    }

    /// The same for a read, which asks another node as well when one takes its time; the first
    /// answer counts.
    async fn hedged<T, F>(
        &self,
        call: Call,
        attempt: impl Fn(Channel, Call) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut attempts = self.attempts(&call);
        let mut running = FuturesUnordered::new();
        let mut asked = Vec::new();
        let mut next = Instant::now();
        loop {
            let now = Instant::now();
            if now >= call.deadline {
                return Err(attempts.told());
            }
            if now >= next {
                next = now + HEDGE_AFTER;
                if let Some(link) = self.routes.link_besides(call.route, &asked) {
                    asked.push(link.address.clone());
                    let attempt = &attempt;
                    running.push(async move {
                        let result = self.once(&link, call, attempt).await;
                        (link, result)
                    });
                }
            }
            let done = tokio::select! {
                biased;
                Some(done) = running.next() => done,
                () = sleep_until(next.min(call.deadline)) => continue,
            };
            let error = match done {
                (_, Ok(value)) => return Ok(value),
                (link, Err(error)) => {
                    asked.retain(|address| *address != link.address);
                    self.routes.learn(&link, &error);
                    error
                }
            };
            let is_led = error.leader_addr.as_ref().is_some_and(|leader| !asked.contains(leader));
            match attempts.after(error, is_led) {
                Next::At(at) => next = next.min(at),
                // Whoever is being asked may answer yet.
                Next::TooLate if !running.is_empty() => next = call.deadline,
                Next::TooLate | Next::Never => return Err(attempts.told()),
            }
        }
    }

    fn attempts(&self, call: &Call) -> Attempts {
        Attempts::new(call, self.options.timeout, !self.routes.has_others())
    }

    async fn once<T, F>(
        &self,
        link: &Link,
        call: Call,
        attempt: &impl Fn(Channel, Call) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let connections = match timeout_at(call.deadline, link.connections()).await {
            Ok(Ok(connections)) => connections,
            Ok(Err(error)) => {
                self.routes.cannot_reach(link, &error);
                return Err(error);
            }
            Err(_) => {
                let text = format!("no connection to {} before the deadline", link.address);
                return Err(Error::unreachable(text));
            }
        };
        let call = Call { forward: link.forward, ..call };
        match timeout_at(call.deadline, attempt(connections.channel(), call)).await {
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
