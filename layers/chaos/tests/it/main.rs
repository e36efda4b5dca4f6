//! The layer around services that would not fail by themselves, on a paused clock.

#![allow(clippy::unwrap_used, reason = "also what serves tests may")]

mod body;
mod cost;
mod delays;
mod demand;
mod draws;
mod ends;
mod handle;
#[cfg(feature = "metrics")]
mod metrics;
mod panics;
mod settle;
mod support;
