//! A call that ends early ends with an `ErrorInfo`, whatever layer found the error. The services
//! give one to each of theirs; this gives one to those that gRPC finds by itself: a message that is
//! none, an unknown method, a deadline that passes while a request is still coming in.
//!
//! It stands inside of tonic's own deadline, which answers without details, and is a little
//! earlier.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, Request, Response, Uri};
use http_body::Frame;
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};
use tonic::body::Body;
use tonic::{Code, Status};

use super::around::{Answer, Answering, Around};
use super::edge;
use super::error::{self, Found};
use super::metered::{Meter, Metered, sent};
use crate::api::door::Error;

/// This layer's deadline is a twentieth earlier than tonic's, at most by this. The replica's own is
/// earlier still.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(10);
/// The methods that most calls are of; none needs a timer here.
const KEEPS_DEADLINES: [&str; 2] = ["/lockstep.v1.Client/Execute", "/lockstep.v1.Client/Query"];
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
pub(super) struct Completed(pub(super) Meter);

impl Around for Completed {
    type Call<F: Answering> = Answered<F>;

    fn around<F: Answering>(
        &self,
        request: Request<Body>,
        inner: impl FnOnce(Request<Body>) -> F,
    ) -> Answered<F> {
        let method = Method::of(request.uri());
        let limit = edge::asked_timeout(request.headers());
        let limit = limit.map(|limit| limit - (limit / 20).min(ANSWER_TIME_MAX));
        let metered = self.0.call(request, inner, limit.unwrap_or(Duration::MAX));
        let late = limit
            .filter(|_| matches!(method, Method::Other(_)))
            .map(|limit| Box::pin(sleep(limit)));
        Answered { metered, late, method: Some(method) }
    }
}

pin_project! {
    /// A call until it is answered, or late.
    pub(super) struct Answered<F> {
        #[pin]
        metered: Metered<F>,
        // In a box, since most calls have none.
        late: Option<Pin<Box<Sleep>>>,
        method: Option<Method>,
    }
}

impl<F: Answering> Future for Answered<F> {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        let this = self.project();
        let answered = this.metered.poll(context);
        let is_late = answered.is_pending()
            && this.late.as_mut().is_some_and(|late| late.as_mut().poll(context).is_ready());
        if answered.is_pending() && !is_late {
            return Poll::Pending;
        }
        let method = this.method.take().expect("a future that is ready is polled no more");
        Poll::Ready(Ok(match answered {
            Poll::Pending => Status::from(method.late()).into_http(),
            Poll::Ready((response, call)) => {
                let response = method.answer(response);
                sent(response, call, move |frame| method.complete(frame))
            }
        }))
    }
}

/// What an error of a call can say about it.
#[derive(Clone, Debug)]
enum Method {
    /// Its service answers in time by itself, once the request has come in.
    KeepsDeadlines(&'static str),
    /// Any other, and those that there are not.
    Other(PathAndQuery),
}

impl Method {
    fn of(uri: &Uri) -> Self {
        let root = || PathAndQuery::from_static("/");
        match KEEPS_DEADLINES.into_iter().find(|path| *path == uri.path()) {
            Some(path) => Self::KeepsDeadlines(path),
            None => Self::Other(uri.path_and_query().cloned().unwrap_or_else(root)),
        }
    }

    fn path(&self) -> &str {
        match self {
            Self::KeepsDeadlines(path) => path,
            Self::Other(path) => path.path(),
        }
    }

    fn reads(&self) -> bool {
        let path = self.path();
        READS.contains(&path) || !path.starts_with("/lockstep.v1.")
    }

    fn late(&self) -> Error {
        let status = Status::deadline_exceeded("the deadline passed before the answer");
        self.explain(&status, Found::Later)
    }

    /// An error, found by gRPC, as clients see it.
    fn explain(&self, status: &Status, found: Found) -> Error {
        let found = if self.reads() { Found::Before } else { found };
        if status.code() == Code::Unimplemented && status.message().is_empty() {
            let (path, version) = (self.path(), env!("CARGO_PKG_VERSION"));
            let text = format!("there is no method {path} in lockstep {version}");
            return error::found(&Status::unimplemented(text), found);
        }
        error::found(status, found)
    }

    /// The response with details, if it is an error without.
    fn answer(&self, response: Response<Body>) -> Response<Body> {
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
