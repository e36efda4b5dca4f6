//! The layer around services that fail on purpose, on a paused clock.

#![allow(clippy::unwrap_used, reason = "also what serves tests may")]

mod balance;
mod budget;
mod cancel;
mod cost;
mod defects;
mod fits;
mod give_up;
mod grpc;
mod grpc_wire;
mod hedge;
mod hedge_body;
mod hedge_budget;
mod hedge_cancel;
mod hedge_cost;
mod hedge_delay;
mod hedge_fits;
#[cfg(feature = "metrics")]
mod hedge_metrics;
mod hedge_paused;
mod hedge_ready;
mod hedge_schedules;
mod hedge_stream;
mod hedge_support;
mod hedge_tail;
mod limits;
#[cfg(feature = "metrics")]
mod metrics;
mod ready;
mod replay;
mod retries;
mod shadow;
mod storm;
mod stream;
mod support;
