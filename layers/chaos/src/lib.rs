//! Fails requests on purpose, by a seed, so that what guards a service can be seen at work.
//!
//! # Example
//!
//! ```
//! use std::convert::Infallible;
//!
//! use bytes::Bytes;
//! use http::{Request, Response, StatusCode};
//! use http_body_util::{BodyExt, Full};
//! use palisade_chaos::{After, ChaosLayer, Fault, Injected};
//! use tower::{Layer, Service, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), palisade_core::BoxError> {
//! let hello = service_fn(async |_: Request<()>| {
//!     Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("hello")))
//! });
//! let chaos = ChaosLayer::new(42, [
//!     Fault::status(StatusCode::SERVICE_UNAVAILABLE).when(|head| head.uri.path() == "/pay"),
//!     Fault::abort(After::Bytes(3)),
//! ]);
//! let mut service = chaos.layer(hello);
//!
//! let answer = service.ready().await?.call(Request::get("/pay").body(())?).await?;
//! assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
//!
//! let answer = service.ready().await?.call(Request::get("/").body(())?).await?;
//! let mut body = answer.into_body();
//! let frame = body.frame().await.expect("three bytes")?;
//! assert_eq!(frame.into_data().expect("data"), "hel");
//! let error = body.frame().await.expect("an error").unwrap_err();
//! assert_eq!(Injected::find(&*error).expect("ours").fault(), "abort");
//!
//! chaos.handle().disable();
//! let answer = service.ready().await?.call(Request::get("/").body(())?).await?;
//! assert_eq!(answer.into_body().collect().await?.to_bytes(), "hello");
//! # Ok(())
//! # }
//! ```
//!
//! # Behaviour
//!
//! A [`Fault`] holds a request up, ends it before the service is called (a status, an error, or never), or cuts the body
//! of its answer. It strikes a share of requests, or all, or those that ask for it; of those, the ones that meet its
//! condition, in its window of time.
//!
//! Several faults draw apart from each other, and those that strike compose: delays add up, then the first one that ends
//! the request counts, otherwise the answer is cut by the first one of each kind.
//!
//! With the same seed the same sequence of requests meets the same faults. What a fault draws depends on the seed, the
//! number of the request and the place of the fault among the others, and on nothing else; requests are numbered as they
//! come, from 0 when faults are switched on, replaced or seeded anew.
//!
//! # Streaming
//!
//! Bodies break off, stall, pause and drip at an exact byte or frame. Guards of layers outside hear what they would hear
//! of a real one: a broken body is a failure though its head said 200, and a stalled one is in flight until somebody
//! loses patience.
//!
//! Statuses for calls of gRPC are trailers-only.
//!
//! # Cancellation
//!
//! A request whose caller leaves while it is held up is never sent. One that is held up is sent by the instance that was
//! ready for it. What hangs or stalls wakes nobody: only a timeout or the caller ends it.
//!
//! # Clones
//!
//! A layer, its clones and the services that it makes share faults, counts and the sequence of draws.
//!
//! # Errors
//!
//! Those of the service, and those of the faults: `io::Error`s that wrap an [`Injected`], judged by every layer as the
//! real ones are.
//!
//! # Metrics
//!
//! With the feature `metrics`: `palisade_chaos_faults_total{layer, fault}`, when a fault strikes: one of bodies when the
//! body has got so far; `palisade_chaos_shadowed_total{layer, fault}`, when it would have been chosen in shadow mode.
//! They are registered with the first request that finds faults switched on.
//!
//! # When not to use it
//!
//! Where strangers can reach it with [`ChaosLayer::on_demand`] and know the secret. Requests can only name faults that
//! the layer has, with the layer's parameters; still, a hang holds a connection for as long as the caller likes.
//!
//! # Design
//!
//! Off, it costs one relaxed load: no clock, no allocation, no draw. On, a request that nothing happens to costs an atomic
//! addition and some arithmetic for each fault, and no allocation; the clock is read if a fault has a window.
//!
//! Draws are a hash of what they depend on, not a generator that requests take turns at: a fault that is added, disarmed
//! or conditional changes nothing for the others, and no lock is needed. The kinds are those of Polly's Simmy and of
//! Envoy's fault filter, and those for bodies, which neither has in full.

mod body;
mod cut;
mod delay;
mod demand;
mod draw;
mod error;
mod fault;
mod handle;
mod injection;
mod layer;
mod metrics;
mod service;
mod shared;

pub use self::{
    body::ChaosBody,
    delay::{Delay, InvalidDelay},
    demand::{Secret, ShortSecret},
    error::{Injected, NoSuchFault},
    fault::{After, Fault},
    handle::{FaultSnapshot, Handle, Mode, Snapshot},
    layer::ChaosLayer,
    service::{Chaos, ChaosFuture},
};
pub use palisade_core::ratio::Ratio;
