//! One service and one future for everything that only decides and accounts.

mod pair;

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use pin_project::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    BoxError,
    classify::{Classify, Http, Judge, Verdict},
    head::RequestHead,
    reject::Rejected,
    settle::{End, ResponseBody, Settle, Watch},
    time,
};

/// Lets requests through or rejects them, and hears how those that it let through have ended.
///
/// Clones share their state.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a gate",
    note = "`GateLayer` takes gates such as `CircuitBreaker`; a layer goes into a `ServiceBuilder`"
)]
pub trait Gate: Clone + Send + Sync + 'static {
    /// Proof of admission, held until the request is over.
    type Guard: Settle;

    /// Decides by the head of the request, before its body is touched.
    fn admit(&self, head: &RequestHead<'_>, now: Instant) -> Admit<Self::Guard>;

    /// What a request would meet now, without taking a place: for a balancer that scans many endpoints.
    ///
    /// A hint: only [`admit`](Self::admit) decides. Asked under the lock of a set of endpoints, so it should look at an
    /// atomic and no more.
    fn outlook(&self, _now: Instant) -> Outlook {
        Outlook::Admits
    }
}

/// What a request would meet at a gate.
///
/// Speaks of how requests have ended, which is what a balancer ejects for and may overrule when too many endpoints are
/// out. A gate that refuses for other reasons, such as a limit, [admits](Self::Admits) here and refuses in
/// [`admit`](Gate::admit).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// It passes.
    Admits,
    /// It passes as a probe, whose end decides about the requests after it.
    Probes,
    /// It is refused, because of how earlier requests have ended.
    Refuses {
        /// When that changes by itself; `None` when only the end of another request changes it.
        until: Option<Instant>,
    },
    /// It is refused, because somebody said so: nothing overrides that.
    Held,
}

/// A decision that is still to come.
pub type Admission<G> = Pin<Box<dyn Future<Output = Result<G, Rejected>> + Send>>;

/// What a gate decided.
pub enum Admit<G> {
    /// At once.
    Now(Result<G, Rejected>),
    /// After asking a store or waiting in a queue: the one boxed step.
    Later(Admission<G>),
}

impl<G> fmt::Debug for Admit<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Now(Ok(_)) => "Now(Ok)",
            Self::Now(Err(_)) => "Now(Err)",
            Self::Later(_) => "Later",
        })
    }
}

/// No gate at all.
impl Gate for () {
    type Guard = ();

    #[inline]
    fn admit(&self, _: &RequestHead<'_>, _: Instant) -> Admit<()> {
        Admit::Now(Ok(()))
    }
}

impl Settle for () {
    const AWAITS_DATA: bool = false;

    #[inline]
    fn settle_untimed(&mut self, _: Verdict) -> bool {
        true
    }

    #[inline]
    fn settle(&mut self, _: &End, _: Instant) {}
}

/// Puts a gate in front of a service.
///
/// Neighbours put together with [`and`](Self::and) share one future, one body and one reading of the
/// clock each way.
///
/// # Example
///
/// ```
/// use palisade_core::{classify::Grpc, gate::GateLayer};
/// use tower_layer::Layer;
///
/// // `()` is the gate that lets everything through; see `palisade-rate-limit` for one that does not.
/// let layer = GateLayer::new(()).and(()).classify(Grpc);
/// let service = layer.layer("any service");
/// # assert_eq!(format!("{service:?}").contains("any service"), true);
/// ```
#[derive(Clone, Debug)]
pub struct GateLayer<G, C = Http> {
    gate: G,
    classify: C,
}

impl<G: Gate> GateLayer<G> {
    /// Judges how requests end by HTTP status.
    pub fn new(gate: G) -> Self {
        Self {
            gate,
            classify: Http,
        }
    }
}

impl<G: Gate, C: Classify> GateLayer<G, C> {
    /// Puts another gate behind this one.
    #[must_use]
    pub fn and<H: Gate>(self, next: H) -> GateLayer<(G, H), C> {
        GateLayer {
            gate: (self.gate, next),
            classify: self.classify,
        }
    }

    /// Judges how requests end with `classify` instead.
    #[must_use]
    pub fn classify<D: Classify>(self, classify: D) -> GateLayer<G, D> {
        GateLayer {
            gate: self.gate,
            classify,
        }
    }

    /// The gate itself.
    pub fn gate(&self) -> &G {
        &self.gate
    }
}

/// One layer for several gates, outermost first; they share one future and one body.
///
/// ```
/// use palisade_core::{classify::Sse, gate::gates};
///
/// let layer = gates(((), (), ())).classify(Sse);
/// # let _: palisade_core::gate::GateLayer<(((), ()), ()), Sse> = layer;
/// ```
pub fn gates<T: Gates>(gates: T) -> GateLayer<T::Gate> {
    GateLayer::new(gates.fuse())
}

/// Two to eight gates in a tuple.
pub trait Gates {
    /// All of them as one.
    type Gate: Gate;

    /// Nests them in pairs.
    fn fuse(self) -> Self::Gate;
}

macro_rules! fuse {
    ($first:ident $(, $rest:ident)+) => { fuse!(@ [$first] [$first] $($rest),+); };
    (@ [$($all:ident),+] [$($pair:tt)+] $next:ident $(, $rest:ident)*) => {
        impl<$($all: Gate,)+ $next: Gate> Gates for ($($all,)+ $next) {
            type Gate = ($($pair)+, $next);

            #[allow(non_snake_case, reason = "the variables are named after their types")]
            fn fuse(self) -> Self::Gate {
                let ($($all,)+ $next) = self;
                ($($pair)+, $next)
            }
        }
        fuse!(@ [$($all,)+ $next] [($($pair)+, $next)] $($rest),*);
    };
    (@ [$($all:ident),+] [$($pair:tt)+]) => {};
}

fuse!(A, B, C, D, E, F, G, H);

impl<S, G: Gate, C: Classify> Layer<S> for GateLayer<G, C> {
    type Service = Gated<S, G, C>;

    fn layer(&self, inner: S) -> Self::Service {
        Gated {
            inner,
            gate: self.gate.clone(),
            classify: self.classify.clone(),
        }
    }
}

/// A service behind a gate.
#[derive(Clone, Debug)]
pub struct Gated<S, G, C = Http> {
    inner: S,
    gate: G,
    classify: C,
}

impl<S, G, C, ReqBody, ResBody> Service<Request<ReqBody>> for Gated<S, G, C>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    S::Error: Into<BoxError>,
    G: Gate,
    C: Classify,
    ResBody: Body<Data = Bytes>,
{
    type Response = Response<ResponseBody<ResBody, G::Guard, C::Judge>>;
    type Error = BoxError;
    type Future = ResponseFuture<S, ReqBody, G::Guard, C::Judge>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    #[inline]
    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let now = time::now();
        let head = RequestHead::from(&request);
        // Before admission: a classifier that panics has nothing to give back.
        let judge = self.classify.start(&head);
        // Each future is written where it is returned: they are large.
        match self.gate.admit(&head, now) {
            Admit::Now(Ok(guard)) => {
                let watch = Watch::new(guard, judge, now).asked_with(request.method());
                ResponseFuture {
                    state: State::Called {
                        // With the guard at hand, so that a panic in there settles it.
                        inner: self.inner.call(request),
                        watch: Some(watch),
                    },
                }
            }
            Admit::Now(Err(rejected)) => ResponseFuture {
                state: State::Rejected {
                    rejected: Some(rejected),
                },
            },
            Admit::Later(admission) => {
                let clone = self.inner.clone();
                let waiting = Waiting {
                    admission,
                    // The one that was ready is the one that is called.
                    service: mem::replace(&mut self.inner, clone),
                    request,
                    judge,
                    since: now,
                };
                ResponseFuture {
                    state: State::Waiting {
                        waiting: Some(Box::new(waiting)),
                    },
                }
            }
        }
    }
}

/// A response future that settles its guard.
///
/// Dropped before its answer, it tells the guard [`Verdict::Canceled`].
#[pin_project]
pub struct ResponseFuture<S: Service<Request<R>>, R, G: Settle, J: Judge> {
    #[pin]
    state: State<S, R, G, J>,
}

#[pin_project(project = StateProj)]
enum State<S: Service<Request<R>>, R, G: Settle, J: Judge> {
    Waiting {
        waiting: Option<Box<Waiting<S, R, G, J>>>,
    },
    Called {
        #[pin]
        inner: S::Future,
        watch: Option<Watch<G, J>>,
    },
    Rejected {
        rejected: Option<Rejected>,
    },
}

/// Boxed, so that requests that need not wait are not moved around with room for it.
struct Waiting<S, R, G, J> {
    admission: Admission<G>,
    service: S,
    request: Request<R>,
    judge: J,
    since: Instant,
}

impl<S: Service<Request<R>>, R, G: Settle, J: Judge> Waiting<S, R, G, J> {
    fn go(mut self, admitted: Result<G, Rejected>) -> State<S, R, G, J> {
        match admitted {
            Ok(guard) => {
                let watch =
                    Watch::new(guard, self.judge, self.since).asked_with(self.request.method());
                State::Called {
                    inner: self.service.call(self.request),
                    watch: Some(watch),
                }
            }
            Err(rejected) => State::Rejected {
                rejected: Some(rejected),
            },
        }
    }
}

impl<S, R, B, G, J> Future for ResponseFuture<S, R, G, J>
where
    S: Service<Request<R>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes>,
    G: Settle,
    J: Judge,
{
    type Output = Result<Response<ResponseBody<B, G, J>>, BoxError>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.as_mut().project().state;
        if let StateProj::Waiting { waiting } = state.as_mut().project() {
            let admission = &mut waiting.as_mut().expect("polled after a panic").admission;
            let admitted = ready!(admission.as_mut().poll(cx));
            let waiting = waiting.take().expect("polled just now");
            state.set(waiting.go(admitted));
        }
        let (inner, watch) = match state.project() {
            StateProj::Called { inner, watch } => (inner, watch),
            StateProj::Rejected { rejected } => {
                let rejected = rejected.take().expect("polled after completion");
                return Poll::Ready(Err(rejected.into()));
            }
            StateProj::Waiting { .. } => unreachable!("left above"),
        };
        match inner.poll(cx) {
            Poll::Ready(Ok(response)) => Poll::Ready(Ok(Watch::answer_from(watch, response))),
            Poll::Ready(Err(error)) => {
                // Out of the future, so that a judge that panics settles the guard here and now.
                let mut watch = watch.take().expect("polled after completion");
                let mut error = error.into();
                watch.fail(&mut error);
                Poll::Ready(Err(error))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: Service<Request<R>>, R, G: Settle, J: Judge> fmt::Debug for ResponseFuture<S, R, G, J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
