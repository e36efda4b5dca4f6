use std::{fmt, sync::Arc};

use palisade_core::{
    classify::{Classify, Http},
    head::RequestHead,
};
use tower_layer::Layer;
use tracing::Span;

use crate::{
    Kind, Trace,
    propagate::{Forward, Propagate},
};

/// Gives each request, or each attempt, a span that lives until its answer has ended.
///
/// ```
/// use palisade_core::classify::Sse;
/// use palisade_trace::TraceLayer;
/// use tower::Layer;
///
/// let layer = TraceLayer::request().classify(Sse);
/// let service = layer.layer("any service");
/// # assert!(format!("{service:?}").contains("any service"));
/// ```
#[derive(Clone)]
pub struct TraceLayer<C = Http, P = Forward> {
    settings: Settings,
    classify: C,
    propagate: P,
}

/// What makes a span.
type Make = dyn Fn(&RequestHead<'_>) -> Span + Send + Sync;

#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) kind: Kind,
    pub(crate) make: Option<Arc<Make>>,
    pub(crate) judges: bool,
}

impl TraceLayer {
    /// Spans for what comes in: each continues the trace that `traceparent` names. For outside of all other layers.
    pub fn request() -> Self {
        Self::new(Kind::Request)
    }

    /// Spans for what goes out: each is the parent of what is done there, which `traceparent` says. For inside of retry
    /// and balance.
    pub fn attempt() -> Self {
        Self::new(Kind::Attempt)
    }

    fn new(kind: Kind) -> Self {
        Self {
            settings: Settings {
                kind,
                make: None,
                judges: true,
            },
            classify: Http,
            propagate: Forward,
        }
    }
}

impl<C, P> TraceLayer<C, P> {
    /// Makes the spans; otherwise they are [`request_span!`](crate::request_span) or
    /// [`attempt_span!`](crate::attempt_span) with what [`record_head`](crate::record_head) says.
    ///
    /// One that is disabled is not traced.
    #[must_use]
    pub fn span<F>(mut self, make: F) -> Self
    where
        F: Fn(&RequestHead<'_>) -> Span + Send + Sync + 'static,
    {
        self.settings.make = Some(Arc::new(make));
        self
    }

    /// Leaves it to somebody further in, who knows more, to say how it ended: with [`record_end`](crate::record_end) on
    /// the current span, while the answer ends or is dropped.
    #[must_use]
    pub fn unjudged(mut self) -> Self {
        self.settings.judges = false;
        self
    }

    /// Judges answers with `classify` instead of by HTTP status.
    #[must_use]
    pub fn classify<D: Classify>(self, classify: D) -> TraceLayer<D, P> {
        TraceLayer {
            settings: self.settings,
            classify,
            propagate: self.propagate,
        }
    }

    /// Links spans to those of other programs with `propagate`; otherwise headers are passed on as they came.
    #[must_use]
    pub fn propagate<Q: Propagate>(self, propagate: Q) -> TraceLayer<C, Q> {
        TraceLayer {
            settings: self.settings,
            classify: self.classify,
            propagate,
        }
    }
}

impl<S, C: Classify, P: Propagate> Layer<S> for TraceLayer<C, P> {
    type Service = Trace<S, C, P>;

    fn layer(&self, inner: S) -> Trace<S, C, P> {
        let (classify, propagate) = (self.classify.clone(), self.propagate.clone());
        Trace::new(inner, self.settings.clone(), classify, propagate)
    }
}

impl<C: fmt::Debug, P: fmt::Debug> fmt::Debug for TraceLayer<C, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TraceLayer")
            .field("kind", &self.settings.kind)
            .field("classify", &self.classify)
            .field("propagate", &self.propagate)
            .finish_non_exhaustive()
    }
}
