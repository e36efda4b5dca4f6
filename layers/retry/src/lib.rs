//! Sends a request again when an attempt failed, and never more often than a server can bear.
//!
//! # Example
//!
//! ```
//! use std::convert::Infallible;
//!
//! use bytes::Bytes;
//! use http::{Request, Response, StatusCode};
//! use http_body_util::{BodyExt, Full};
//! use palisade_core::BoxError;
//! use palisade_retry::{Backoff, ReplayBody, RetryLayer};
//! use tower::{Layer, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), BoxError> {
//! // Fails until it is asked a second time, then gives the body back.
//! let echo = service_fn(async |request: Request<ReplayBody<Full<Bytes>>>| {
//!     let again = request.headers().contains_key("x-attempt");
//!     let body = request.into_body().collect().await?.to_bytes();
//!     let status = if again { StatusCode::OK } else { StatusCode::BAD_GATEWAY };
//!     let mut answer = Response::new(Full::new(body));
//!     *answer.status_mut() = status;
//!     Ok::<_, BoxError>(answer)
//! });
//!
//! let retry = RetryLayer::new(Backoff::default());
//! let service = retry.layer(echo);
//! let answer = service.oneshot(Request::put("/").body(Full::from("hello"))?).await?;
//! assert_eq!(answer.status(), StatusCode::OK);
//! assert_eq!(answer.into_body().collect().await?.to_bytes(), "hello");
//! assert_eq!(retry.handle().snapshot().retries, 1);
//! # Ok(())
//! # }
//! ```
//!
//! # Behaviour
//!
//! A request is retried when it may be sent more than once ([`Repeatable`]), when its attempt may well do better next
//! time ([`transient`]), while attempts and [`Budget`] last. What another layer of palisade refused further in is
//! not: the same target would refuse it again. Neither is an answer that says `x-should-retry: false` or has a negative
//! `grpc-retry-pushback-ms`.
//!
//! The delay is what the service asks for (`Retry-After`, `retry-after-ms`, `grpc-retry-pushback-ms`), otherwise the
//! [`Backoff`]. A delay past the request's [`Deadline`](palisade_core::deadline::Deadline), which a deadline layer puts there
//! only if told to, is not waited for: what there
//! is by now is the answer. An attempt of which no byte was sent is made again at once and free of budget, the first
//! time; one that timed out costs two.
//!
//! Each attempt asks the service anew whether it is ready, says which one it is (`x-attempt` from the second on, or
//! `grpc-previous-rpc-attempts`) and carries [`Attempts`](palisade_core::attempt::Attempts), by which a balancer further
//! in sends it to another endpoint. Before the wait, what is there of the failed answer is read, up to 16 KiB, so that
//! its connection can be used again.
//!
//! When attempts or budget are spent, the last answer says so (`x-should-retry: false`, or a pushback of -1 for gRPC)
//! and a [`Rejected`](palisade_core::reject::Rejected) is marked: layers further out that retry leave it alone, and three
//! of them in a row still send 1.2 times the requests, not 1.7 times.
//!
//! # Streaming
//!
//! An answer is passed on with its head, and from then on nothing is retried. An event stream
//! ([`Sse`](palisade_core::classify::Sse)) is passed on with its first data: an error event or a broken connection before
//! them is retried. Comments that come before are held back until then, up to 16 KiB.
//!
//! The request's body becomes a [`ReplayBody`], which keeps what an attempt reads of it, up to a cap
//! ([`RetryLayer::replay_up_to`]). Over the cap the attempt that runs goes on, and no other follows. Only one attempt
//! reads at a time: one that was given up cannot. A body that is not `Unpin` goes in as `Box::pin(body)`.
//!
//! # Cancellation
//!
//! Dropping the future drops the attempt, and takes the request's body away from whatever still reads it.
//!
//! # Clones
//!
//! A layer, its clones and the services that it makes share their counts, the budget and the source of jitter.
//!
//! # Errors
//!
//! None of its own: those of the service, unchanged.
//!
//! # Metrics
//!
//! With the feature `metrics`: `palisade_retry_retries_total{layer, verdict}` and
//! `palisade_retry_exhausted_total{layer, reason}`, where the reason is `attempts`, `budget`, `deadline`, `delay` (the
//! service asks for more than [`RetryLayer::wait_up_to`]) or `body` (over the cap).
//!
//! # When not to use it
//!
//! Around a client that retries by itself: turn that off, as hyper-util's with `retry_canceled_requests(false)`. And in
//! more than one place between a caller and a service.
//!
//! A client that insists on its own body type, such as a tonic channel, needs `tower_http`'s `map_request_body` inside:
//! `.layer(RetryLayer::new(..)).layer(MapRequestBodyLayer::new(tonic::body::Body::new)).service(channel)`.
//!
//! # Design
//!
//! Google's SRE book: retries belong in one place, with a budget. The budget is Finagle's in shape: 20 % of requests,
//! and ten attempts in ten seconds. Its lock is taken once in 64 requests and once for each failure.
//!
//! A request that may not be sent again allocates nothing. One that may costs four allocations for
//! [`Attempts`](palisade_core::attempt::Attempts) in empty extensions, one for a body that is not empty, and what it costs
//! to clone its head: two when there are headers.
//!
//! What an attempt reads is shared behind a lock and not handed on when that attempt is dropped: an HTTP/2 connection may
//! hold on to the body of a stream that is long reset, and the next attempt must not wait for it.

mod account;
mod backoff;
mod body;
mod budget;
mod handle;
mod layer;
mod metrics;
mod plan;
mod policy;
mod reel;
mod replay;
mod service;

pub use self::{
    backoff::{Backoff, Delays, InvalidBackoff, Jitter},
    body::RetryBody,
    budget::Budget,
    handle::{Handle, Snapshot},
    layer::RetryLayer,
    policy::{Repeatable, transient},
    replay::ReplayBody,
    service::{Retry, RetryFuture},
};
