//! Which node to ask, and the connections to it.
//!
//! Connections are dialled when first needed, one dial for all who wait, and forgotten when they
//! break: tonic would redial by itself, but one waiting caller after the other.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::Shared;
use tonic::transport::{Channel, Endpoint};

use crate::client::Options;
use crate::error::Error;
use crate::reason;

/// Flow-control windows, in bytes: far above bandwidth times delay of a data centre, so that the
/// server's own limits are what holds a stream back.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// A peer that is stopped, or cut off without a reset, is noticed after interval plus timeout.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(4);
/// Calls that may wait for a connection to take them. tonic's buffer is a queue of its own; this
/// keeps it from being the limit.
const CALL_BUFFER: usize = 4096;

/// Whom a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// The leader, as far as it is known, else any endpoint.
    Leader,
    /// Any of the endpoints that were given.
    Any,
    /// The first endpoint that was given, and no other.
    First,
}

/// The connections to one node.
pub(crate) struct Connections {
    channels: Vec<Channel>,
    next: AtomicUsize,
}

impl Connections {
    /// One of them, in turn.
    pub(crate) fn channel(&self) -> Channel {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        self.channels[turn % self.channels.len()].clone()
    }
}

type Dial = Shared<Pin<Box<dyn Future<Output = Result<Arc<Connections>, Error>> + Send>>>;

/// A node's address and the connections to it, which may still be under way.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) address: String,
    dial: Dial,
}

impl Link {
    /// Waits for the connections.
    pub(crate) async fn connections(&self) -> Result<Arc<Connections>, Error> {
        self.dial.clone().await
    }
}

/// The endpoints, the leader as last heard of, and every open connection.
pub(crate) struct Routes {
    endpoints: Vec<String>,
    options: Options,
    state: Mutex<State>,
}

struct State {
    /// Index of the endpoint in use.
    endpoint: usize,
    leader: Option<String>,
    dials: BTreeMap<String, Dial>,
}

impl Routes {
    /// Takes addresses as `host:port`, also with `http://` before them.
    pub(crate) fn new(endpoints: Vec<String>, options: Options) -> Result<Self, Error> {
        if endpoints.is_empty() {
            return Err(Error::invalid("no endpoint is given: name one or more as host:port"));
        }
        for address in &endpoints {
            endpoint(address, &options)?;
        }
        let state = State { endpoint: 0, leader: None, dials: BTreeMap::new() };
        Ok(Self { endpoints, options, state: Mutex::new(state) })
    }

    /// The node to ask, with a dial under way if there is no connection yet.
    pub(crate) fn link(&self, route: Route) -> Link {
        let mut state = self.lock();
        let address = match (route, &state.leader) {
            (Route::Leader, Some(leader)) => leader.clone(),
            (Route::First, _) => self.endpoints[0].clone(),
            _ => self.endpoints[state.endpoint].clone(),
        };
        if let Some(dial) = state.dials.get(&address) {
            return Link { address, dial: dial.clone() };
        }
        let dial = dial(address.clone(), self.options.clone()).boxed().shared();
        state.dials.insert(address.clone(), dial.clone());
        Link { address, dial }
    }

    /// Forgets connections that broke, or that could not be made. Those of a later dial stay.
    pub(crate) fn forget(&self, link: &Link) {
        let mut state = self.lock();
        if state.dials.get(&link.address).is_some_and(|dial| dial.ptr_eq(&link.dial)) {
            state.dials.remove(&link.address);
        }
    }

    /// Learns from the error of a node where to go next: to the leader it names, or, when it can't
    /// help, to another endpoint.
    pub(crate) fn learn(&self, link: &Link, error: &Error) {
        let mut state = self.lock();
        if let Some(leader) = &error.leader_addr
            && endpoint(leader, &self.options).is_ok()
        {
            state.leader = Some(leader.clone());
            return;
        }
        let elsewhere = error.is_transient_if_idempotent() && error.reason != reason::OVERLOADED;
        if !elsewhere && error.reason != reason::DEADLINE_EXCEEDED {
            return;
        }
        if state.leader.as_ref() == Some(&link.address) {
            state.leader = None;
        }
        // Many callers fail together: only the first of them moves on.
        if self.endpoints[state.endpoint] == link.address {
            state.endpoint = (state.endpoint + 1) % self.endpoints.len();
        }
    }

    /// True when there is another endpoint than the one that failed.
    pub(crate) fn has_others(&self) -> bool {
        self.endpoints.len() > 1
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds this lock")
    }
}

async fn dial(address: String, options: Options) -> Result<Arc<Connections>, Error> {
    let endpoint = endpoint(&address, &options)?;
    let dials = (0..options.connections.max(1)).map(|_| endpoint.connect());
    let channels = futures::future::try_join_all(dials).await.map_err(|error| {
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
        let cause = causes.last().map_or_else(String::new, ToString::to_string);
        Error::unreachable(format!("cannot connect to {address}: {cause}"))
    })?;
    Ok(Arc::new(Connections { channels, next: AtomicUsize::new(0) }))
}

fn endpoint(address: &str, options: &Options) -> Result<Endpoint, Error> {
    let invalid = || Error::invalid(format!("{address:?} is not an address: write host:port"));
    let authority = address.strip_prefix("http://").unwrap_or(address);
    let uri: tonic::transport::Uri =
        format!("http://{authority}").parse().map_err(|_| invalid())?;
    if uri.port().is_none() || uri.host().is_none_or(str::is_empty) {
        return Err(invalid());
    }
    Ok(Endpoint::from(uri)
        .connect_timeout(options.connect_timeout)
        .tcp_nodelay(true)
        .buffer_size(CALL_BUFFER)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is not host:port is refused before anything is dialled.
    #[test]
    fn addresses_are_checked() {
        let options = Options::default();
        for good in ["127.0.0.1:7400", "http://localhost:1", "[::1]:7400", "node-1.local:7400"] {
            assert!(endpoint(good, &options).is_ok(), "{good}");
        }
        for bad in ["", "127.0.0.1", "a b:1", ":7400", "https://x"] {
            assert!(endpoint(bad, &options).is_err(), "{bad}");
        }
    }

    /// A redirect is followed, a dead leader is forgotten, and many failures at one endpoint move
    /// on by one endpoint only.
    #[tokio::test]
    async fn routes_learn() {
        let routes =
            Routes::new(vec!["127.0.0.1:1".into(), "127.0.0.1:2".into()], Options::default())
                .unwrap();
        let first = routes.link(Route::Leader);
        assert_eq!(first.address, "127.0.0.1:1");
        routes.learn(&first, &Error::unreachable("x"));
        routes.learn(&first, &Error::unreachable("x"));
        let second = routes.link(Route::Leader);
        assert_eq!(second.address, "127.0.0.1:2");
        let redirect = Error { leader_addr: Some("127.0.0.1:3".into()), ..Error::unreachable("x") };
        routes.learn(&second, &redirect);
        let leader = routes.link(Route::Leader);
        assert_eq!(leader.address, "127.0.0.1:3");
        assert_eq!(routes.link(Route::Any).address, "127.0.0.1:2");
        assert_eq!(routes.link(Route::First).address, "127.0.0.1:1");
        routes.learn(&leader, &Error::unreachable("x"));
        assert_eq!(routes.link(Route::Leader).address, "127.0.0.1:2");
    }
}
