//! Gives another answer, or asks another service, when the first refuses or fails.
//!
//! # Example
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response, StatusCode};
//! use http_body_util::{BodyExt, Full};
//! use palisade_core::BoxError;
//! use palisade_fallback::{FallbackLayer, ReplayBody};
//! use tower::{Layer, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), BoxError> {
//! type Sent = Request<ReplayBody<Full<Bytes>>>;
//!
//! let primary = service_fn(async |_: Sent| {
//!     let mut answer = Response::new(Full::<Bytes>::default());
//!     *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
//!     Ok::<_, BoxError>(answer)
//! });
//! let secondary = service_fn(async |request: Sent| {
//!     let echo = request.into_body().collect().await?.to_bytes();
//!     Ok::<_, BoxError>(Response::new(Full::new(echo)))
//! });
//!
//! let fallback = FallbackLayer::new()
//!     .service("secondary", secondary)
//!     .value("closed", Response::new("closed for today"));
//! let service = fallback.layer(primary);
//! let answer = service.oneshot(Request::post("/").body(Full::from("hello"))?).await?;
//! assert_eq!(answer.headers()["x-fallback"], "secondary");
//! assert_eq!(answer.into_body().collect().await?.to_bytes(), "hello");
//! assert_eq!(fallback.handle().snapshot().alternatives[0].served, 1);
//! # Ok(())
//! # }
//! ```
//!
//! # Behaviour
//!
//! The service is asked first, every time. When it could not serve ([`unserved`], or what
//! [`FallbackLayer::condition`] says), the alternatives are asked in their order: other services
//! ([`FallbackLayer::service`], or with another head, [`FallbackLayer::rewritten`]), functions
//! ([`FallbackLayer::function`]) and fixed values ([`FallbackLayer::value`]). An alternative fails by the same rules as
//! the service. What the caller did wrong is the caller's, and so is a limit that the caller is over.
//!
//! The answer of an alternative says so: in the header `x-fallback` and as [`ServedBy`] in its extensions. When all fail,
//! the last failure is passed on, as with Envoy, Polly and resilience4j, unmarked; if anybody on the way has said that
//! trying again was tried (`x-should-retry: false`, a pushback of -1,
//! [`Attempts::gave_up`](palisade_core::attempt::Attempts::gave_up)), it says so too.
//!
//! Each service among the alternatives is made ready before it is called, and gets
//! [`Attempts`](palisade_core::attempt::Attempts) of its own. None is begun once the request's
//! [`Deadline`](palisade_core::deadline::Deadline), which a deadline layer puts there only if told to, has passed.
//!
//! A [`Handle`] sends all requests to one alternative, as a drill, or lets the layer only count what it would do.
//!
//! # Streaming
//!
//! An answer that has begun is never replaced. One in one piece has begun with its head; an event stream judged by
//! [`Sse`](palisade_core::classify::Sse) with its first data: an error event or a broken connection before them is
//! replaced, comments before them are held back, up to 16 KiB. Other answers are held back as well if
//! [`FallbackLayer::hold_back`] says so: calls of gRPC that end before their first message with a status in the
//! trailers. One without any trailers but those in the head needs no holding back.
//!
//! The request's body becomes a [`ReplayBody`], which keeps what is read of it, up to a cap
//! ([`FallbackLayer::replay_up_to`]). Over the cap the service goes on and no other follows; a value or a function still
//! can. A body that is not `Unpin` goes in as `Box::pin(body)`.
//!
//! # Cancellation
//!
//! Dropping the future drops whoever is asked, and takes the request's body away from whatever still reads it.
//!
//! # Clones
//!
//! A layer, its clones and the services that it makes share their counts and who is forced, until one of them gets
//! another alternative.
//!
//! # Errors
//!
//! Those of the service and of the alternatives, unchanged; and [`OutOfTime`], in a
//! [`Rejected`](palisade_core::reject::Rejected), when an alternative was ready only after the deadline.
//!
//! # Metrics
//!
//! With the feature `metrics`: `palisade_fallback_served_total{layer, by}`,
//! `palisade_fallback_shadowed_total{layer, by}` and `palisade_fallback_exhausted_total{layer}`. They are registered
//! with the first request, as zeros.
//!
//! # When not to use it
//!
//! For endpoints that are alike: a balancer finds the one that serves without a failure first. For a service that must
//! not do a thing twice: a request that failed may have been done. And where the service decides by being ready: one that
//! never is, or whose `poll_ready` fails, has not been asked, and nothing is replaced.
//!
//! # Design
//!
//! Boxes are only on the path of a failure: the alternatives, of whatever types, and the chain through them. A request
//! that the service answers costs what was kept of it, and that only if an alternative may want it: nothing with values
//! alone; with a function, a service or a value that is only for some requests two allocations for a copy of the
//! headers, if there are any, and what it costs to clone the extensions; with a service one more for a body that is not empty, and the list of the frames that are read.
//!
//! A failed answer is read as far as it is there, up to 16 KiB, and let go before the next service is asked, so that
//! it holds neither a connection nor a permit that the next one may wait for. That is why the last failure is passed
//! on and not the first.

mod alternative;
mod answer;
mod body;
mod error;
mod failure;
mod handle;
mod layer;
mod metrics;
mod outcome;
mod plan;
mod policy;
mod service;

pub use self::{
    answer::{Answer, ServedBy},
    body::FallbackBody,
    error::{NoSuchAlternative, OutOfTime},
    failure::{Failure, unserved},
    handle::{AlternativeSnapshot, Handle, Mode, Snapshot},
    layer::FallbackLayer,
    service::{Fallback, FallbackFuture},
};
pub use palisade_core::replay::ReplayBody;
