//! A call that ends early ends with an `ErrorInfo`, whatever layer found the error. The services
//! give one to each of theirs; this gives one to those that gRPC finds by itself: a message that is
//! none, an unknown method, a deadline that passes while a request is still coming in.
//!
//! It stands inside of tonic's own deadline, which answers without details, and is a little
//! earlier.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, Request, Response, Uri};
use http_body::Frame;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::{Code, Status};

use super::around::{Answer, Around};
use super::edge;
use super::error::{self, Found};
use super::metered::Meter;
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

/// Counts calls, and gives details to errors without.
#[derive(Clone)]
pub(super) struct Answering(pub(super) Meter);

impl Around for Answering {
    fn around<F>(
        &self,
        request: Request<Body>,
        inner: impl FnOnce(Request<Body>) -> F,
    ) -> impl Future<Output = Answer> + Send + 'static
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let method = Method::of(request.uri());
        let limit = edge::asked_timeout(request.headers());
        let limit = limit.map(|limit| limit - (limit / 20).min(ANSWER_TIME_MAX));
        let last = method.clone();
        let answer = self.0.call(request, inner, move |frame| last.complete(frame));
        async move {
            let response = match limit {
                None => answer.await?,
                Some(limit) => match timeout(limit, answer).await {
                    Ok(response) => response?,
                    Err(_) => return Ok(Status::from(method.late()).into_http()),
                },
            };
            Ok(method.answer(response))
        }
    }
}

/// What an error of a call can say about it.
#[derive(Clone, Debug)]
struct Method {
    reads: bool,
    path: PathAndQuery,
}

impl Method {
    fn of(uri: &Uri) -> Self {
        let path = uri.path();
        let reads = READS.contains(&path) || !path.starts_with("/lockstep.v1.");
        let root = || PathAndQuery::from_static("/");
        Self { reads, path: uri.path_and_query().cloned().unwrap_or_else(root) }
    }

    fn late(&self) -> Error {
        let status = Status::deadline_exceeded("the deadline passed before the answer");
        self.explain(&status, Found::Later)
    }

    /// An error, found by gRPC, as clients see it.
    fn explain(&self, status: &Status, found: Found) -> Error {
        let found = if self.reads { Found::Before } else { found };
        if status.code() == Code::Unimplemented && status.message().is_empty() {
            let (path, version) = (self.path.path(), env!("CARGO_PKG_VERSION"));
            let text = format!("there is no method {path} in lockstep {version}");
            return error::found(&Status::unimplemented(text), found);
        }
        error::found(status, found)
    }

    /// The response with details, if it is an error without.
    fn answer(self, response: Response<Body>) -> Response<Body> {
        // An error in the headers comes before any reply. Every service puts details into its own,
        // so one without was found before the service was asked.
        match error_without_details(response.headers()) {
            Some(status) => Status::from(self.explain(&status, Found::Before)).into_http(),
            None => response,
        }
    }

    /// The last frame of a response with details, if it is an error without.
    fn complete(&self, frame: Frame<Bytes>) -> Frame<Bytes> {
        let Some(trailers) = frame.trailers_ref() else { return frame };
        let Some(status) = error_without_details(trailers) else { return frame };
        let status = Status::from(self.explain(&status, Found::Later));
        let mut trailers = trailers.clone();
        match status.add_header(&mut trailers) {
            Ok(()) => Frame::trailers(trailers),
            // A message that fits no header: the error goes out as it came.
            Err(_) => frame,
        }
    }
}

/// The error in headers or trailers, where nobody has given it details. Calls that end well are
/// told by one look, since a status is costly to read.
fn error_without_details(headers: &HeaderMap) -> Option<Status> {
    headers.get(Status::GRPC_STATUS).filter(|code| *code != "0")?;
    Status::from_header_map(headers).filter(|status| status.details().is_empty())
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
            let error = Method::of(&Uri::from_static(path)).explain(&Status::new(code, ""), found);
            let error = lockstep_client::Error::from_status(&error.into());
            assert_eq!((error.reason.as_str(), error.outcome), (reason, outcome), "{path} {code}");
        }
    }

    /// Trailers without details get them; those with details, and those of a success, stay.
    #[test]
    fn trailers_are_completed() {
        let method = Method::of(&Uri::from_static("/lockstep.v1.Client/ExecuteStream"));
        let complete = |status: Status| {
            let mut trailers = HeaderMap::new();
            status.add_header(&mut trailers).unwrap();
            let frame = method.complete(Frame::trailers(trailers));
            Status::from_header_map(frame.trailers_ref().unwrap()).unwrap()
        };
        let bare = complete(Status::internal("broken"));
        assert_eq!(lockstep_client::Error::from_status(&bare).reason, reason::INTERNAL);
        let own = Status::from(error::found(&Status::internal("x"), Found::Before));
        assert_eq!(complete(own.clone()).details(), own.details());
        assert!(complete(Status::ok("")).details().is_empty());
    }
}
