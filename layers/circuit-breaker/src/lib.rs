//! Stops calling a service that keeps failing, and finds out with single requests when it works again.
//!
//! # Example
//!
//! ```
//! use std::time::Duration;
//!
//! use http::{Request, Response, StatusCode};
//! use http_body_util::Empty;
//! use palisade_circuit_breaker::{CircuitBreakerLayer, CircuitState};
//! use palisade_core::reject::{Reason, Rejected};
//! use tower::{Layer, Service, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let layer = CircuitBreakerLayer::consecutive(2, Duration::from_secs(10));
//! let handle = layer.handle();
//! let mut service = layer.layer(service_fn(|_: Request<()>| async {
//!     let mut response = Response::new(Empty::<bytes::Bytes>::new());
//!     *response.status_mut() = StatusCode::BAD_GATEWAY;
//!     Ok::<_, std::convert::Infallible>(response)
//! }));
//!
//! for _ in 0..2 {
//!     let response = service.ready().await.unwrap().call(Request::new(())).await.unwrap();
//!     assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
//! }
//! assert_eq!(handle.snapshot().state, CircuitState::Open);
//! let error = service.ready().await.unwrap().call(Request::new(())).await.unwrap_err();
//! assert_eq!(Rejected::find(&*error).unwrap().reason(), Reason::CircuitOpen);
//! # }
//! ```
//!
//! # Behaviour
//!
//! *Closed*, it counts how requests end: failures in a row, or the share of failures among the last calls. Too many,
//! and it is *open*: it refuses without calling the service. After a cool-down it is *half-open*: the next request
//! passes as a probe, and when as many have passed as [`probes`](CircuitBreaker::probes) asks for, it is closed and
//! starts afresh. One probe that fails opens it again, for twice as long, up to
//! [`longest_cooldown`](CircuitBreaker::longest_cooldown).
//!
//! | verdict | counts as |
//! |---|---|
//! | success | a success |
//! | failure, timed out, unsent | a failure |
//! | overload | a failure in a window, nothing in a row; fails a probe; its `Retry-After` is the open time |
//! | caller's fault, refused by a layer further in | nothing; a probe makes room for another |
//! | canceled | the same; before any data and after 5 s a failure, or a service that never answers would not be found |
//!
//! A probe that has not ended after [`probe_timeout`](CircuitBreaker::probe_timeout) is given up and another may go.
//! Every admission knows the epoch it was made in, so what is said about a state that is over changes nothing.
//! `poll_ready` asks the service only; an open circuit refuses in `call`.
//!
//! # Streaming
//!
//! A request ends with its body: an error in mid-stream counts as a failure, though the head said 200. A probe passes
//! at its first data, for a stream may take minutes; what happens to it afterwards counts in the closed circuit. An
//! answer without data passes at its end.
//!
//! # Cancellation
//!
//! No order of cancellations, panics, drops, leaks and refusals keeps a circuit from closing again once the service
//! works: a guard that is dropped gives its place back, and one that never is is given up in time.
//!
//! # Clones
//!
//! Clones of a breaker, of its layer and of the services it has made share one circuit.
//!
//! # Errors
//!
//! [`Rejected`](palisade_core::reject::Rejected) with [`Reason::CircuitOpen`](palisade_core::reject::Reason), which
//! is a 503 or `UNAVAILABLE`; its source is [`CircuitOpen`]. The time to wait is exact while the circuit is open and
//! not known while a probe is out. A refusal costs two allocations, everything else none.
//!
//! # Metrics
//!
//! With the feature `metrics`: `palisade_circuit_breaker_state{layer,state}`, of which exactly one is 1;
//! `palisade_circuit_breaker_transitions_total{layer,state}`, by the state entered;
//! `palisade_circuit_breaker_refusals_total{layer}`. They are registered when the circuit is first used.
//!
//! # When not to use it
//!
//! In front of a service with several endpoints, of which one fails: give each endpoint its own, inside the balancer.
//! Where a share of requests should still go out: a breaker knows all or a few. For one slow request: a deadline.
//!
//! # Design
//!
//! One lock around a state machine without a clock, and beside it one atomic word that says what a request would meet.
//! While the circuit is closed a request reads that word twice and takes the lock only if it has something to say: a
//! failure, a success that ends a row, any end in a window. While it is open a refusal only reads, so that a storm of
//! them does not hold up the probe. A window is one bit per call and O(1) whatever its size.
//!
//! Failures in a row find a dead service within a few requests, whatever the rate, and never see one that fails half
//! of the time; a window does, after enough calls. A count of calls and not of seconds makes the trip depend on the
//! ratio alone.

mod circuit;
mod cooldown;
mod error;
mod gate;
mod glance;
mod handle;
mod layer;
mod metrics;
mod probes;
mod shared;
mod sync;
mod tally;

pub use self::{
    circuit::CircuitState,
    error::CircuitOpen,
    gate::{Call, CircuitBreaker},
    handle::{Handle, Snapshot},
    layer::CircuitBreakerLayer,
};
