//! The layer around services that write down what they see, on a paused clock.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod adaptive;
mod cost;
mod drain;
mod flood;
mod handle;
mod headers;
mod in_flight;
mod keys;
mod layer;
mod lines;
#[cfg(feature = "metrics")]
mod metrics;
mod pacing;
mod quiet;
mod routes;
mod seed;
mod several;
mod shadow;
mod streams;
mod threads;
mod tiers;
mod tokens;
mod update;
mod warm_up;

use http::Request;
use palisade_core::{
    gate::{Admit, Gate},
    key,
    reject::Rejected,
    testing::CountingAllocator,
};
use palisade_rate_limit::{Quota, RateLimit, RateLimited, Reservation, Rule, Strategy};
use tokio::time::Instant;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const STRATEGIES: [Strategy; 3] = [
    Strategy::TokenBucket,
    Strategy::FixedWindow,
    Strategy::SlidingWindow,
];

fn from(user: &str) -> Request<()> {
    Request::builder()
        .header("x-user-id", user)
        .body(())
        .unwrap()
}

fn admit(limit: &RateLimit, request: &Request<()>, now: Instant) -> Result<Reservation, Rejected> {
    match limit.admit(&request.into(), now) {
        Admit::Now(decided) => decided,
        Admit::Later(_) => panic!("decides at once"),
    }
}

fn limited(refused: &Rejected) -> &RateLimited {
    let source = std::error::Error::source(refused).unwrap();
    source
        .downcast_ref()
        .unwrap_or_else(|| panic!("{source:?}"))
}

fn per_user(quota: Quota) -> Rule {
    Rule::new("per_user", quota).key(key::header("x-user-id"))
}
