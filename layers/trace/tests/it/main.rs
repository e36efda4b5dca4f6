//! The layer with an exporter of OpenTelemetry that keeps what it gets.

#![allow(clippy::unwrap_used, reason = "also what serves tests may")]

mod cancel;
mod ends;
mod links;
mod support;
