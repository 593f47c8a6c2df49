//! A call that ends early ends with an `ErrorInfo`, whatever layer found the error. The services
//! give one to each of theirs; this gives one to those that gRPC finds by itself: a message that is
//! none, an unknown method, a deadline that passes while a request is still coming in.
//!
//! It stands inside of tonic's own deadline, which answers without details, and is a little
//! earlier.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::edge;
use super::error::{self, Found};
use crate::api::door::Error;

/// This layer's deadline is a twentieth earlier than tonic's, at most by this. The replica's own is
/// earlier still.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(10);
/// The methods of this contract that change nothing, as those of other contracts do not either.
const READS: [&str; 5] = [
    "/lockstep.v1.Client/Query",
    "/lockstep.v1.Admin/ListMachines",
    "/lockstep.v1.Admin/DescribeMachine",
    "/lockstep.v1.Admin/Status",
    "/lockstep.v1.Admin/FetchSnapshot",
];

/// Puts [`Answered`] around a service.
#[derive(Clone, Copy)]
pub(super) struct Answering;

impl<S> Layer<S> for Answering {
    type Service = Answered<S>;

    fn layer(&self, inner: S) -> Answered<S> {
        Answered { inner }
    }
}

/// A service whose calls end with details.
#[derive(Clone)]
pub(super) struct Answered<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for Answered<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = Method::of(request.uri().path());
        let limit = edge::asked_timeout(request.headers());
        let limit = limit.map(|limit| limit - (limit / 20).min(ANSWER_TIME_MAX));
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = match limit {
                None => answer.await?,
                Some(limit) => match timeout(limit, answer).await {
                    Ok(response) => response?,
                    Err(_) => return Ok(Status::from(method.late()).into_http()),
                },
            };
            Ok(method.answer(response))
        })
    }
}

/// What an error of a call can say about it.
#[derive(Clone, Debug)]
struct Method {
    reads: bool,
    path: String,
}

impl Method {
    fn of(path: &str) -> Self {
        let reads = READS.contains(&path) || !path.starts_with("/lockstep.v1.");
        Self { reads, path: path.to_owned() }
    }

    fn late(&self) -> Error {
        let status = Status::deadline_exceeded("the deadline passed before the answer");
        self.explain(&status, Found::Later)
    }

    /// An error, found by gRPC, as clients see it.
    fn explain(&self, status: &Status, found: Found) -> Error {
        let found = if self.reads { Found::Before } else { found };
        if status.code() == Code::Unimplemented && status.message().is_empty() {
            let (path, version) = (&self.path, env!("CARGO_PKG_VERSION"));
            let text = format!("there is no method {path} in lockstep {version}");
            return error::found(&Status::unimplemented(text), found);
        }
        error::found(status, found)
    }

    /// The response with details, if it is an error without.
    fn answer(self, response: Response<Body>) -> Response<Body> {
        // An error in the headers comes before any reply. Every service puts details into its own,
        // so one without was found before the service was asked.
        match Status::from_header_map(response.headers()) {
            Some(status) if lacks_details(&status) => {
                Status::from(self.explain(&status, Found::Before)).into_http()
            }
            Some(_) => response,
            None => response.map(|body| Body::new(Ending { body, method: self })),
        }
    }
}

fn lacks_details(status: &Status) -> bool {
    status.code() != Code::Ok && status.details().is_empty()
}

/// The body of a response, whose last word is looked at.
struct Ending {
    body: Body,
    method: Method,
}

impl Ending {
    fn complete(&self, frame: Frame<Bytes>) -> Frame<Bytes> {
        let Some(trailers) = frame.trailers_ref() else { return frame };
        let Some(status) = Status::from_header_map(trailers) else { return frame };
        if !lacks_details(&status) {
            return frame;
        }
        let status = Status::from(self.method.explain(&status, Found::Later));
        let mut trailers = trailers.clone();
        match status.add_header(&mut trailers) {
            Ok(()) => Frame::trailers(trailers),
            // A message that fits no header: the error goes out as it came.
            Err(_) => frame,
        }
    }
}

impl http_body::Body for Ending {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        Poll::Ready(frame.map(|frame| frame.map(|frame| self.complete(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use lockstep_client::{Outcome, reason};

    use super::*;

    /// What gRPC itself finds, and what a client reads of it.
    #[test]
    fn grpcs_own_errors_have_details() {
        use Found::{Before, Later};
        let (not_applied, unknown) = (Outcome::NotApplied, Outcome::Unknown);
        let (execute, query) = ("/lockstep.v1.Client/Execute", "/lockstep.v1.Client/Query");
        let rows = [
            (execute, Code::Internal, Before, reason::BAD_REQUEST, not_applied),
            (execute, Code::OutOfRange, Before, reason::TOO_LARGE, not_applied),
            (execute, Code::Unimplemented, Before, reason::UNIMPLEMENTED, not_applied),
            (execute, Code::DeadlineExceeded, Later, reason::DEADLINE_EXCEEDED, unknown),
            (execute, Code::Internal, Later, reason::INTERNAL, unknown),
            (query, Code::DeadlineExceeded, Later, reason::DEADLINE_EXCEEDED, not_applied),
            (query, Code::Internal, Later, reason::BAD_REQUEST, not_applied),
            (
                "/grpc.health.v1.Health/Check",
                Code::NotFound,
                Before,
                reason::BAD_REQUEST,
                not_applied,
            ),
        ];
        for (path, code, found, reason, outcome) in rows {
            let error = Method::of(path).explain(&Status::new(code, ""), found);
            let error = lockstep_client::Error::from_status(&error.into());
            assert_eq!((error.reason.as_str(), error.outcome), (reason, outcome), "{path} {code}");
        }
    }

    /// Trailers without details get them; those with details, and those of a success, stay.
    #[test]
    fn trailers_are_completed() {
        let body = Body::empty();
        let ending = Ending { body, method: Method::of("/lockstep.v1.Client/ExecuteStream") };
        let complete = |status: Status| {
            let mut trailers = http::HeaderMap::new();
            status.add_header(&mut trailers).unwrap();
            let frame = ending.complete(Frame::trailers(trailers));
            Status::from_header_map(frame.trailers_ref().unwrap()).unwrap()
        };
        let bare = complete(Status::internal("broken"));
        assert_eq!(lockstep_client::Error::from_status(&bare).reason, reason::INTERNAL);
        let own = Status::from(error::found(&Status::internal("x"), Found::Before));
        assert_eq!(complete(own.clone()).details(), own.details());
        assert!(complete(Status::ok("")).details().is_empty());
    }
}
