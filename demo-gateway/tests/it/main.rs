//! The gateway as its callers see it: over sockets, with backends in the same process.

#![allow(
    clippy::unwrap_used,
    reason = "what a test is helped by may fail as it does"
)]

mod access_log;
mod admin;
mod api;
mod balance;
mod cancel;
mod connections;
mod dashboard;
mod defects;
mod discovery;
mod failing;
mod failures;
mod health;
mod identity;
mod input;
mod limits;
mod metrics;
mod notify;
mod openai;
mod postgres;
mod process;
mod receiver;
mod redis;
mod rules;
mod sla;
mod store;
mod stream;
mod support;
mod tokens;
mod traces;
mod zones;
