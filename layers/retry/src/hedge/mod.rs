//! Asks a second endpoint when the first takes long, and takes the answer that comes first.
//!
//! # Example
//!
//! ```
//! use std::{convert::Infallible, time::Duration};
//!
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Empty, Full};
//! use palisade_core::{BoxError, ratio::Ratio};
//! use palisade_retry::{HedgeBody, HedgeLayer};
//! use tower::{Layer, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), BoxError> {
//! // The first endpoint hangs; the second, which a hedge goes to, does not.
//! let service = service_fn(async |request: Request<HedgeBody<Empty<Bytes>>>| {
//!     if !request.headers().contains_key("x-attempt") {
//!         std::future::pending::<()>().await;
//!     }
//!     Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("hello")))
//! });
//! let hedge = HedgeLayer::new(Duration::from_millis(100)).at_most(Ratio::new(1.0)?);
//! let answer = hedge.layer(service).oneshot(Request::new(Empty::new())).await?;
//! assert_eq!(answer.into_body().collect().await?.to_bytes(), "hello");
//! assert_eq!(hedge.handle().snapshot().won, 1);
//! # Ok(())
//! # }
//! ```
//!
//! # Behaviour
//!
//! A request that may be sent more than once ([`Repeatable`](crate::Repeatable)) and has no answer after a [`Delay`] is
//! due for a hedge: the same request again, which says so (`x-attempt`, or `grpc-previous-rpc-attempts`) and carries
//! [`Attempts`](palisade_core::attempt::Attempts), by which a balancer further in sends it to another endpoint. It is
//! sent
//!
//! - if attempts do well of late. As in gRPC's retry throttling, hedging is off after five failures in a row, or when
//!   about one attempt in ten fails: what is slow in a storm does not get better by more requests;
//! - if no signal [pauses](HedgeLayer::paused_by) them;
//! - if its cost is there: hedges take at most 5 % of what requests [cost](palisade_core::cost::Cost)
//!   ([`HedgeLayer::at_most`]), and each also one from the [`Budget`](crate::Budget) of the retries;
//! - if all of the request's body has come, up to a cap;
//! - if the deadline of the request is later than the delay;
//! - as soon as the service is ready. It is asked when the delay is over, and if it has to be waited for, the attempts
//!   that run are not: the hedge is sent late, or not at all.
//!
//! The first attempt that does not fail wins: an answer by its head, an event stream
//! ([`Sse`](palisade_core::classify::Sse)) and an answer in gRPC by its first data. What the caller is to blame for is
//! such an answer, too. An attempt that fails while another runs is put aside, and the last answer or error is returned
//! as it is. One that fails before there is a hedge is returned at once: that is for a retry. After a server asks to be
//! left alone (`Retry-After`, `grpc-retry-pushback-ms`), nothing more is sent for the request.
//!
//! # Streaming
//!
//! The head of an event stream is held back until its first data, and so is that of an answer in gRPC once all of the
//! request has been sent: a stream that is subscribed to, and may have nothing to say for long, should not be hedged.
//!
//! The first attempt reads the request's body as it comes, so it is never held up; what it has read is kept in a
//! [`HedgeBody`]. When a hedge is due, what is there of the rest is read, too. A body of which there is still more to
//! come, or too much, is read on by the first attempt, without a hedge. A body that is not `Unpin` goes in as
//! `Box::pin(body)`.
//!
//! # Cancellation
//!
//! As soon as one attempt has won, the others are dropped, in the same poll, and can read no more of the body; so are
//! all when the future is dropped. Gates further in hear [`Canceled`](palisade_core::classify::Verdict::Canceled), and
//! neither a balancer nor a breaker counts that against an endpoint, unless it has taken much longer than usual.
//!
//! # Clones
//!
//! A layer, its clones and the services that it makes share what they have learnt, their share and their counts.
//!
//! # Errors
//!
//! None of its own: those of the service, unchanged.
//!
//! # Metrics
//!
//! With the feature `metrics`, by `layer`: `palisade_hedge_sent_total`, `palisade_hedge_settled_total` by `result`
//! (`won`, `lost`), `palisade_hedge_held_back_total` by `reason` (`budget`, `paused`, `failing`, `not_ready`, `body`,
//! `pushback`, `shadow`), and `palisade_hedge_delay_seconds`, where the delay is learnt.
//!
//! # When not to use it
//!
//! Where the work of an attempt goes on after it was canceled, so that each hedge costs all of a request. With one
//! endpoint that is slow because it is full. Outside of a retry: inside of it, a hedge is one attempt of the retry.
//!
//! # Design
//!
//! Dean and Barroso, *The Tail at Scale* (2013): hedge after the 95th percentile. The percentile is that of first
//! attempts only. One that was canceled counts with the time that it had taken until then: without these the delay would
//! sink with each hedge. Attempts that fail do not count, except for those that time out.
//!
//! A share of its own, and one that starts with nothing, bounds what hedges add when everything becomes slow at once,
//! while the percentile is still what it was: 5 % more load, not twice the load.
//!
//! A request that may not be hedged allocates nothing, and neither does one that might be, while the delay is unknown or
//! attempts fail; but in gRPC, it costs one to see how far a body has been read. One that may be hedged costs three for the
//! place of [`Attempts`](palisade_core::attempt::Attempts) in empty extensions, none if a retry has put them there; two for a copy
//! of its headers, and one for each part of them that was not shared before; one for a body that is not empty, and one
//! when that is read. An answer that is looked into, a stream or one in gRPC, costs two. A hedge costs what it takes.

mod attempt;
mod delay;
mod handle;
mod layer;
mod metrics;
mod policy;
mod race;
mod service;
mod share;
mod tape;
mod times;

pub use self::{
    delay::Delay,
    handle::{Handle, Snapshot},
    layer::HedgeLayer,
    policy::Mode,
    service::{Hedge, HedgeFuture},
    tape::HedgeBody,
};
