use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use palisade_core::{
    BoxError,
    classify::{Classify, Http, Judge},
    head::RequestHead,
    settle::Watch,
    time,
};
use pin_project::{pin_project, pinned_drop};
use tower_service::Service;
use tracing::Span;

use crate::{
    Kind, TraceBody, TraceContext, attempt_span,
    guard::{Guard, Traced},
    layer::Settings,
    propagate::{Forward, Propagate},
    request_span,
    span::record_head,
};

/// A service whose calls have spans.
#[derive(Clone)]
pub struct Trace<S, C = Http, P = Forward> {
    inner: S,
    settings: Settings,
    classify: C,
    propagate: P,
}

impl<S, C, P> Trace<S, C, P> {
    pub(crate) fn new(inner: S, settings: Settings, classify: C, propagate: P) -> Self {
        Self {
            inner,
            settings,
            classify,
            propagate,
        }
    }

    #[inline]
    fn span<B>(&self, request: &Request<B>) -> Span {
        if let Some(make) = &self.settings.make {
            return make(&RequestHead::from(request));
        }
        let span = match self.settings.kind {
            Kind::Request => request_span!(),
            Kind::Attempt => attempt_span!(),
        };
        if !span.is_disabled() {
            record_head(&span, &RequestHead::from(request));
        }
        span
    }
}

impl<S, C, P: Propagate> Trace<S, C, P> {
    /// Says in both directions how the span and those of other programs belong together.
    fn link<B>(&self, span: &Span, request: &mut Request<B>) {
        match self.settings.kind {
            Kind::Request => {
                if let Some(parent) = TraceContext::read(request.headers()) {
                    self.propagate.join(span, &parent);
                }
            }
            Kind::Attempt => {
                if let Some(context) = self.propagate.context(span) {
                    context.write(request.headers_mut());
                }
            }
        }
    }
}

impl<S, C, P, B, R> Service<Request<B>> for Trace<S, C, P>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    C: Classify,
    P: Propagate,
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    type Response = Response<TraceBody<R, C::Judge>>;
    type Error = BoxError;
    type Future = TraceFuture<S::Future, C::Judge>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    #[inline]
    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let span = self.span(&request);
        if span.is_disabled() {
            let inner = Some(self.inner.call(request));
            return TraceFuture { inner, on: None };
        }
        self.link(&span, &mut request);
        let (now, kind) = (time::now(), self.settings.kind);
        let traced = Traced::new(span);
        let _entered = traced.span.enter();
        let judge = self.classify.start(&RequestHead::from(&request));
        let guard = Guard::new(traced.clone(), kind, self.settings.judges, now);
        // Before the service is called, so that a panic in there ends the span.
        let watch = Watch::new(guard, judge, now).asked_with(request.method());
        let inner = Some(self.inner.call(request));
        let on = Some(On {
            traced: traced.clone(),
            watch,
        });
        TraceFuture { inner, on }
    }
}

impl<S: fmt::Debug, C, P> fmt::Debug for Trace<S, C, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace")
            .field("inner", &self.inner)
            .field("kind", &self.settings.kind)
            .finish_non_exhaustive()
    }
}

/// The future of [`Trace`]. Dropped before its answer, it says on the span that the caller left.
#[pin_project(PinnedDrop)]
pub struct TraceFuture<F, J: Judge> {
    /// `None` once its answer is there, and while it is dropped.
    #[pin]
    inner: Option<F>,
    /// `None` where nobody listens.
    on: Option<On<J>>,
}

struct On<J: Judge> {
    traced: Arc<Traced>,
    watch: Watch<Guard, J>,
}

impl<F, J, R, E> Future for TraceFuture<F, J>
where
    F: Future<Output = Result<Response<R>, E>>,
    J: Judge,
    E: Into<BoxError>,
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    type Output = Result<Response<TraceBody<R, J>>, BoxError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let inner = this.inner.as_mut().as_pin_mut();
        let inner = inner.expect("polled after completion");
        let Some(on) = this.on else {
            let answer = ready!(inner.poll(cx));
            return Poll::Ready(match answer {
                Ok(response) => Ok(response.map(TraceBody::off)),
                Err(error) => Err(error.into()),
            });
        };
        let traced = on.traced.clone();
        let _entered = traced.span.enter();
        let answer = ready!(inner.poll(cx)).map_err(Into::into);
        // Now, and not when the caller drops what is ready: attempts that were given up end before their request.
        this.inner.set(None);
        let On { traced, mut watch } = this.on.take().expect("there just now");
        Poll::Ready(match answer {
            Ok(response) => {
                traced.answered(response.status());
                let response = watch.answer(response);
                Ok(response.map(|body| TraceBody::on(body, traced)))
            }
            Err(mut error) => {
                watch.fail(&mut error);
                Err(error)
            }
        })
    }
}

#[pinned_drop]
impl<F, J: Judge> PinnedDrop for TraceFuture<F, J> {
    fn drop(self: Pin<&mut Self>) {
        let mut this = self.project();
        if let Some(On { traced, watch }) = this.on.take() {
            // An exporter takes the last time that a span was left for its end: now, and not the last poll, before all that
            // the caller has waited for in vain.
            let _entered = traced.span.enter();
            // First what is inside, whose spans end before this one.
            this.inner.set(None);
            drop(watch);
        }
    }
}

impl<F, J: Judge> fmt::Debug for TraceFuture<F, J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TraceFuture")
            .field("traced", &self.on.is_some())
            .finish_non_exhaustive()
    }
}
