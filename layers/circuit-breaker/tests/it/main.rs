//! The breaker as its users meet it: a layer around a service, on a paused clock.

#![allow(clippy::unwrap_used, reason = "this is a test, its helpers too")]

mod behaviour;
mod cost;
mod defects;
mod keyed;
mod kinds;
#[cfg(feature = "metrics")]
mod metrics;
mod script;
mod support;
mod throttle;
mod wedge;
mod wedges_of_others;

#[global_allocator]
static ALLOCATOR: palisade_core::testing::CountingAllocator =
    palisade_core::testing::CountingAllocator;
