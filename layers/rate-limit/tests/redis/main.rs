//! The Redis store against a real server, which the tests start.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod cluster;
mod decisions;
mod faults;
mod keys;
mod layer;
mod model;
mod seed;
mod support;
#[cfg(feature = "redis-tls")]
mod tls;
mod together;
