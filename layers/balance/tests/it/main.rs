//! The balancer as its users meet it, around services that are told what to do, on a paused clock.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod allocations;
mod choice;
mod defects;
mod ends;
mod gates;
mod health;
mod membership;
#[cfg(feature = "metrics")]
mod metrics;
mod outage;
mod support;
mod threads;
mod waiting;
