//! The core as the layers meet it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod defects;
mod gates;
mod respond;
mod settle;
