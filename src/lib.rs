//! Tower layers for services that must stay up: a request ends when its response body ends.
//!
//! Rate limit, adaptive balance, retry with backoff, circuit breaker, deadline and SLA monitor, each a
//! [`tower_layer::Layer`](https://docs.rs/tower-layer), for axum and tonic servers and for hyper, reqwest and tonic
//! clients. Permits, verdicts, latencies, in-flight counts and costs are settled when the body of the answer has ended, also
//! when it breaks off and when the caller leaves: a stream of a minute is in flight for a minute, and an error in
//! its middle counts.
//!
//! # Example
//!
//! One layer on an axum router, shared by all of its routes:
//!
//! ```
//! # #[cfg(feature = "rate-limit")] {
//! use axum::{Router, routing::get};
//! use palisade::{LayerExt, rate_limit::{Quota, RateLimitLayer}};
//!
//! let app: Router = Router::new()
//!     .route("/", get(async || "hello"))
//!     .layer(RateLimitLayer::new(Quota::per_second(50).burst(100)).responding());
//! # let _ = app; }
//! ```
//!
//! # Which layer goes outside which
//!
#![doc = include_str!("order.md")]
//!
//! # What each layer makes of each verdict
//!
#![doc = include_str!("verdicts.md")]
//!
//! # Metrics
//!
#![doc = include_str!("metrics.md")]

#[cfg(feature = "balance")]
pub mod balance {
    //! Sends each request to the endpoint that is cheapest now.
    #[doc(inline)]
    pub use palisade_balance::*;
}
#[cfg(feature = "chaos")]
pub mod chaos {
    //! Fails requests on purpose, by a seed.
    #[doc(inline)]
    pub use palisade_chaos::*;
}
#[cfg(feature = "circuit-breaker")]
pub mod circuit_breaker {
    //! Stops calling a service that keeps failing.
    #[doc(inline)]
    pub use palisade_circuit_breaker::*;
}
#[cfg(feature = "deadline")]
pub mod deadline {
    //! Ends requests that take too long, their bodies too.
    #[doc(inline)]
    pub use palisade_deadline::*;
}
#[cfg(feature = "fallback")]
pub mod fallback {
    //! Gives another answer, or asks another service.
    #[doc(inline)]
    pub use palisade_fallback::*;
}
#[cfg(feature = "rate-limit")]
pub mod rate_limit {
    //! Limits how much each caller may ask for.
    #[doc(inline)]
    pub use palisade_rate_limit::*;
}
#[cfg(feature = "retry")]
pub mod retry {
    //! Sends a request again when that may help, and within a budget.
    #[doc(inline)]
    pub use palisade_retry::*;
}
#[cfg(feature = "sla")]
pub mod sla {
    //! Measures what callers get, against what was promised.
    #[doc(inline)]
    pub use palisade_sla::*;
}
#[cfg(feature = "trace")]
pub mod trace {
    //! Gives each request and each attempt a span that lives until the body ends.
    #[doc(inline)]
    pub use palisade_trace::*;
}

pub use palisade_core::{
    BoxError, attempt, classify, cost, gate,
    gate::gates,
    head, key, peek, quantile, ratio,
    ratio::Ratio,
    reject,
    reject::{Reason, Rejected},
    replay, respond,
    respond::{LayerExt, RespondLayer},
    retry_after, settle, signal, time,
};

/// Compiles the examples of the README.
#[cfg(all(doctest, feature = "full", feature = "redis"))]
#[doc = include_str!("../README.md")]
pub struct Readme;
