//! Sends a request again when an attempt failed, and never more often than a server can bear.
//!
//! And when an attempt only takes long: see [`hedge`].
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
//! time ([`transient`], or a closure over the verdict and the head), while attempts and [`Budget`] last. What another
//! layer of palisade refused further in is not: the same target would refuse it again. Neither is an answer that says
//! `x-should-retry: false` or has a negative `grpc-retry-pushback-ms`, or one that is no number.
//!
//! The delay is what the service asks for (`retry-after-ms`, `Retry-After` in seconds or as any date of RFC 9110,
//! `grpc-retry-pushback-ms`), otherwise the [`Backoff`]. An attempt of which no byte was sent is made again at once and
//! free of budget, the first time; one that timed out costs two.
//!
//! Without another layer it limits [each attempt](RetryLayer::attempt_timeout) and [all of them](RetryLayer::within). An
//! attempt that would not be over by then, or by the request's [`Deadline`](palisade_core::deadline::Deadline), which a
//! deadline layer puts there only if told to, is not begun: what there is by now is the answer. How long one takes is an
//! average of what requests with such a limit took of late to their answers.
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
//! A layer, its clones and the services that it makes share their counts, the [mode](Handle::set_mode), the budget and
//! the source of jitter. What a setter changes is that clone's own from there on, but the counts.
//!
//! # Errors
//!
//! Those of the service, unchanged. When time is up, a [`Rejected`](palisade_core::reject::Rejected) for
//! [`TimedOut`](palisade_core::reject::Reason::TimedOut) whose source is [`Elapsed`].
//!
//! # Metrics
//!
//! With the feature `metrics`, all by `layer`: `palisade_retry_retries_total{verdict}`;
//! `palisade_retry_shadowed_total{verdict}`, those that [`Mode::Shadow`] would have made;
//! `palisade_retry_exhausted_total{reason}`, where the reason is `attempts`, `budget`, `deadline`, `delay` (the
//! service asks for more than [`RetryLayer::wait_up_to`]) or `body` (over the cap); and `palisade_retry_budget_left`, in
//! attempts, as of the last retry or the last 64 requests. Counters are registered with the first request, as zeros. Of [budgets per key](Budget::per), [`Handle::snapshot`] alone
//! tells: a gauge has no room for keys.
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
//! and ten attempts in ten seconds. Its lock is taken once in 64 requests and once for each failure; whatever the
//! interleaving, what is taken out was paid in.
//!
//! Why a budget: `tests/it/storm.rs` stalls a server for half a minute that can do 1.4 times of what it is asked for. With
//! three attempts and a budget it answers in time again five seconds after; with three attempts and none it never does,
//! for its queue is full of what callers no longer wait for. An outage costs 1.2 times the requests, through three gateways
//! in a row too, and what was saved before it: as much as ten seconds pay in.
//!
//! gRPC: an attempt counts as answered with its head, as gRFC A6 has it, so that a status which comes alone is retried
//! and one in trailers behind a head is the caller's. To wait for the first message instead would keep the head from
//! callers that write only once they have it.
//!
//! A request that may not be sent again allocates nothing. One that may costs three allocations for
//! the place of [`Attempts`](palisade_core::attempt::Attempts) in empty extensions, one for a body that is not empty, and what it costs
//! to clone its head: two when there are headers. Limits and budgets of any kind add none.
//!
//! What an attempt reads is shared behind a lock and not handed on when that attempt is dropped: an HTTP/2 connection may
//! hold on to the body of a stream that is long reset, and the next attempt must not wait for it.

mod backoff;
mod budget;
mod handle;
pub mod hedge;
mod layer;
mod limits;
mod metrics;
mod plan;
mod policy;
mod service;
mod sync;

pub use self::{
    backoff::{Backoff, Delays, InvalidBackoff, Jitter},
    budget::Budget,
    handle::{Handle, Mode, Snapshot},
    hedge::{Hedge, HedgeBody, HedgeFuture, HedgeLayer},
    layer::RetryLayer,
    limits::Elapsed,
    policy::{Repeatable, transient},
    service::{Retry, RetryFuture},
};
pub use palisade_core::{peek::PeekedBody as RetryBody, replay::ReplayBody};
