use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderName, Request, Response, header::CONTENT_TYPE};
use http_body::Body;
use palisade_core::{BoxError, head::RequestHead};
use pin_project::pin_project;
use tokio::time::{Sleep, sleep};
use tower_service::Service;

use crate::{
    ChaosBody,
    injection::{End, Injection},
    layer::Settings,
    shared::Shared,
};

/// A service with faults.
#[derive(Clone, Debug)]
pub struct Chaos<S> {
    inner: S,
    shared: Arc<Shared>,
    settings: Settings,
}

impl<S> Chaos<S> {
    pub(crate) fn new(inner: S, shared: Arc<Shared>, settings: Settings) -> Self {
        Self {
            inner,
            shared,
            settings,
        }
    }

    fn strikes<B>(&self, request: &mut Request<B>) -> Option<Injection> {
        if self.shared.is_off() {
            return None;
        }
        let secret = self.settings.secret.as_ref();
        let demand = secret.and_then(|secret| secret.take(request.headers_mut()));
        let head = RequestHead::from(&*request);
        self.shared.decide(&head, is_grpc(&head), demand.as_ref())
    }
}

fn is_grpc(head: &RequestHead<'_>) -> bool {
    let kind = head.headers.get(CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

impl<S, B, R> Service<Request<B>> for Chaos<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone,
    S::Error: Into<BoxError>,
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    type Response = Response<ChaosBody<R>>;
    type Error = BoxError;
    type Future = ChaosFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    #[inline]
    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let Some(mut injection) = self.strikes(&mut request) else {
            let inner = self.inner.call(request);
            return ChaosFuture {
                state: State::Called { inner },
                struck: None,
            };
        };
        let is_grpc = is_grpc(&RequestHead::from(&request));
        let then = match injection.begin() {
            Some(end) => Then::End(end),
            None => {
                let clone = self.inner.clone();
                // The one that was ready is the one that is called.
                Then::Call(mem::replace(&mut self.inner, clone), request)
            }
        };
        let state = if injection.delay.is_zero() {
            State::Due
        } else {
            let sleep = Box::pin(sleep(injection.delay));
            State::Delayed { sleep }
        };
        let struck = Struck {
            injection,
            then: Some(then),
            is_grpc,
            mark: self.settings.mark.clone(),
        };
        ChaosFuture {
            state,
            struck: Some(Box::new(struck)),
        }
    }
}

/// The future of [`Chaos`]. Dropped while it is held up, it leaves the service uncalled.
#[pin_project]
pub struct ChaosFuture<S: Service<Request<B>>, B> {
    #[pin]
    state: State<S::Future>,
    /// `None` for a request that nothing happens to.
    struck: Option<Box<Struck<S, B>>>,
}

/// A request that something happens to.
struct Struck<S, B> {
    injection: Injection,
    /// `None` once it was begun.
    then: Option<Then<S, B>>,
    is_grpc: bool,
    mark: Option<HeaderName>,
}

/// What comes when the wait is over.
enum Then<S, B> {
    Call(S, Request<B>),
    End(End),
}

#[pin_project(project = StateProj)]
enum State<F> {
    Called {
        #[pin]
        inner: F,
    },
    Delayed {
        sleep: Pin<Box<Sleep>>,
    },
    /// The wait, if there was one, is over.
    Due,
    Hung,
}

impl<S, B, R> Future for ChaosFuture<S, B>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    type Output = Result<Response<ChaosBody<R>>, BoxError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut state = this.state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Called { inner } => {
                    let answer = ready!(inner.poll(cx)).map_err(Into::into);
                    let struck = this.struck.take();
                    return Poll::Ready(answer.map(|response| answered(response, struck)));
                }
                StateProj::Delayed { sleep } => {
                    ready!(sleep.as_mut().poll(cx));
                    State::Due
                }
                StateProj::Due => {
                    let struck = this.struck.as_mut().expect("polled after completion");
                    match struck.then.take().expect("polled after a panic") {
                        Then::Call(mut service, request) => {
                            let inner = service.call(request);
                            State::Called { inner }
                        }
                        Then::End(end) => match end.strike(struck.is_grpc) {
                            Some(answer) => {
                                let struck = this.struck.take();
                                return Poll::Ready(answer.map(|response| made(response, struck)));
                            }
                            None => State::Hung,
                        },
                    }
                }
                // As a server that never answers: nothing will wake it.
                StateProj::Hung => return Poll::Pending,
            };
            state.set(next);
        }
    }
}

fn answered<S, B, R>(
    mut response: Response<R>,
    struck: Option<Box<Struck<S, B>>>,
) -> Response<ChaosBody<R>> {
    let Some(mut struck) = struck else {
        return response.map(|body| ChaosBody::service(body, None));
    };
    struck.injection.mark(&mut response, struck.mark.as_ref());
    response.map(|body| ChaosBody::service(body, struck.injection.cut.take()))
}

fn made<S, B, R>(
    mut response: Response<Bytes>,
    struck: Option<Box<Struck<S, B>>>,
) -> Response<ChaosBody<R>> {
    if let Some(struck) = struck {
        struck.injection.mark(&mut response, struck.mark.as_ref());
    }
    response.map(ChaosBody::made)
}

impl<S: Service<Request<B>>, B> fmt::Debug for ChaosFuture<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChaosFuture")
            .field("struck", &self.struck.is_some())
            .finish_non_exhaustive()
    }
}
