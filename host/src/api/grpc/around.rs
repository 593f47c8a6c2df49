//! What is done around every call: the frame of a tower service, written once.

use std::convert::Infallible;
use std::future::Future;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

/// How a service answers, for whoever stands around one.
pub(super) type Answer = Result<Response<Body>, Infallible>;

/// The future of a service's answer.
pub(super) trait Answering: Future<Output = Answer> + Send + 'static {}

impl<F: Future<Output = Answer> + Send + 'static> Answering for F {}

/// What is done around a call.
pub(super) trait Around: Clone {
    /// A call with that around it. It has a name so that it needs no box: there is one for each
    /// call.
    type Call<F: Answering>: Answering;

    /// Makes a call by `inner`, or answers in its place. What is done before the returned future
    /// is polled is done in the order of the calls.
    fn around<F: Answering>(
        &self,
        request: Request<Body>,
        inner: impl FnOnce(Request<Body>) -> F,
    ) -> Self::Call<F>;
}

/// Puts something around a service.
#[derive(Clone, Copy)]
pub(super) struct Layered<A>(pub(super) A);

/// A service with something around it.
#[derive(Clone)]
pub(super) struct Surrounded<S, A> {
    inner: S,
    around: A,
}

impl<S, A: Around> Layer<S> for Layered<A> {
    type Service = Surrounded<S, A>;

    fn layer(&self, inner: S) -> Surrounded<S, A> {
        Surrounded { inner, around: self.0.clone() }
    }
}

impl<S, A> Service<Request<Body>> for Surrounded<S, A>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
    A: Around,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = A::Call<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.around.around(request, |request| self.inner.call(request))
    }
}
