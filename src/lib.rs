//! Tower layers for services that must stay up: a request ends when its response body ends.
//!
//! Permits, verdicts, latencies, in-flight counts and costs are settled when the body of the answer has ended, also
//! when it breaks off and when the caller leaves: a stream of a minute is in flight for a minute, and an error in
//! its middle counts.
//!
//! # Which layer goes outside which
//!
#![doc = include_str!("order.md")]
//!
//! # What each layer makes of each verdict
//!
#![doc = include_str!("verdicts.md")]

pub use palisade_core::{
    BoxError, attempt, classify, gate,
    gate::gates,
    head, key, ratio,
    ratio::Ratio,
    reject,
    reject::{Reason, Rejected},
    respond,
    respond::{LayerExt, RespondLayer},
    retry_after, settle, time,
};
