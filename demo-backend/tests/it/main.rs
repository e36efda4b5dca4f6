//! The backend as its clients see it.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod bad_input;
mod binary;
mod chaos;
mod client;
mod faults;
mod forward;
mod generate;
mod openai;
mod restart;
mod script;
mod sdk;
mod simulation;
mod streaming;
