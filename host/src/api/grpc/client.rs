//! The `Client` service: commands and queries.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use lockstep_proto::v1;
use lockstep_proto::v1::client_server::Client;
use lockstep_proto::v1::execute_stream_reply::Result as StreamResult;
use tonic::{Request, Response, Status, Streaming};

use super::edge;
use super::error;
use super::pipeline::{End, Pipeline, Room};
use super::{Services, UNREAD_BYTES};
use crate::api::door::{Answered, Caller, Error, Executed, Payload};
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
        let caller = edge::client(&request, self.door.request_timeout());
        let command = command(&caller, request.into_inner())?;
        Ok(Response::new(executed(self.door.execute(&caller, command).await?)))
    }

    async fn execute_stream(
        &self,
        request: Request<Streaming<v1::ExecuteStreamRequest>>,
    ) -> Result<Response<Self::ExecuteStreamStream>, Status> {
        let services = self.clone();
        let timeout = self.door.request_timeout();
        let caller = edge::client(&request, timeout);
        let full = caller.account().clone();
        let unread = full.clone();
        let stop = self.door.close().clone().cancelled_owned();
        // What is read is held at once, and read only while it surely fits: a command that was
        // refused for want of room, among others that were not, would come after later ones.
        let has_room = move || !full.is_full(limits::COMMAND_BYTES_MAX);
        let room = Room {
            has_room: Box::new(has_room),
            keep_unread: Box::new(move || unread.keep(UNREAD_BYTES)),
        };
        let replies = Pipeline::new(request.into_inner(), stop, room, move |item| {
            let v1::ExecuteStreamRequest { id, request, timeout_ms } = item;
            let caller = caller.within(match timeout_ms {
                0 => timeout,
                asked => std::time::Duration::from_millis(asked.into()),
            });
            let bytes = request.as_ref().map_or(0, |request| request.command.len());
            let command = match request {
                Some(request) => command(&caller, request),
                None => Err(Error::invalid("the message has an id and no request")),
            };
            let services = services.clone();
            let running = async move { (bytes, services.execute_item(id, &caller, command).await) };
            // tokio makes a task that does much wait now and then, at any await: for one of these
            // commands to wait before it is in the log would put it behind later ones.
            (bytes, tokio::task::unconstrained(running))
        });
        let replies = replies.map(|reply| {
            reply.map_err(|end| match end {
                End::Stopped => Error::from(raft::Error::ShuttingDown).into(),
                End::Broken(status) => error::of_request(status),
            })
        });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn query(
        &self,
        request: Request<v1::QueryRequest>,
    ) -> Result<Response<v1::QueryReply>, Status> {
        let caller = edge::client(&request, self.door.request_timeout());
        let v1::QueryRequest { machine, query, consistency } = request.into_inner();
        let query = caller.payload(machine, query);
        let consistency = self::consistency(consistency)?;
        let answered = self.door.query(&caller, query, consistency).await?;
        let Answered { reply, rejected, applied } = answered;
        Ok(Response::new(v1::QueryReply { reply, rejected, applied_index: applied }))
    }
}

impl Services {
    async fn execute_item(
        &self,
        id: u64,
        caller: &Caller,
        command: Result<Payload, Error>,
    ) -> v1::ExecuteStreamReply {
        let result = match (self.door.enter(), command) {
            (Ok(_under_way), Ok(command)) => self.door.execute(caller, command).await,
            (Err(error), _) | (_, Err(error)) => Err(error),
        };
        let result = match result {
            Ok(reply) => StreamResult::Reply(executed(reply)),
            Err(error) => StreamResult::Failure(error::failure(error)),
        };
        v1::ExecuteStreamReply { id, result: Some(result) }
    }
}

/// A command as it was read.
fn command(caller: &Caller, request: v1::ExecuteRequest) -> Result<Payload, Error> {
    let v1::ExecuteRequest { machine, command, session } = request;
    match session {
        Some(_) => Err(Error::sessions_unsupported()),
        None => Ok(caller.payload(machine, command)),
    }
}

fn executed(Executed { reply, rejected, index }: Executed) -> v1::ExecuteReply {
    v1::ExecuteReply { reply, rejected, index }
}

fn consistency(wire: i32) -> Result<raft::Consistency, Error> {
    match v1::Consistency::try_from(wire) {
        Ok(v1::Consistency::Linearizable) => Ok(raft::Consistency::Linearizable),
        Ok(v1::Consistency::Stale) => Ok(raft::Consistency::Stale),
        Err(_) => Err(Error::invalid(format!("consistency {wire} is not known"))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::api::door::Forwarding;
    use crate::budget::Budget;

    /// A session is refused, and so is a consistency that this version does not know.
    #[test]
    fn what_is_not_known_is_refused() {
        let account = Budget::new(1 << 20).open();
        let caller = Caller::of_command(account, Duration::from_secs(1), Forwarding::AsSet);
        let request =
            |session| v1::ExecuteRequest { machine: "kv".into(), command: "x".into(), session };
        assert!(command(&caller, request(None)).is_ok());
        let refused = command(&caller, request(Some(v1::SessionSlot::default())));
        assert_eq!(refused.unwrap_err(), Error::sessions_unsupported());
        assert_eq!(consistency(0), Ok(raft::Consistency::Linearizable));
        assert_eq!(consistency(1), Ok(raft::Consistency::Stale));
        assert!(consistency(9).is_err());
    }
}
