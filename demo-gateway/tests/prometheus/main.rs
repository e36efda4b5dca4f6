//! The files of `deploy/`, held against real servers and a gateway under load.

#![allow(
    clippy::unwrap_used,
    reason = "what a test is helped by may fail as it does"
)]

mod dashboards;
mod expressions;
mod files;
#[path = "../it/receiver.rs"]
#[allow(dead_code, reason = "not all of it is of use here")]
mod receiver;
mod scrape;
mod servers;
#[path = "../it/support.rs"]
#[allow(dead_code, reason = "not all of it is of use here")]
mod support;
