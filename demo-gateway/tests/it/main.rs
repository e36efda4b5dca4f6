//! The gateway as its callers see it: over sockets, with backends in the same process.

#![allow(
    clippy::unwrap_used,
    reason = "what a test is helped by may fail as it does"
)]

mod admin;
mod api;
mod balance;
mod cancel;
mod connections;
mod defects;
mod discovery;
mod failing;
mod failures;
mod health;
mod identity;
mod input;
mod limits;
mod openai;
mod process;
mod redis;
mod rules;
mod stream;
mod support;
mod tokens;
mod zones;
