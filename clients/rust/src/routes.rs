//! Which node to ask, and the connections to it.
//!
//! Connections are dialled when first needed, one dial for all who wait, and forgotten when they
//! break: tonic would redial by itself, but one waiting caller after the other.
//!
//! A node names the leader by the address that the leader gives for itself. Behind a port mapping
//! a client may not reach that address. Then the client asks its other endpoints, of which one may
//! be the leader, and after them it asks to be passed on.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::Shared;
use tokio::time::Instant;
use tonic::transport::Endpoint;

use crate::client::Options;
use crate::dial::Connections;
use crate::error::Error;
use crate::reason;

/// Flow-control window of a stream, in bytes: far above bandwidth times delay of a data centre, so
/// that the server's own limits are what holds a stream back.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
/// Flow-control window of a connection, in bytes. h2 lets the frames that nobody has read yet cost
/// half of it, and a reply of few bytes some 230 bytes: this is enough for the replies to 32
/// streams with as many commands under way as one may have.
const CONNECTION_WINDOW_BYTES: u32 = 256 << 20;
/// A peer that is stopped, or cut off without a reset, is noticed after interval plus timeout,
/// which is well before the deadline of a call.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an address of the leader that could not be reached is not tried again.
const UNREACHABLE_FOR: Duration = Duration::from_secs(300);
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

type Dial = Shared<Pin<Box<dyn Future<Output = Result<Arc<Connections>, Error>> + Send>>>;

/// A node's address and the connections to it, which may still be under way.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) address: String,
    /// The node is asked to pass on what is for the leader.
    pub(crate) forward: bool,
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
    unreachable: Option<Unreachable>,
    dials: BTreeMap<String, Dial>,
}

/// An address of the leader that could not be reached.
struct Unreachable {
    address: String,
    why: String,
    since: Instant,
    /// Endpoints that may still be the leader themselves.
    endpoints_left: usize,
}

impl State {
    /// The address to ask first, and those that stand in for it, in order.
    fn candidates<'a>(
        &'a self,
        route: Route,
        endpoints: &'a [String],
    ) -> impl Iterator<Item = &'a String> {
        let leader = self.leader.as_ref().filter(|_| route == Route::Leader);
        let (first, count) = match route {
            Route::First => (0, 1),
            Route::Leader | Route::Any => (self.endpoint, endpoints.len()),
        };
        leader.into_iter().chain(endpoints.iter().cycle().skip(first).take(count))
    }

    /// Moves on from an endpoint. Many callers fail together: only the first of them moves on.
    fn leave(&mut self, address: &str, endpoints: &[String]) {
        if self.leader.as_deref() == Some(address) {
            self.leader = None;
        }
        if endpoints[self.endpoint] == address {
            self.endpoint = (self.endpoint + 1) % endpoints.len();
            if let Some(unreachable) = &mut self.unreachable {
                unreachable.endpoints_left = unreachable.endpoints_left.saturating_sub(1);
            }
        }
    }
}

impl Routes {
    /// Takes addresses as `host:port`, also with `http://` before them.
    pub(crate) fn new(endpoints: Vec<String>, options: Options) -> Result<Self, Error> {
        if endpoints.is_empty() {
            return Err(Error::invalid("no endpoint is given: name one or more as host:port"));
        }
        for address in &endpoints {
            endpoint(address)?;
        }
        let dials = BTreeMap::new();
        let state = State { endpoint: 0, leader: None, unreachable: None, dials };
        Ok(Self { endpoints, options, state: Mutex::new(state) })
    }

    /// The node to ask, with a dial under way if there is no connection yet.
    pub(crate) fn link(&self, route: Route) -> Link {
        self.link_besides(route, &[]).expect("there is an endpoint")
    }

    /// The same, but none of those that are being asked already; `None` when there is no other.
    pub(crate) fn link_besides(&self, route: Route, asked: &[String]) -> Option<Link> {
        let mut state = self.lock();
        let is_free = |address: &&String| !asked.contains(address);
        let address = state.candidates(route, &self.endpoints).find(is_free)?.clone();
        let unreachable = state.unreachable.as_ref().filter(|leader| leader.is_recent());
        let forward = unreachable.is_some_and(|leader| leader.endpoints_left == 0);
        if let Some(dial) = state.dials.get(&address)
            && !is_broken(dial)
        {
            return Some(Link { address, forward, dial: dial.clone() });
        }
        let dial = dial(address.clone(), self.options.clone()).boxed().shared();
        state.dials.insert(address.clone(), dial.clone());
        Some(Link { address, forward, dial })
    }

    /// Forgets connections that broke. Those of a later dial stay.
    pub(crate) fn forget(&self, link: &Link) {
        let mut state = self.lock();
        if state.dials.get(&link.address).is_some_and(|dial| dial.ptr_eq(&link.dial)) {
            state.dials.remove(&link.address);
        }
    }

    /// Forgets connections that could not be made. If a node named this address as the leader's,
    /// the next ones to ask are the endpoints.
    pub(crate) fn cannot_reach(&self, link: &Link, error: &Error) {
        self.forget(link);
        let mut state = self.lock();
        if state.leader.as_ref() != Some(&link.address) {
            return;
        }
        state.leader = None;
        // The endpoint in use, which named it, is not the leader.
        state.endpoint = (state.endpoint + 1) % self.endpoints.len();
        state.unreachable = Some(Unreachable {
            address: link.address.clone(),
            why: error.message.clone(),
            since: Instant::now(),
            endpoints_left: self.endpoints.len() - 1,
        });
    }

    /// Learns from the error of a node where to go next: to the leader it names, or, when it can't
    /// help, to another endpoint.
    pub(crate) fn learn(&self, link: &Link, error: &Error) {
        let mut state = self.lock();
        if let Some(leader) = &error.leader_addr
            && endpoint(leader).is_ok()
        {
            match &state.unreachable {
                Some(known) if known.address == *leader && known.is_recent() => {
                    state.leave(&link.address, &self.endpoints);
                }
                _ => {
                    state.unreachable = None;
                    state.leader = Some(leader.clone());
                }
            }
            return;
        }
        let elsewhere = error.is_transient_if_idempotent() && error.reason != reason::OVERLOADED;
        if elsewhere || error.reason == reason::DEADLINE_EXCEEDED {
            state.leave(&link.address, &self.endpoints);
        }
    }

    /// The error of a whole call, with the address of the leader that could not be reached, where
    /// that may be why.
    pub(crate) fn explain(&self, mut error: Error) -> Error {
        let state = self.lock();
        if let Some(Unreachable { address, why, .. }) = &state.unreachable
            && error.is_transient()
            && !error.message.contains(address.as_str())
        {
            error.message = format!(
                "{}; a node names {address} as the leader's address, which cannot be reached from \
                 here: {why}",
                error.message
            );
        }
        error
    }

    /// True when there is another endpoint than the one that failed.
    pub(crate) fn has_others(&self) -> bool {
        self.endpoints.len() > 1
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds this lock")
    }
}

impl Unreachable {
    /// True while it is not time to try it again.
    fn is_recent(&self) -> bool {
        self.since.elapsed() < UNREACHABLE_FOR
    }
}

/// True for connections that were made and have ended since.
fn is_broken(dial: &Dial) -> bool {
    dial.peek().is_some_and(|made| made.as_ref().is_ok_and(|made| made.is_broken()))
}

async fn dial(address: String, options: Options) -> Result<Arc<Connections>, Error> {
    let endpoint = endpoint(&address)?;
    let opened = Connections::open(&endpoint, options.connections, options.connect_timeout).await;
    let failed = |why| Error::unreachable(format!("cannot connect to {address}: {why}"));
    opened.map(Arc::new).map_err(failed)
}

fn endpoint(address: &str) -> Result<Endpoint, Error> {
    let invalid = || Error::invalid(format!("{address:?} is not an address: write host:port"));
    let authority = address.strip_prefix("http://").unwrap_or(address);
    let uri: tonic::transport::Uri =
        format!("http://{authority}").parse().map_err(|_| invalid())?;
    if uri.port().is_none() || uri.host().is_none_or(str::is_empty) {
        return Err(invalid());
    }
    Ok(Endpoint::from(uri)
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
        for good in ["127.0.0.1:7400", "http://localhost:1", "[::1]:7400", "node-1.local:7400"] {
            assert!(endpoint(good).is_ok(), "{good}");
        }
        for bad in ["", "127.0.0.1", "a b:1", ":7400", "https://x"] {
            assert!(endpoint(bad).is_err(), "{bad}");
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

    /// Where the leader's address, as nodes name it, cannot be reached, the other endpoints are
    /// asked, then the first one that passes on; another address is followed again.
    #[tokio::test]
    async fn unreachable_leaders_are_asked_around() {
        let endpoints = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"].map(String::from).to_vec();
        let routes = Routes::new(endpoints, Options::default()).unwrap();
        let named = |address: &str| Error {
            leader_addr: Some(address.to_owned()),
            ..Error::unreachable("not the leader")
        };
        routes.learn(&routes.link(Route::Leader), &named("10.0.0.1:1"));
        let leader = routes.link(Route::Leader);
        assert_eq!(leader.address, "10.0.0.1:1");
        routes.cannot_reach(&leader, &Error::unreachable("cannot connect: no route"));
        for (address, forward) in [("127.0.0.1:2", false), ("127.0.0.1:3", false)] {
            let link = routes.link(Route::Leader);
            assert_eq!((link.address.as_str(), link.forward), (address, forward));
            routes.learn(&link, &named("10.0.0.1:1"));
        }
        let passes_on = routes.link(Route::Leader);
        assert_eq!((passes_on.address.as_str(), passes_on.forward), ("127.0.0.1:1", true));
        let explained = routes.explain(Error::unreachable("x")).message;
        assert!(explained.contains("10.0.0.1:1") && explained.contains("no route"), "{explained}");
        routes.learn(&passes_on, &named("10.0.0.2:1"));
        let next = routes.link(Route::Leader);
        assert_eq!((next.address.as_str(), next.forward), ("10.0.0.2:1", false));
    }

    /// A node that is being asked already is not asked twice at once.
    #[tokio::test]
    async fn others_stand_in() {
        let endpoints = ["127.0.0.1:1", "127.0.0.1:2"].map(String::from).to_vec();
        let routes = Routes::new(endpoints, Options::default()).unwrap();
        let one = "127.0.0.1:1".to_owned();
        let two = routes.link_besides(Route::Any, std::slice::from_ref(&one)).unwrap();
        assert_eq!(two.address, "127.0.0.1:2");
        assert!(routes.link_besides(Route::Leader, &[one.clone(), two.address]).is_none());
        assert!(routes.link_besides(Route::First, &[one]).is_none());
    }
}
