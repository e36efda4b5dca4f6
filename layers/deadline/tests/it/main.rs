//! The layers around a mock service, on a paused clock.

#![allow(clippy::unwrap_used, reason = "also what serves tests may")]

mod adaptive;
mod attempt;
mod black_hole;
mod body;
mod connect;
mod cost;
mod deadline;
mod median;
mod memory;
#[cfg(feature = "metrics")]
mod metrics;
mod nested;
mod propagate;
mod support;
mod timeouts;
mod told;
