//! Ends requests in time: the whole of one at its deadline, an attempt that stays silent at its timeout.
//!
//! # Example
//!
//! ```
//! use std::time::Duration;
//!
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use palisade_core::{BoxError, reject::{Reason, Rejected}};
//! use palisade_deadline::{DeadlineLayer, Elapsed};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), BoxError> {
//! let service = ServiceBuilder::new()
//!     .layer(DeadlineLayer::from_header("grpc-timeout").or(Duration::from_secs(30)))
//!     .service_fn(async |request: Request<u64>| {
//!         tokio::time::sleep(Duration::from_secs(*request.body())).await;
//!         Ok::<_, BoxError>(Response::new(Full::new(Bytes::from("done"))))
//!     });
//!
//! let answer = service.clone().oneshot(Request::new(29)).await?;
//! assert_eq!(answer.into_body().collect().await?.to_bytes(), "done");
//!
//! let request = Request::builder().header("grpc-timeout", "500m").body(1)?;
//! let error = service.oneshot(request).await.unwrap_err();
//! let rejected = Rejected::find(&*error).ok_or("not refused by a layer")?;
//! assert_eq!(rejected.reason(), Reason::TimedOut);
//! assert_eq!(Elapsed::find(&*error).ok_or("no timeout")?.after, Duration::from_millis(500));
//! # Ok(())
//! # }
//! ```
//!
//! # Behaviour
//!
//! [`DeadlineLayer`] takes its time from a header or from its constructor and never outlives a deadline that a
//! layer further out has put into the request's extensions. A request whose deadline has passed already is refused
//! with [`DeadlineExceeded`](Reason::DeadlineExceeded) and never reaches the service; one that is cut off fails with
//! [`TimedOut`](Reason::TimedOut). On request it tells the layers further in, and the next server, how much is left:
//! see [`Propagate`], and [`DeadlineLayer::forward`] where requests are queued or sent again in between. On request it
//! also refuses at once what has less time left than half of the requests take: [`DeadlineLayer::refuse_below_median`].
//!
//! [`AttemptTimeoutLayer`] limits one attempt by any of these [`Timeouts`], each fixed or, but for the second,
//! [`Adaptive`]: up to the first data of the answer, between data, and up to the end. It belongs inside a retry, which
//! then tries again. [`ConnectTimeoutLayer`] goes around a connector and limits what comes before an attempt.
//!
//! What is limited is always polled first: what ends at the very instant of its deadline has ended in time, and of
//! two timeouts that are due together the inner one speaks. Within one layer it is the one that says most.
//!
//! A [`Handle`] shows what was ended by which limit and what the observed times are, changes durations while requests
//! come in, and switches to a shadow, which ends nothing and counts what it would have ended.
//!
//! # Streaming
//!
//! A deadline and a total timeout hold for the body too: a frame that is late is an error instead, unless the body ends
//! with it, and the inner body is dropped there and then. A first-byte timeout is over with the first data that are not
//! empty and never cuts what comes after them; an answer without a body is complete with its head. An idle timeout runs
//! from there on, while a reader waits for data; trailers and the end stop it. [`Pings`] says whether comments of event
//! streams are data. With `palisade_core`'s `RespondLayer` further out, a stream that is cut off ends in words that its
//! reader understands: an event, or the status of gRPC in trailers.
//!
//! # Cancellation
//!
//! Dropping the future or the body drops the inner one, and the timer with it. A request that was given up counts in no
//! median and for no adaptive timeout.
//!
//! # Clones
//!
//! Share their counters, what they observe, and what a handle sets.
//!
//! # Errors
//!
//! [`Elapsed`] or [`Hopeless`] inside a [`Rejected`](palisade_core::reject::Rejected), as the error of the service or of
//! the body; `Elapsed` inside an [`Unsent`](palisade_core::classify::Unsent) as the error of a connector.
//!
//! # Metrics
//!
//! With the feature `metrics`:
//!
//! - `palisade_deadline_elapsed_total{layer, reason, limit}`: the reason is `deadline_exceeded` before the call and
//!   `timed_out` after it, the limit `deadline`, `total`, `first_byte`, `idle`, `connect` or `median`.
//! - `palisade_deadline_shadowed_total`, with the same labels: what a shadow would have ended.
//! - `palisade_deadline_timeout_seconds{layer, limit}`: the adaptive timeout that the last attempt got.
//! - `palisade_deadline_median_seconds{layer}`: what the last request was measured against.
//!
//! Counters are registered with the first request, as zeros; the last two when there is something to show.
//!
//! # When not to use it
//!
//! A body that may flow for as long as its reader likes, such as a subscription, has no deadline. A service that
//! blocks its thread cannot be cut off by any timer. Requests that take very differently long have no common median
//! and no common adaptive timeout: give each kind its own layer.
//!
//! # Design
//!
//! No allocation unless [`Propagate`] asks for one, once requests that are over have left
//! [memory](palisade_core::spare) on the thread. The timer is made when the inner future or body has to be waited for,
//! so that an answer that is there at once costs one reading of the clock; it is moved when it fires and not with each
//! frame, and goes with the answer, whose body waits for the same. A body that always has a frame at hand never lets a
//! timer speak: therefore the clock is read with each frame that leaves the body open and could be late. Timers need a
//! Tokio runtime: the one in which a request is first waited for has to run until its body is over.
//!
//! The clock of an attempt runs from its call. Envoy starts it when the request has been received, because it reads
//! requests from slow callers; to know that here, the body of each request would have to be wrapped and watched.
//! Inside a retry it is in memory.
//!
//! Quantiles come from [`Quantile`](palisade_core::quantile::Quantile): log-linear bins, 6 % wide. An attempt that was
//! cut off is known to take longer and not how much longer; it counts double, as TCP backs off its timer (RFC 6298, 5.5),
//! where counting its age would let a timeout choke itself. Answers that say that the service has failed are left out:
//! an outage that fails fast would otherwise look like speed.

#[cfg(doc)]
use palisade_core::reject::Reason;

mod adaptive;
mod attempt;
mod body;
mod connect;
mod deadline;
mod error;
mod future;
mod handle;
mod header;
mod life;
mod limits;
mod median;
mod metrics;
mod samples;
mod tally;
mod watch;

pub use self::{
    adaptive::{Adaptive, Timeout},
    attempt::{AttemptTimeout, AttemptTimeoutLayer, Timeouts},
    body::DeadlineBody,
    connect::{ConnectFuture, ConnectTimeout, ConnectTimeoutLayer},
    deadline::{DeadlineLayer, DeadlineService, Deadlines, Propagate},
    error::{Awaited, Elapsed, Hopeless, Limit},
    future::DeadlineFuture,
    handle::{Handle, Settings, Snapshot},
    header::TimeoutHeader,
    life::Pings,
    median::Need,
    tally::{Counts, Mode},
};
/// By when a request has to be over: put into its extensions by hand, the earlier of two holds.
#[doc(inline)]
pub use palisade_core::deadline::Deadline;
