//! Many callers on one `ExecuteStream`: requests go out as they come, replies find their caller.
//!
//! Invariant: a caller has at most one request in flight, so its number serves as the request's id
//! and a place to put the reply needs no lock.

use anyhow::{Context, Result, bail};
use lockstep_proto::v1::client_client::ClientClient;
use lockstep_proto::v1::execute_stream_reply::Result as StreamResult;
use lockstep_proto::v1::{ExecuteReply, ExecuteRequest, ExecuteStreamReply, ExecuteStreamRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

/// One of the callers of a shared stream.
#[derive(Debug)]
pub(crate) struct StreamCaller {
    id: u64,
    requests: mpsc::Sender<ExecuteStreamRequest>,
    replies: mpsc::Receiver<StreamResult>,
}

/// Opens one stream on `channel` for `count` callers. It ends when the last of them is dropped.
pub(crate) async fn open(channel: Channel, count: usize) -> Result<Vec<StreamCaller>> {
    // Room for every caller's one request, so that sending never waits.
    let (requests, outgoing) = mpsc::channel(count);
    let mut callers = Vec::with_capacity(count);
    let mut places = Vec::with_capacity(count);
    for id in 0..u64::try_from(count)? {
        let (place, replies) = mpsc::channel(1);
        places.push(place);
        callers.push(StreamCaller { id, requests: requests.clone(), replies });
    }
    tokio::spawn(deliver(channel, outgoing, places));
    Ok(callers)
}

/// Hands each reply to its caller. When it returns, waiting callers find their place closed.
async fn deliver(
    channel: Channel,
    outgoing: mpsc::Receiver<ExecuteStreamRequest>,
    places: Vec<mpsc::Sender<StreamResult>>,
) -> Result<()> {
    let outgoing = ReceiverStream::new(outgoing);
    let reply = ClientClient::new(channel).execute_stream(outgoing).await?;
    let mut incoming: Streaming<ExecuteStreamReply> = reply.into_inner();
    while let Some(reply) = incoming.message().await? {
        let place = usize::try_from(reply.id).ok().and_then(|id| places.get(id));
        let place = place.context("a reply to nobody's request")?;
        place.try_send(reply.result.context("an empty reply")?).context("a second reply")?;
    }
    Ok(())
}

impl StreamCaller {
    /// Sends one command and waits for the reply to it.
    pub(crate) async fn execute(&mut self, request: ExecuteRequest) -> Result<ExecuteReply> {
        let request = ExecuteStreamRequest { id: self.id, request: Some(request), timeout_ms: 0 };
        self.requests.send(request).await.context("the stream is closed")?;
        match self.replies.recv().await.context("the stream broke")? {
            StreamResult::Reply(reply) => Ok(reply),
            StreamResult::Failure(failure) => bail!("{}: {}", failure.reason, failure.message),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use futures::future::join_all;
    use futures::{Stream, StreamExt};
    use lockstep_proto::v1::client_server::{Client, ClientServer};
    use lockstep_proto::v1::{ExecuteStreamReply, Failure, QueryReply, QueryRequest};
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::transport::Server;
    use tonic::{Request, Response, Status};

    use super::*;
    use crate::caller;

    const CALLERS: usize = 8;

    /// Echoes commands, each batch of `CALLERS` in reverse order; fails the command `fail`.
    struct Backwards;

    #[tonic::async_trait]
    impl Client for Backwards {
        type ExecuteStreamStream =
            Pin<Box<dyn Stream<Item = Result<ExecuteStreamReply, Status>> + Send>>;

        async fn execute_stream(
            &self,
            request: Request<Streaming<ExecuteStreamRequest>>,
        ) -> Result<Response<Self::ExecuteStreamStream>, Status> {
            let batches = request.into_inner().chunks(CALLERS);
            let replies = batches.flat_map(|batch| {
                futures::stream::iter(batch.into_iter().rev().map(|request| Ok(echo(request?))))
            });
            Ok(Response::new(Box::pin(replies)))
        }

        async fn execute(
            &self,
            _: Request<ExecuteRequest>,
        ) -> Result<Response<ExecuteReply>, Status> {
            Err(Status::unimplemented("only streams are tested"))
        }

        async fn query(&self, _: Request<QueryRequest>) -> Result<Response<QueryReply>, Status> {
            Err(Status::unimplemented("only streams are tested"))
        }
    }

    fn echo(request: ExecuteStreamRequest) -> ExecuteStreamReply {
        let command = request.request.unwrap_or_default().command;
        let result = if command == b"fail"[..] {
            StreamResult::Failure(Failure { reason: "ASKED".to_owned(), ..Failure::default() })
        } else {
            StreamResult::Reply(ExecuteReply { reply: command, ..ExecuteReply::default() })
        };
        ExecuteStreamReply { id: request.id, result: Some(result) }
    }

    async fn ask(caller: &mut StreamCaller, command: String) -> Result<String> {
        let request = ExecuteRequest { command: command.into(), ..ExecuteRequest::default() };
        let reply = caller.execute(request).await?;
        Ok(String::from_utf8(reply.reply.to_vec())?)
    }

    /// Every caller gets the reply to its own command, in whatever order replies come, and a
    /// failure reaches the caller whose command failed.
    #[tokio::test]
    async fn replies_find_their_callers() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder().add_service(ClientServer::new(Backwards));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let mut callers = open(caller::connect(address).await.unwrap(), CALLERS).await.unwrap();
        for round in 0..3 {
            let command = |place| {
                if place == round { "fail".to_owned() } else { format!("{round}-{place}") }
            };
            let replies =
                callers.iter_mut().enumerate().map(|(place, caller)| ask(caller, command(place)));
            for (place, reply) in join_all(replies).await.into_iter().enumerate() {
                match reply {
                    Ok(reply) => assert_eq!(reply, command(place)),
                    Err(error) => assert_eq!((place, error.to_string()), (round, "ASKED: ".into())),
                }
            }
        }
    }
}
