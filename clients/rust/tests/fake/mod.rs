//! A node for tests: a real gRPC server in this process whose answers and failures a test scripts.
//! The tests of the command line include this file too.
#![expect(dead_code, reason = "each test binary uses a part of it")]

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::{Stream, StreamExt as _};
use lockstep_client::{FORWARD_HEADER, reason, v1};
use tokio::task::AbortHandle;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorInfo, StatusExt as _};
use v1::client_server::{Client, ClientServer};
use v1::execute_stream_reply::Result as StreamResult;

/// What a node does with the command that it is given.
#[derive(Clone)]
pub(crate) enum Answer {
    /// Replies with the command's own bytes.
    Echo,
    /// Replies with these bytes.
    Say(&'static [u8]),
    /// Fails: gRPC code, reason, outcome, leader's address.
    Fail(Code, &'static str, &'static str, Option<String>),
    /// Replies with the command's own bytes if it is asked to pass the command on; else another
    /// node leads, at this address.
    Forward(String),
    /// Ends the connection's stream, or the call, without details.
    Break,
    /// Never answers.
    Hang,
}

pub(crate) type Script = Arc<dyn Fn(usize, &[u8]) -> Answer + Send + Sync>;

/// A running node; it stops when dropped.
pub(crate) struct Node {
    pub(crate) address: String,
    pub(crate) calls: Arc<AtomicUsize>,
    server: AbortHandle,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Node {
    /// Starts a node that answers its n-th command, from 0, as the script says.
    pub(crate) async fn start(
        script: impl Fn(usize, &[u8]) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let address: SocketAddr = ([127, 0, 0, 1], 0).into();
        let listener =
            tokio::net::TcpListener::bind(address).await.expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let calls = Arc::new(AtomicUsize::new(0));
        let service = Service { script: Arc::new(script), calls: Arc::clone(&calls) };
        let server = tonic::transport::Server::builder()
            .add_service(ClientServer::new(service))
            .serve_with_incoming(TcpIncoming::from(listener));
        Self { address, calls, server: tokio::spawn(server).abort_handle() }
    }

    /// How many commands and queries it was given.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

#[derive(Clone)]
struct Service {
    script: Script,
    calls: Arc<AtomicUsize>,
}

impl Service {
    fn answer(&self, command: &[u8]) -> Answer {
        (self.script)(self.calls.fetch_add(1, Ordering::SeqCst), command)
    }

    async fn unary<M>(
        &self,
        request: Request<M>,
        command: impl FnOnce(M) -> bytes::Bytes,
    ) -> Result<bytes::Bytes, Status> {
        let forward = request.metadata().contains_key(FORWARD_HEADER);
        let command = command(request.into_inner());
        match forwarding(self.answer(&command), forward) {
            Answer::Echo => Ok(command),
            Answer::Say(reply) => Ok(bytes::Bytes::from_static(reply)),
            Answer::Fail(code, reason, outcome, leader) => {
                let info = ErrorInfo {
                    reason: reason.to_owned(),
                    domain: reason::DOMAIN.to_owned(),
                    metadata: metadata(outcome, leader).into_iter().collect(),
                };
                Err(Status::with_error_details_vec(code, "scripted", [info.into()]))
            }
            Answer::Forward(_) | Answer::Break => Err(Status::unavailable("scripted")),
            Answer::Hang => std::future::pending().await,
        }
    }
}

/// What is answered where it depends on whether the client asks for forwarding.
fn forwarding(answer: Answer, asked: bool) -> Answer {
    match answer {
        Answer::Forward(_) if asked => Answer::Echo,
        Answer::Forward(leader) => {
            Answer::Fail(Code::Unavailable, reason::NOT_LEADER, "NOT_APPLIED", Some(leader))
        }
        answer => answer,
    }
}

fn metadata(outcome: &str, leader: Option<String>) -> Vec<(String, String)> {
    let leader = leader.map(|address| (reason::LEADER_ADDR.to_owned(), address));
    std::iter::once((reason::OUTCOME.to_owned(), outcome.to_owned())).chain(leader).collect()
}

#[tonic::async_trait]
impl Client for Service {
    type ExecuteStreamStream =
        Pin<Box<dyn Stream<Item = Result<v1::ExecuteStreamReply, Status>> + Send>>;

    async fn execute(
        &self,
        request: Request<v1::ExecuteRequest>,
    ) -> Result<Response<v1::ExecuteReply>, Status> {
        let reply = self.unary(request, |request| request.command).await?;
        Ok(Response::new(v1::ExecuteReply { reply, rejected: false, index: 1 }))
    }

    async fn query(
        &self,
        request: Request<v1::QueryRequest>,
    ) -> Result<Response<v1::QueryReply>, Status> {
        let reply = self.unary(request, |request| request.query).await?;
        Ok(Response::new(v1::QueryReply { reply, rejected: false, applied_index: 1 }))
    }

    async fn execute_stream(
        &self,
        request: Request<Streaming<v1::ExecuteStreamRequest>>,
    ) -> Result<Response<Self::ExecuteStreamStream>, Status> {
        let service = self.clone();
        let forward = request.metadata().contains_key(FORWARD_HEADER);
        let replies = request.into_inner().filter_map(move |item| {
            let reply =
                item.map_or_else(|error| Some(Err(error)), |item| service.item(item, forward));
            std::future::ready(reply)
        });
        // The error item is the last one: tonic ends the stream with it.
        Ok(Response::new(Box::pin(replies)))
    }
}

impl Service {
    fn item(
        &self,
        item: v1::ExecuteStreamRequest,
        forward: bool,
    ) -> Option<Result<v1::ExecuteStreamReply, Status>> {
        let command = item.request.expect("the client sends one").command;
        let result = match forwarding(self.answer(&command), forward) {
            Answer::Say(reply) => StreamResult::Reply(v1::ExecuteReply {
                reply: bytes::Bytes::from_static(reply),
                rejected: false,
                index: 1,
            }),
            Answer::Echo => {
                StreamResult::Reply(v1::ExecuteReply { reply: command, rejected: false, index: 1 })
            }
            Answer::Fail(code, reason, outcome, leader) => StreamResult::Failure(v1::Failure {
                code: code.into(),
                message: "scripted".to_owned(),
                reason: reason.to_owned(),
                metadata: metadata(outcome, leader).into_iter().collect(),
            }),
            Answer::Forward(_) | Answer::Break => {
                return Some(Err(Status::unavailable("scripted")));
            }
            Answer::Hang => return None,
        };
        Some(Ok(v1::ExecuteStreamReply { id: item.id, result: Some(result) }))
    }
}
