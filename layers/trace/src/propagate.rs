use tracing::Span;

use crate::TraceContext;

/// Lets spans take part in traces that go through several programs.
///
/// `tracing` knows nothing of those: whoever exports the spans gives them the names that other programs hear.
pub trait Propagate: Clone + Send + Sync + 'static {
    /// Puts a new span below the one that sent the request.
    fn join(&self, span: &Span, parent: &TraceContext);

    /// The name of a span in its trace, if it has one.
    fn context(&self, span: &Span) -> Option<TraceContext>;
}

/// Leaves the headers of requests as they are: who sent them and who gets them are in one trace, with nothing between.
#[derive(Clone, Copy, Debug, Default)]
pub struct Forward;

impl Propagate for Forward {
    fn join(&self, _: &Span, _: &TraceContext) {}

    fn context(&self, _: &Span) -> Option<TraceContext> {
        None
    }
}

/// Joins the traces of OpenTelemetry, as far as a layer of `tracing-opentelemetry` sees the spans.
///
/// ```
/// use palisade_trace::{OpenTelemetry, TraceLayer};
///
/// let requests = TraceLayer::request().propagate(OpenTelemetry);
/// let attempts = TraceLayer::attempt().propagate(OpenTelemetry);
/// # let _ = (requests, attempts);
/// ```
#[cfg(feature = "opentelemetry")]
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenTelemetry;

#[cfg(feature = "opentelemetry")]
mod opentelemetry {
    use ::opentelemetry::{
        Context,
        trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
    };
    use tracing::Span;
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    use super::{OpenTelemetry, Propagate};
    use crate::{TraceContext, context::Id};

    impl Propagate for OpenTelemetry {
        fn join(&self, span: &Span, parent: &TraceContext) {
            let state = parent.vendors().map(str::parse);
            let remote = SpanContext::new(
                TraceId::from_bytes(parent.trace_id().to_bytes()),
                SpanId::from_bytes(parent.span_id().to_bytes()),
                TraceFlags::new(parent.flags()),
                true,
                state.and_then(Result::ok).unwrap_or(TraceState::NONE),
            );
            // It fails where nobody exports the span, and then there is nothing to join.
            let _unseen = span.set_parent(Context::new().with_remote_span_context(remote));
        }

        fn context(&self, span: &Span) -> Option<TraceContext> {
            let context = span.context();
            let span = context.span();
            let span = span.span_context();
            let trace_id = Id::new(span.trace_id().to_bytes())?;
            let span_id = Id::new(span.span_id().to_bytes())?;
            let context = TraceContext::new(trace_id, span_id, span.trace_flags().to_u8());
            Some(context.state(&span.trace_state().header()))
        }
    }
}
