//! Failing well: what only shows when layers, or two processes, meet.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod balance;
mod deadlines;
mod grpc;
mod server;
