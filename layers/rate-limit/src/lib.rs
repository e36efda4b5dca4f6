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
//! all, and otherwise from none, whatever the order of the rules and however many threads or processes ask. The rule
//! with the longest wait is the one that the refusal names. Waits are exact to the nanosecond: the same request passes
//! then, if no other comes first, and not before; a limit of zero names its window, places in flight name a second, and
//! a rule that warms up an upper bound. A cost above what a rule ever holds is refused for good.
//!
//! | [`Strategy`] | any window of the quota's length admits | memory of a key |
//! |---|---|---|
//! | `TokenBucket` | the burst and as much as comes back meanwhile | 40 to 100 bytes |
//! | `SlidingWindow` | less than twice the limit; the limit in steady traffic | the same |
//! | `SlidingLog` | the limit | 16 bytes more for each request |
//! | `FixedWindow` | twice the limit, at its turn | as `TokenBucket` |
//! | `Adaptive` | as `SlidingWindow`, for a limit that follows how requests end ([`Adaptive`]) | the same |
//! | `InFlight` | as many as end; so many at a time | the same |
//!
//! Reading through the [`Handle`] consumes nothing, and resetting a key touches no other. Quotas are changed there while
//! requests come in, and what was used is kept. [`Mode::Shadow`] counts what a rule would refuse and refuses nothing.
//! [`wait_up_to`](RateLimitLayer::wait_up_to) lets requests wait in line instead of being refused.
//!
//! Each rule keeps at most [`capacity`](Rule::capacity) keys apart; as it is 100 000, in 4 to 10 MB. A key that has all
//! of its quota again is as good as none, and new ones take its seat: after ten seconds, or at once when there is no
//! other. While all are busy, new keys share one quota and nobody who has a seat loses it. Without a store, what was
//! used is forgotten with the process.
//!
//! # Tokens and money
//!
//! [`Rule::tokens`] and [`Rule::money`] count what language models use. What a request asks for is reserved when it
//! comes, by the [`Tokens`] in its extensions, and corrected exactly once when its answer has ended: by the usage that
//! the answer tells, as one JSON object or in the last event of a stream, or by the pieces that were streamed if it
//! broke off or the caller left. These rules need a judge that reads bodies:
//! [`classify`](RateLimitLayer::classify)[`(Sse)`](palisade_core::classify::Sse).
//!
//! With [`Estimate::Most`] nobody uses more than there is. With [`Estimate::Learned`] more requests pass at once, and
//! those in flight can use more than was reserved, up to the sum of what their limits exceed their estimates by; that is
//! a debt, and nobody passes until it has been made up for. [`growing`](Rule::growing) takes 64 tokens more whenever a
//! stream comes near its reservation, and ends it where there are none.
//!
//! # Several processes
//!
//! With the feature `redis` and a `RedisStore`, processes that share a server count together: see
//! [`store`](RateLimit::store). All rules of a request are decided by one script with the server's clock, so that many
//! processes admit exactly what one would. A script that has no answer within the deadline (20 ms) is never sent again,
//! since it may have been counted; while the server fails it is not asked at all. Each rule says what happens then
//! ([`OnStoreError`]): as it is, each process keeps to its share of the quota, from what it last heard was left. Who was
//! refused is not asked for again within a second, or until its wait is over.
//!
//! | | trips to the store | above the quota, at most |
//! |---|---|---|
//! | as it is | one for each request | nothing |
//! | [`leased(n)`](Rule::leased) | one for each `n` | `min(processes * n, rate * lease)` in any time |
//! | leased and [`strict`](Rule::strict) | one for each `n` | nothing |
//! | [`local`](Rule::local) | none | each process counts for itself |
//! | store down, `LocalShare` | none | what is used between two answers, and rounding; a whole quota if processes come or go |
//!
//! After an outage each process holds itself to its share for one window more, as the store has not seen what passed. A
//! single question without an answer begins none: it may have been counted, and after five in a row the store is down.
//!
//! A rule in shadow mode asks no store: each process counts against its share.
//!
//! # Clients
//!
//! [`QuotaMirrorLayer`] is the other side: it learns a service's quotas from its answers (`RateLimit` and its older
//! forms, `x-ratelimit-*` as OpenAI and GitHub send them, `anthropic-ratelimit-*`, `Retry-After`) and paces requests
//! before they are answered 429. What does not fit waits its turn, first come first served, for up to
//! [`wait_up_to`](QuotaMirrorLayer::wait_up_to), or is refused at once with [`RateLimited`], which names the service's
//! policy and the wait. What is scarce is spent evenly, and other clients of the same quota keep their part. An
//! answer that is older than what is known never raises it. Put it inside of a retry, so that each attempt counts,
//! and give it a [`key`](QuotaMirrorLayer::key) as fine as what the service counts by. Room costs no allocation, a
//! wait two. Metrics: `palisade_quota_mirror_{wait_seconds,refused_total,held_total,remaining_ratio,keys}` by `layer`.
//!
//! # Streaming
//!
//! Requests and their costs are settled when the body of the answer has ended, broken off or was dropped; places in
//! flight are held until then.
//!
//! # Cancellation
//!
//! Who leaves has used what the request took. What a layer further in refused, and what never left for the service
//! ([`Verdict::Unsent`](palisade_core::classify::Verdict::Unsent)), goes back to windows. A token bucket keeps it, and
//! so does a lease: the one refills meanwhile, the other ends soon.
//!
//! Who leaves while waiting in line has taken nothing. Who leaves while the store is asked gives back what was taken in
//! this process and places in flight; what the store may have counted stands, and is counted as `maybe_charged`.
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
//! | [`StoreUnavailable`] | `StoreUnavailable` | 503, `Retry-After: 1` |
//!
//! A stream that is ended because it [grows](Rule::growing) gets `RateLimited` as the error of its body.
//!
//! # Metrics
//!
//! With the feature `metrics`, by `layer` and `rule`: `palisade_rate_limit_admitted_total`;
//! `palisade_rate_limit_refused_total`, also by `reason`, for the rule that the refusal names;
//! `palisade_rate_limit_shadowed_total`; `palisade_rate_limit_fallback_total`, also by `policy`, for decisions without
//! the store; `palisade_rate_limit_leases_total` and `palisade_rate_limit_leased_total`; the gauge
//! `palisade_rate_limit_keys`. Of a store, by `store`: see `RedisStore`.
//!
//! # When not to use it
//!
//! To protect a service from more work than it can do: that is a limit of concurrency that finds its own number.
//!
//! # Design
//!
//! `governor` decides about token buckets; windows and logs count integers multiplied out, so that no rounding admits or
//! refuses, and the same numbers fit into the doubles of a script: local and Redis decide alike at each microsecond. The
//! local store is our own, since a check of several rules needs to try all before it takes from any, and a flood of
//! invented keys needs a ceiling: a table per shard that a newcomer cleans by eight seats. One short lock per rule, taken
//! in their order and kept until the last has been asked, makes it all or nothing. Compare-and-swap would do for one
//! rule, and let a request that is refused by the second be seen by others as counted by the first.
//!
//! Costs are settled in windows only, which are additive: what comes back to a bucket late would pass on top of a burst
//! that it has refilled since.
//!
//! Keys are hashed with SipHash under a random key, of which 56 bits tell them apart; two of 100 000 share a hash once in
//! 14 million processes. In a store they are hashed with SHA-256, keyed if it has a secret.
//!
//! The quiet path allocates nothing with [`Headers::Off`], and a refusal twice; who is asked for in a store, what is
//! settled at its end, and who waits, is boxed. [`Headers::Standard`] follow
//! `draft-ietf-httpapi-ratelimit-headers-11`; their effective window `t` keeps `r` per `t` at or below the rate of
//! the quota, as its section 8.5 asks. Tokens have no registered unit there: their policies carry `palisade-unit`.

mod adaptive;
#[cfg_attr(
    not(feature = "redis"),
    allow(dead_code, reason = "what a store is asked, without one")
)]
mod central;
mod cost;
mod denied;
mod error;
mod gate;
mod handle;
mod headers;
mod layer;
mod limits;
mod meter;
mod metrics;
mod mirror;
mod numbers;
mod pace;
mod quota;
#[cfg(feature = "redis")]
mod redis;
mod rule;
mod store;
mod warm_up;

#[cfg(all(feature = "redis", feature = "testing"))]
#[doc(hidden)]
pub use self::redis::testing;
#[cfg(feature = "redis")]
pub use self::redis::{RedisConfig, RedisConfigError, RedisStore, StoreState, Upkeep};
pub use self::{
    adaptive::{Adaptive, AdaptiveError},
    cost::{Estimate, Price, PriceError, Prices, Tokens},
    error::{CostExceedsQuota, KeyMissing, RateLimited, StoreError, StoreUnavailable},
    gate::{RateLimit, Reservation},
    handle::{Handle, RuleSnapshot, Snapshot, State},
    headers::Headers,
    layer::RateLimitLayer,
    mirror::{
        MirrorHandle, Mirrored, MirroredQuota, QuotaMirror, QuotaMirrorLayer, QuotaUnit, Sent,
    },
    quota::{Quota, QuotaError},
    rule::{MissingKey, Mode, OnStoreError, Rule, RuleError, Strategy},
};
