//! The layers around a mock service, on a paused clock.

#![allow(clippy::unwrap_used, reason = "also what serves tests may")]

mod attempt;
mod body;
mod cost;
mod deadline;
#[cfg(feature = "metrics")]
mod metrics;
mod propagate;
mod support;
