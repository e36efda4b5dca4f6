//! A gateway for language models that shows the layers of palisade at work.
//!
//! It speaks the API of OpenAI below `/v1` and a simpler one at `/generate`, and sends requests on to backends that
//! speak the same: limited per caller, balanced by latency, tried again elsewhere when a backend fails, and measured
//! to the end of each answer, streams included.
//!
//! The file to read first is `stack.rs`: it names the layers in their order, and nothing else does.
//!
//! # Example
//!
//! ```
//! use demo_gateway::{Config, Gateway};
//!
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! // As the program without any argument, on a port that is free.
//! let gateway = Gateway::start(Config {
//!     listen: "127.0.0.1:0".into(),
//!     ..Config::default()
//! })
//! .await?;
//! assert_eq!(gateway.embedded_backends().len(), 3);
//! gateway.shutdown().await;
//! # Ok::<(), demo_gateway::StartError>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Streaming
//!
//! Events are passed on one by one. Backends are always asked to count the tokens of a stream, and the event that
//! says so is taken out again if the caller did not ask. A stream that breaks off ends with an event that says why.
//!
//! # Cancellation
//!
//! A caller who leaves ends the attempt: its connection to the backend is closed.
//!
//! # Errors
//!
//! Problem details after RFC 9457; below `/v1` the error object of OpenAI.
//!
//! # Metrics
//!
//! `/metrics` shows `llm_*`, `gen_ai_*` and what the layers say as `palisade_*`: see [`metrics`]. Gateways in
//! one process share them.

mod access_log;
mod account;
mod admin;
mod affinity;
pub mod alerts;
mod api;
mod app;
mod backends;
mod body;
mod changes;
mod checkup;
mod classify;
pub mod cli;
mod clock;
pub mod config;
mod dashboard;
mod discovery;
mod elsewhere;
mod errors;
mod exchange;
mod fallbacks;
mod gateway;
mod headers;
mod identity;
mod limits;
pub mod metrics;
mod proxy;
mod record;
pub mod replicas;
mod server;
pub mod simulate;
mod splice;
mod sse;
mod stack;
pub mod store;
pub mod telemetry;
mod verdict;
mod watcher;
mod work;
mod workers;

pub use self::{
    config::Config,
    gateway::{Gateway, StartError},
};
