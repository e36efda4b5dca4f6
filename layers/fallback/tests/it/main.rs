//! The layer around services that fail on purpose, on a paused clock; calls of gRPC over loopback.

#![allow(clippy::unwrap_used, reason = "also what serves tests may")]

mod body;
mod cancel;
mod chain;
mod cost;
mod discard;
mod given;
mod grpc;
mod marks;
#[cfg(feature = "metrics")]
mod metrics;
mod model;
mod panics;
mod ready;
mod steer;
mod stream;
mod support;
