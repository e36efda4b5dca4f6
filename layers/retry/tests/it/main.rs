//! The layer around services that fail on purpose, on a paused clock.

#![allow(clippy::unwrap_used, reason = "also what serves tests may")]

mod balance;
mod budget;
mod cancel;
mod cost;
mod fits;
mod give_up;
mod grpc;
#[cfg(feature = "metrics")]
mod metrics;
mod ready;
mod replay;
mod retries;
mod stream;
mod support;
