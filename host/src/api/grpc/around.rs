//! What is done around every call: the frame of a tower service, written once.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

/// How a service answers, for whoever stands around one.
pub(super) type Answer = Result<Response<Body>, Infallible>;

/// What is done around a call.
pub(super) trait Around: Clone {
    /// Makes a call by `inner`, or answers in its place. What is done before the returned future
    /// is polled is done in the order of the calls.
    fn around<F>(
        &self,
        request: Request<Body>,
        inner: impl FnOnce(Request<Body>) -> F,
    ) -> impl Future<Output = Answer> + Send + 'static
    where
        F: Future<Output = Answer> + Send + 'static;
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
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.around.around(request, |request| self.inner.call(request)))
    }
}
