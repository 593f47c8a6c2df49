//! The `Client` service: commands and queries.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use lockstep_proto::v1;
use lockstep_proto::v1::client_server::Client;
use lockstep_proto::v1::execute_stream_reply::Result as StreamResult;
use tonic::{Request, Response, Status, Streaming};

use super::edge::{self, Origin};
use super::error::{Error, guest_reply};
use super::pipeline::{End, Pipeline, Room};
use super::{Services, UNREAD_BYTES};
use crate::budget::{Account, Held};
use crate::config::limits;
use crate::raft;

#[tonic::async_trait]
impl Client for Services {
    type ExecuteStreamStream =
        Pin<Box<dyn Stream<Item = Result<v1::ExecuteStreamReply, Status>> + Send>>;

    async fn execute(
        &self,
        request: Request<v1::ExecuteRequest>,
    ) -> Result<Response<v1::ExecuteReply>, Status> {
        let origin = Origin::of_command(request.metadata(), self.options.request_timeout);
        let account = edge::account(&request);
        let request = request.into_inner();
        let held = edge::begin(&account, &request.command);
        let reply = self.execute_one(request, origin, &account, held).await?;
        Ok(Response::new(reply))
    }

    async fn execute_stream(
        &self,
        request: Request<Streaming<v1::ExecuteStreamRequest>>,
    ) -> Result<Response<Self::ExecuteStreamStream>, Status> {
        let services = self.clone();
        let timeout = self.options.request_timeout;
        let origin = Origin::of_command(request.metadata(), timeout);
        let account = edge::account(&request);
        let full = account.clone();
        let unread = account.clone();
        let stop = self.close.clone().cancelled_owned();
        // What is read is held at once, and read only while it surely fits: a command that was
        // refused for want of room, among others that were not, would come after later ones.
        let has_room = move || !full.is_full(limits::COMMAND_BYTES_MAX);
        let room = Room {
            has_room: Box::new(has_room),
            keep_unread: Box::new(move || unread.keep(UNREAD_BYTES)),
        };
        let replies = Pipeline::new(request.into_inner(), stop, room, move |item| {
            let v1::ExecuteStreamRequest { id, request, timeout_ms } = item;
            let origin = origin.within(timeout_ms, timeout);
            let bytes = request.as_ref().map_or(0, |request| request.command.len());
            let request = request.map(|request| {
                let held = edge::begin(&account, &request.command);
                (request, held)
            });
            let (services, account) = (services.clone(), account.clone());
            let running =
                async move { (bytes, services.execute_item(id, request, origin, &account).await) };
            // tokio makes a task that does much wait now and then, at any await: for one of these
            // commands to wait before it is in the log would put it behind later ones.
            (bytes, tokio::task::unconstrained(running))
        });
        let replies = replies.map(|reply| {
            reply.map_err(|end| match end {
                End::Stopped => Error::from(raft::Error::ShuttingDown).into(),
                End::Broken(status) => Error::of_request(status),
            })
        });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn query(
        &self,
        request: Request<v1::QueryRequest>,
    ) -> Result<Response<v1::QueryReply>, Status> {
        let origin = Origin::of_command(request.metadata(), self.options.request_timeout);
        let account = edge::account(&request);
        let reply = self.query_one(request.into_inner(), origin, &account).await?;
        Ok(Response::new(reply))
    }
}

impl Services {
    /// One command, by itself or of a stream, and what is held for it. Up to the first await of the
    /// replica it runs in the first poll, so that polling in order keeps the order.
    async fn execute_one(
        &self,
        request: v1::ExecuteRequest,
        origin: Origin,
        account: &Account,
        held: Result<Held, Error>,
    ) -> Result<v1::ExecuteReply, Error> {
        edge::check_execute(&request)?;
        let v1::ExecuteRequest { machine, command, .. } = request;
        let command = edge::on_its_own(command);
        let held = held?;
        let deadline = origin.deadline;
        let result = self.replica.execute(&machine, None, command.clone(), deadline, held).await;
        let raft::Executed { outcome, index, position } = match result {
            Ok(executed) => executed,
            Err(error) => match self.forward_address(&error, &origin) {
                Some(leader) => {
                    let timeout = origin.remaining();
                    let _held = edge::begin(account, &command)?;
                    let executed = self.forward.execute(leader, &machine, command, timeout).await?;
                    account.learn(executed.reply.len());
                    return Ok(v1::ExecuteReply {
                        reply: executed.reply,
                        rejected: executed.rejected,
                        index: executed.index,
                    });
                }
                None => return Err(error.into()),
            },
        };
        let answered = guest_reply(outcome, &machine);
        let (reply, rejected) = answered.map_err(|error| error.at(index, position))?;
        Ok(v1::ExecuteReply { reply, rejected, index })
    }

    async fn execute_item(
        &self,
        id: u64,
        request: Option<(v1::ExecuteRequest, Result<Held, Error>)>,
        origin: Origin,
        account: &Account,
    ) -> v1::ExecuteStreamReply {
        let result = match (self.drain.enter(), request) {
            (Err(stopping), _) => Err(stopping.into()),
            (Ok(_under_way), Some((request, held))) => {
                self.execute_one(request, origin, account, held).await
            }
            (_, None) => Err(edge::invalid("the message has an id and no request")),
        };
        let result = match result {
            Ok(reply) => StreamResult::Reply(reply),
            Err(error) => StreamResult::Failure(error.into_failure()),
        };
        v1::ExecuteStreamReply { id, result: Some(result) }
    }

    async fn query_one(
        &self,
        request: v1::QueryRequest,
        origin: Origin,
        account: &Account,
    ) -> Result<v1::QueryReply, Error> {
        let consistency = edge::check_query(&request)?;
        let v1::QueryRequest { machine, query, .. } = request;
        let query = edge::on_its_own(query);
        let held = edge::begin(account, &query)?;
        let (asked, deadline) = (query.clone(), origin.deadline);
        let result = self.replica.query(&machine, asked, consistency, deadline, held).await;
        let raft::Answered { outcome, applied } = match result {
            Ok(answered) => answered,
            Err(error) => match self.forward_address(&error, &origin) {
                Some(leader) => {
                    let _held = edge::begin(account, &query)?;
                    let answered = self.forward_query(leader, &machine, query, origin).await?;
                    account.learn(answered.reply.len());
                    return Ok(answered);
                }
                None => return Err(Error::of_read(error)),
            },
        };
        let (reply, rejected) = guest_reply(outcome, &machine)?;
        Ok(v1::QueryReply { reply, rejected, applied_index: applied })
    }

    /// Only a linearizable query meets a "not leader", so that is what is passed on.
    async fn forward_query(
        &self,
        leader: &str,
        machine: &str,
        query: bytes::Bytes,
        origin: Origin,
    ) -> Result<v1::QueryReply, Error> {
        let client = self.forward.client(leader, origin.remaining())?;
        let linearizable = lockstep_client::Consistency::Linearizable;
        let lockstep_client::Answered { reply, rejected, applied_index } =
            client.query(machine, query, linearizable).await?;
        Ok(v1::QueryReply { reply, rejected, applied_index })
    }
}
