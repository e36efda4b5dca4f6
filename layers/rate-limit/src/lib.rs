//! Refuses requests that are over their quota, and says exactly when the next one passes.
//!
//! # Example
//!
//! ```
//! use axum::{Router, body::Body, http::{Request, StatusCode}, routing::get};
//! use palisade_core::{key, respond::LayerExt};
//! use palisade_rate_limit::{Quota, RateLimitLayer};
//! use tower::ServiceExt;
//!
//! # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
//! let limit = RateLimitLayer::new(Quota::per_minute(1)).key(key::header("x-api-key"));
//! let app: Router = Router::new()
//!     .route("/", get(|| async { "hello" }))
//!     .layer(limit.responding());
//!
//! let request = || Request::get("/").header("x-api-key", "k1").body(Body::empty());
//! let first = app.clone().oneshot(request()?).await?;
//! assert_eq!(first.headers()["ratelimit"], r#""default";r=0;t=60"#);
//! let second = app.oneshot(request()?).await?;
//! assert_eq!(second.status(), StatusCode::TOO_MANY_REQUESTS);
//! assert_eq!(second.headers()["retry-after"], "60");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Behaviour
//!
//! A limit has one or more [`Rule`]s, and a request passes when all of them have room for its cost: then it takes from
//! all, and otherwise from none, whatever the order of the rules and however many threads ask. The rule with the
//! longest wait is the one that the refusal names. A limit of zero names its window, and refuses then too. Other waits are exact to the nanosecond: the same request passes then, if
//! no other comes first, and not before. A cost above what a rule ever holds is refused for good.
//!
//! Reading through the [`Handle`] consumes nothing, and resetting a key touches no other.
//!
//! Each rule keeps at most [`capacity`](Rule::capacity) keys apart; as it is 100 000, in about 4 and at most 8 MB. A
//! key that has all of its quota again is as good as none, and new ones take its seat: after ten seconds, or at once
//! when there is no other. While all are busy, new keys share one quota and nobody who has a seat loses it. What was
//! used is forgotten with the process.
//!
//! # Streaming
//!
//! A request takes from its quotas when it comes; how long its answer goes on changes nothing.
//!
//! # Cancellation
//!
//! Who leaves has used what the request took. What a layer further in refused, and what never left for the service
//! ([`Verdict::Unsent`](palisade_core::classify::Verdict::Unsent)), goes back to fixed and sliding windows. A token
//! bucket keeps it: it refills meanwhile, and giving back would let two bursts pass in one instant.
//!
//! # Clones
//!
//! Clones of a layer, of its gate and of its services share all counts, and so do the routes that one layer is
//! applied to. A setter begins new ones.
//!
//! # Errors
//!
//! A [`Rejected`](palisade_core::reject::Rejected) around one of these:
//!
//! | error | reason | HTTP |
//! |---|---|---|
//! | [`RateLimited`] | `RateLimited`, or `QuotaExhausted` for windows of a day or longer | 429, `Retry-After` |
//! | [`CostExceedsQuota`] | `CostExceedsQuota` | 400, `x-should-retry: false` |
//! | [`KeyMissing`] | `RateLimited`, without a delay | 429, `x-should-retry: false` |
//!
//! # Metrics
//!
//! With the feature `metrics`: `palisade_rate_limit_admitted_total` by `layer` and `rule`;
//! `palisade_rate_limit_refused_total` by `layer`, `rule` (the one that the refusal names) and `reason`; the gauge
//! `palisade_rate_limit_keys` by `layer` and `rule`.
//!
//! # When not to use it
//!
//! To protect a service from more work than it can do: that is a limit of concurrency, which needs no guess of a rate.
//! For a quota over several processes: each of them counts for itself.
//!
//! # Design
//!
//! `governor` decides about token buckets; fixed and sliding windows count integers multiplied out, so that no
//! rounding admits or refuses. The store is our own, since a check of several rules needs to try all before it takes
//! from any, and a flood of invented keys needs a ceiling: a table per shard that a newcomer cleans by eight seats.
//! One short lock per rule, taken in their order and kept until the last has been asked, makes it all or nothing.
//! Compare-and-swap would do for one rule, and let a request that is refused by the second be seen by others as
//! counted by the first.
//!
//! Keys are hashed with SipHash under a random key; two of 100 000 share a hash once in 3.7 billion processes.
//!
//! The quiet path allocates nothing with [`Headers::Off`], and a refusal twice. [`Headers::Standard`] follow
//! `draft-ietf-httpapi-ratelimit-headers-11`; their effective window `t` keeps `r` per `t` at or below the rate of
//! the quota, as its section 8.5 asks.

mod error;
mod gate;
mod handle;
mod headers;
mod layer;
mod limits;
mod meter;
mod metrics;
mod quota;
mod rule;
mod store;

pub use self::{
    error::{CostExceedsQuota, KeyMissing, RateLimited},
    gate::{RateLimit, Reservation},
    handle::{Handle, RuleSnapshot, Snapshot, State},
    headers::Headers,
    layer::RateLimitLayer,
    quota::{Quota, QuotaError},
    rule::{MissingKey, Rule, RuleError, Strategy},
};
