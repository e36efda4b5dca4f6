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
//! see [`Propagate`].
//!
//! [`AttemptTimeoutLayer`] limits one attempt up to the first data of its answer. It belongs inside a retry, which
//! then tries again.
//!
//! What is limited is always polled first: what ends at the very instant of its deadline has ended in time, and of
//! two timeouts that are due together the inner one speaks.
//!
//! # Streaming
//!
//! A deadline holds for the body too: a frame that is late is an error instead, unless the body ends with it, and
//! the inner body is dropped there and then. An attempt timeout is over with the first data that is not empty; an
//! answer without a body is complete with its head.
//!
//! # Cancellation
//!
//! Dropping the future or the body drops the inner one, and the timer with it.
//!
//! # Clones
//!
//! Share nothing but their counters.
//!
//! # Errors
//!
//! [`Elapsed`] inside a [`Rejected`](palisade_core::reject::Rejected), as the error of the service or of the body.
//!
//! # Metrics
//!
//! `palisade_deadline_elapsed_total{layer, reason}` with the feature `metrics`; the reason is `deadline_exceeded` or
//! `timed_out`.
//!
//! # When not to use it
//!
//! A body that may flow for as long as its reader likes, such as a subscription, has no deadline. A service that
//! blocks its thread cannot be cut off by any timer.
//!
//! # Design
//!
//! No allocation unless [`Propagate`] asks for one. The timer is made when the inner future or body has to be
//! waited for, so that an answer that is there at once costs one reading of the clock. A body that always has a
//! frame at hand never lets a timer speak: therefore the clock is read with each frame that leaves the body open.
//! Timers need a Tokio runtime.

#[cfg(doc)]
use palisade_core::reject::Reason;

mod attempt;
mod body;
mod error;
mod header;
mod layer;
mod limit;
mod metrics;
mod service;
mod timer;

pub use self::{
    attempt::{AttemptTimeout, AttemptTimeoutLayer},
    body::DeadlineBody,
    error::{Awaited, Elapsed},
    header::TimeoutHeader,
    layer::{DeadlineLayer, Propagate},
    service::{DeadlineFuture, DeadlineService},
};
/// By when a request has to be over: put into its extensions by hand, the earlier of two holds.
#[doc(inline)]
pub use palisade_core::deadline::Deadline;
