//! Sends each request to the endpoint that is cheapest now, and keeps it away from those that fail.
//!
//! # Example
//!
//! ```
//! use http::{Request, Response};
//! use http_body_util::Empty;
//! use palisade_balance::{Balance, Endpoint, Endpoints};
//! use palisade_core::testing::Answers;
//! use tower::ServiceExt;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let client = Answers(|| Response::new(Empty::<bytes::Bytes>::new()));
//! let endpoints = Endpoints::default();
//! endpoints.insert(Endpoint::new("a", client.clone()));
//! endpoints.insert(Endpoint::new("b", client).weight(2.0).max_in_flight(100));
//!
//! let service = Balance::adaptive(endpoints.clone());
//! let response = service.oneshot(Request::new(())).await.unwrap();
//! assert!(response.status().is_success());
//!
//! // The set is the handle, also while requests come.
//! endpoints.drain("a").await;
//! assert_eq!(endpoints.snapshot()[0].name.as_ref(), "b");
//! # }
//! ```
//!
//! # Behaviour
//!
//! The price of an endpoint is its latency x (1 + in-flight) / weight; the lowest of all is taken, or of 64 where
//! there are more, and ties go round. [`Strategy`] has other prices. A new endpoint, and one that is back, gets its
//! share over ten seconds.
//!
//! A failure costs as much as twenty usual answers, 5 s at most, so failing fast attracts nobody. After five in a row
//! the endpoint is *ejected*, for 1 s at first and 60 s at last, with a jitter of a half; then one request probes it.
//! Fewer than three endpoints are never ejected, and of more at most 30 % at a time. An answer with a Retry-After
//! ejects for as long as it says, 300 s at most. An attempt that its caller gives up after as long as a failure costs
//! counts as one.
//!
//! With [`Endpoint::gate`] the gate is the ejection, and nothing is counted twice. It is asked before the request is
//! moved, so a request that it refuses goes elsewhere whole, and it hears the same verdict as the balancer. Its
//! [`outlook`](palisade_core::gate::Gate::outlook) is asked during the choice and under a lock: it should only look
//! at an atomic. A probe that it waits for gets the next request.
//! Of three endpoints and more, what speaks against one is advice only while more than 30 % are out or fewer than
//! half may be picked: then an endpoint that its gate refuses is picked at the price of a failure, without the gate
//! hearing of it. Gates that are [`Held`](palisade_core::gate::Outlook::Held), and endpoints that are unhealthy, are
//! never overruled; with fewer than three endpoints no gate is. Limits of capacity are no such matter:
//! use [`Endpoint::max_in_flight`], or a gate that leaves its outlook alone and refuses.
//!
//! [`Endpoints::health_checks`] take out what fails them, and bring it back sooner than probes can.
//!
//! [`Attempts`](palisade_core::attempt::Attempts) in the extensions of a request hear where it went, and endpoints
//! that it has tried come last.
//!
//! # Streaming
//!
//! A request is in flight until its response body has ended. Its latency is the time to the first data, where a
//! probe passes, too.
//!
//! # Cancellation
//!
//! A request that is dropped while it waits leaves no trace; later it is [`Canceled`], and says that the answer would
//! have taken longer than this.
//!
//! [`Canceled`]: palisade_core::classify::Verdict::Canceled
//!
//! # Clones
//!
//! Clones of [`Balance`] and of [`Endpoints`] share everything: there is no buffer and no worker. The choice is made
//! when the response future is polled, and the endpoint's service is cloned for it: it should be cheap to clone.
//!
//! # Errors
//!
//! [`NoEndpoint`], as `Rejected` with `Reason::NoEndpoint`, when none could be picked for three seconds
//! ([`BalanceLayer::wait`]) or until the request's [`Deadline`](palisade_core::deadline::Deadline). Everything else is
//! the endpoint's own. `poll_ready` never fails; while requests wait for an endpoint it is not ready.
//!
//! # Metrics
//!
//! With the feature `metrics`, by `layer` (the name of the set, [`Endpoints::named`]) and `endpoint`:
//! `palisade_balance_in_flight`, `palisade_balance_attempts_total` by `verdict`, `palisade_balance_ejections_total`,
//! and `palisade_balance_endpoint_state` by `state`, of which one is 1. The state is that of the last end of a
//! request or change by hand. Handles are registered by [`Endpoints::insert`].
//!
//! # When not to use it
//!
//! Where a proxy or a kernel already picks: two balancers in a row each see half of the truth. Where a request has to
//! go to one certain endpoint.
//!
//! # Design
//!
//! One short lock around the whole choice: it reads what every request writes, so a snapshot would save nothing, and
//! picking without counting in the same step makes threads herd. `poll_ready` cannot see the request, so an idle
//! clone would hold a probe; the future can wait with the request in hand. Requests that wait are woken one for each
//! place.
//!
//! All endpoints are looked at, where others draw two. In virtual time, with ten endpoints of four places at load 0.9,
//! p99 is this much of that of an oracle that knows every queue and every speed (the module `simulation` asserts it):
//!
//! | workload | adaptive | least connections | round robin |
//! |---|---|---|---|
//! | equal | 1.03 | 1.00 | 1.5 |
//! | two at 0.4 of the speed | 1.05 | 1.17 | 104 |
//! | one at 0.1 of the speed | 1.06 | 1.32 | 820 |
//! | one fails at once | 1.03, and 0.05 % errors | 1.00 | 1.6 |
//!
//! Eight gateways that know nothing of each other: 1.10 and 1.18 on the second and third. The estimate does not
//! decay while something is in flight: the peak-EWMA that does is metastable when answers last as long as it remembers.

mod call;
mod choose;
mod coin;
mod endpoints;
mod error;
mod fleet;
mod health;
mod layer;
mod load;
mod metrics;
mod outstanding;
mod peers;
mod service;
#[cfg(test)]
mod simulation;
mod slot;
mod snapshot;
mod strategy;
mod wait;

pub use self::{
    call::Call,
    endpoints::{Endpoint, Endpoints},
    error::NoEndpoint,
    health::{HealthChecker, HealthChecks},
    layer::BalanceLayer,
    service::{Balance, ResponseFuture},
    snapshot::{EndpointState, Health, Snapshot},
    strategy::{Strategy, UnknownStrategy},
};
