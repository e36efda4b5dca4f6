//! The balancer as its users meet it, around services that are told what to do, on a paused clock.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod affinity;
mod allocations;
#[cfg(all(feature = "hyper", feature = "tcp"))]
mod checks;
mod choice;
#[cfg(feature = "hyper")]
mod client;
#[cfg(feature = "hyper")]
mod connections;
mod defects;
mod discovery;
mod ejection;
mod ends;
mod extremes;
mod gates;
mod health;
mod levels;
mod membership;
#[cfg(feature = "metrics")]
mod metrics;
mod outage;
mod panic;
mod probes;
mod reports;
mod schedules;
#[cfg(feature = "hyper")]
mod server;
mod steady;
mod strategies;
mod support;
mod threads;
#[cfg(feature = "hyper-tls")]
mod tls;
mod waiting;
