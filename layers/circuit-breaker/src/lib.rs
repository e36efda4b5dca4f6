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
//! *Closed*, it counts how requests end. It opens as soon as one of its conditions is met:
//!
//! | condition | set by |
//! |---|---|
//! | so many failures in a row | [`consecutive`](CircuitBreaker::consecutive), [`or_consecutive`](CircuitBreaker::or_consecutive) |
//! | a share of failures among the last calls | [`window`](CircuitBreaker::window) |
//! | a share of failures among the calls of the last seconds | [`time_window`](CircuitBreaker::time_window) |
//! | a share of slow calls among either | [`slow_calls`](CircuitBreaker::slow_calls) |
//! | so many failures among either | [`or_failures`](CircuitBreaker::or_failures) |
//!
//! *Open*, it refuses without calling the service. After a cool-down it is *half-open*: the next request passes as a
//! probe, and when as many have passed as [`probes`](CircuitBreaker::probes) asks for, it is closed and starts afresh.
//! One goes first, then two, then four. One probe that fails, or too many for [`passing`](CircuitBreaker::passing),
//! opens it again, for twice as long, up to [`longest_cooldown`](CircuitBreaker::longest_cooldown).
//! [`Settings`] holds all of this as one value, with three that are well tried: [`five_in_a_row`](Settings::five_in_a_row),
//! [`half_of_ten`](Settings::half_of_ten), [`five_in_a_minute`](Settings::five_in_a_minute).
//!
//! | verdict | counts as |
//! |---|---|
//! | success | a success, and as slow if it was |
//! | failure, timed out, unsent | a failure |
//! | overload | a failure in a window, nothing in a row; fails a probe; its `Retry-After` is the open time |
//! | caller's fault, refused by a layer further in | nothing; a probe makes room for another |
//! | canceled | the same; before any data and [after 5 s](CircuitBreaker::slow_after) a failure, or a service that never answers would not be found |
//! | [ignored](CircuitBreaker::ignore) | nothing; a probe makes room for another |
//!
//! A probe that has not ended after [`probe_timeout`](CircuitBreaker::probe_timeout) is given up and another may go.
//! Every admission knows the epoch it was made in, so what is said about a state that is over changes nothing.
//! `poll_ready` asks the service only; an open circuit refuses in `call`.
//!
//! A [`Handle`] forces a circuit open or closed, changes its [`Settings`] while requests come,
//! [saves](Handle::save) it for a restart, and [switches](Handle::set_mode) between refusing and
//! [only counting](CircuitBreaker::shadow) what would be refused. A [`KeyedCircuitBreaker`] has a circuit for each
//! destination or other key. A [`Throttle`] is the soft variant: it refuses a share of the requests, the larger the fewer
//! of them are accepted.
//!
//! # Streaming
//!
//! A request ends with its body: an error in mid-stream counts as a failure, though the head said 200. A probe passes
//! at its first data, for a stream may take minutes; what happens to it afterwards counts in the closed circuit. An
//! answer without data passes at its end. A call is slow by the same moments, so that a long stream is not.
//!
//! # Cancellation
//!
//! No order of cancellations, panics, drops, leaks and refusals keeps a circuit from closing again once the service
//! works: a guard that is dropped gives its place back, and one that never is is given up in time.
//!
//! # Clones
//!
//! Clones of a breaker, of its layer and of the services it has made share one circuit, or the circuits of its keys.
//!
//! # Errors
//!
//! [`Rejected`](palisade_core::reject::Rejected) with [`Reason::CircuitOpen`](palisade_core::reject::Reason), which
//! is a 503 or `UNAVAILABLE`; its source is [`CircuitOpen`]. The time to wait is exact while the circuit is open and
//! not known while a probe is out. A throttle refuses with
//! [`Reason::Overloaded`](palisade_core::reject::Reason) and the source [`Throttled`]. A refusal costs two allocations,
//! everything else none, but for a new key and for one that has to be written in lower case.
//!
//! # Metrics
//!
//! With the feature `metrics`: `palisade_circuit_breaker_state{layer,state}`, how many circuits are in the state: of a
//! breaker without keys and with a name of its own exactly one is 1; `palisade_circuit_breaker_transitions_total{layer,state}`, by the state
//! entered; `palisade_circuit_breaker_refusals_total{layer}`; `palisade_circuit_breaker_shadowed_total{layer}`, of what
//! passed in shadow mode; `palisade_circuit_breaker_evictions_total{layer}`, of keys. No label is a key: ask
//! [`KeyedHandle`]. A throttle: `palisade_throttle_refused_ratio{layer}`, `palisade_throttle_refusals_total{layer}`,
//! `palisade_throttle_shadowed_total{layer}`. They are registered when the layer is first used.
//!
//! # When not to use it
//!
//! In front of a service with several endpoints, of which one fails: give each endpoint its own, inside the balancer.
//! Where a share of requests should still go out: a breaker knows all or a few, a throttle is the one for that. For one
//! slow request: a deadline.
//!
//! # Design
//!
//! One lock around a state machine without a clock, and beside it one atomic word that says what a request would meet.
//! While the circuit is closed a request reads that word twice and takes the lock only if it has something to say: a
//! failure, a success that ends a row, any end in a window. While it is open a refusal only reads, so that a storm of
//! them does not hold up the probe. A window of calls is two bits per call, one of time eleven buckets: a count is O(1)
//! whatever their size and whatever the rate.
//!
//! Failures in a row find a dead service within a few requests, whatever the rate, and never see one that fails half
//! of the time; a window does, after enough calls. A share makes the trip depend on the ratio alone; a number of failures
//! in a span depends on the rate, and is for services that are seldom called.
//!
//! A probe is never counted in the window: a window that is too short for the minimum of calls, or for the pauses between
//! probes, then keeps other breakers half-open for ever. A time [limit](CircuitBreaker::longest_half_open) on half-open
//! decides by what was heard, for a service that is asked once a minute would never pass three probes in ten seconds.
//!
//! Of keys, the circuits that refuse are what must not be lost: a newcomer takes the place of one that is closed and was
//! not asked for since it was looked at last (CLOCK, Corbato 1968), so that many keys that come once do not put out a few
//! that come often.
//!
//! The throttle counts a request to the time at which it was sent, once it is known what became of it, and a refusal at
//! once. To count requests that are under way as not accepted, as the formula can be read, would refuse nine in ten of
//! those that come first to a service whose first answer takes a second. A service that works again is found within
//! twice the window, for what is refused meanwhile counts.

mod buckets;
mod calls;
mod circuit;
mod common;
mod cooldown;
mod error;
mod gate;
mod glance;
mod handle;
mod keyed;
mod layer;
mod metrics;
mod probes;
mod settings;
mod shared;
mod sync;
mod tally;
mod throttle;

pub use self::{
    circuit::{CircuitState, Saved, SavedState},
    error::CircuitOpen,
    gate::{Call, CircuitBreaker},
    handle::{Handle, Snapshot},
    keyed::{
        Destination, KeyedCall, KeyedCircuitBreaker, KeyedCircuitBreakerLayer, KeyedHandle,
        KeyedSnapshot, destination,
    },
    layer::CircuitBreakerLayer,
    settings::{Mode, Settings, Window},
    throttle::{
        Throttle, ThrottleHandle, ThrottleLayer, ThrottleSettings, ThrottleSnapshot, Throttled,
        ThrottledCall,
    },
};
