//! Gives each request and each attempt a `tracing` span that lives until the body of the answer has ended.
//!
//! # Example
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use palisade_core::{BoxError, classify::Sse};
//! use palisade_trace::TraceLayer;
//! use tower::{Layer, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let client = service_fn(async |_: Request<()>| {
//!     Ok::<_, BoxError>(Response::new(Full::<Bytes>::from("hello")))
//! });
//! // Outermost on a server; innermost, one for each endpoint, on a client.
//! let service = TraceLayer::request()
//!     .classify(Sse)
//!     .layer(TraceLayer::attempt().classify(Sse).layer(client));
//! let answer = service.oneshot(Request::new(())).await?;
//! assert_eq!(answer.status(), 200);
//! # Ok(())
//! # }
//! ```
//!
//! To have them exported, give `tracing-subscriber` a layer of `tracing-opentelemetry`, and the layers
//! [`OpenTelemetry`] (feature `opentelemetry`):
//!
//! ```text
//! let spans = Targets::new().with_target("palisade_trace", Level::DEBUG);
//! let exported = tracing_opentelemetry::layer().with_tracer(tracer).with_context_activation(false);
//! tracing_subscriber::registry().with(exported.with_filter(spans)).init();
//! ```
//!
//! Without [context activation](https://docs.rs/tracing-opentelemetry) a span can still be named (`otel.name`) by a
//! handler, until its first attempt begins.
//!
//! # Behaviour
//!
//! The span is current in each poll of the future and of the body, and while they are dropped: what is logged there
//! stands in it, and spans that are made there are its children. It ends when the body has ended, whoever still holds
//! the body: what is inside is dropped then.
//!
//! It carries OpenTelemetry's attributes of HTTP and of generative AI (`http.request.method`, `url.path`,
//! `http.response.status_code`, `error.type`, `gen_ai.usage.input_tokens` ...) and `palisade.verdict`, what the
//! classifier made of the answer. Spans have the level `DEBUG` and the target `palisade_trace`, so that logs at `info`
//! cost nothing; [`TraceLayer::span`] makes others.
//!
//! `traceparent` and `tracestate` of W3C Trace Context are read by [`TraceLayer::request`], strictly: what is not well
//! formed begins a new trace. [`TraceLayer::attempt`] writes them, naming its own span. What span has which name is
//! [`Propagate`]'s business; by default, [`Forward`] passes the headers on.
//!
//! # Streaming
//!
//! The span of a stream is as long as the stream. With [`Sse`](palisade_core::classify::Sse) it says when the first
//! data came (`gen_ai.response.time_to_first_chunk`), how many tokens there were, and that the stream broke off.
//!
//! # Cancellation
//!
//! A future or a body that is dropped ends its span then, with the verdict `canceled`, which is no error.
//!
//! # Clones
//!
//! Nothing is shared but the settings.
//!
//! # Errors
//!
//! Those of the service.
//!
//! # When not to use it
//!
//! For logs that only need to be told apart by request: a span of your own around the handler does.
//!
//! # Design
//!
//! tower-http's `Trace` leaves it to the user what to say at the head, at each chunk and at the end of the stream, and
//! tells nothing of a caller who leaves. Here the guard of `palisade_core` says it: once, for each end there is.
//!
//! Where nobody listens a call costs the look at an atomic, and no allocation: no judge is started, no byte read and
//! no header looked at. Where somebody does, the layer itself allocates once.
//!
//! Neither an SDK nor its global state is needed: the crate knows the two headers, and whoever exports spans says
//! which ids they have, in two functions.

mod body;
mod context;
mod guard;
mod layer;
mod propagate;
mod service;
mod span;

#[cfg(feature = "opentelemetry")]
pub use self::propagate::OpenTelemetry;
pub use self::{
    body::TraceBody,
    context::{Id, SpanId, TraceContext, TraceId},
    layer::TraceLayer,
    propagate::{Forward, Propagate},
    service::{Trace, TraceFuture},
    span::{
        Kind, record_end, record_first_data, record_head, record_head_as, record_host,
        record_server, record_status,
    },
};
#[doc(hidden)]
pub use tracing;
