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
//! there are more, and ties go round. [`Strategy`] has other prices. A [`Cost`](palisade_core::cost::Cost) in the
//! extensions of a request says how large it is beside others: large ones in flight count a little more, and latencies
//! are compared by size as far as answers grow with it. What endpoints say of their load makes them up to 2.5 times as
//! dear for as long as an answer lasts, 1 s at least, and less and less for four times as long after it; they make nobody
//! cheaper who has just failed. Latencies are remembered for ten times as long as answers last, 10 s at least. Where
//! answers stream, those that have not begun count seven times, and endpoints that stream longer than others are dearer
//! by the root of that. Nobody is priced
//! out for ever: after 30 times as long, 30 s at least, an endpoint that gets nothing is as good as its peers, and after
//! twice that and a hundred requests to each of them it gets the next. One that was more than twice as slow gets one
//! request after 50 s, then another at once as long as they are answered as soon as by its peers, and is one of them
//! after four. One that says that it fails more than its peers costs what its failures would, as long as it says so and
//! less and less for ten seconds, and gets a request to see whether that is so after a thousand turns of theirs. A new
//! endpoint, and one that is back, gets its share over ten seconds.
//!
//! A failure costs as much as twenty usual answers, 5 s at most, so failing fast attracts nobody. After five in a row,
//! or when less than 80 % of at least ten worked within ten seconds, or of its last twenty where there were fewer, the
//! endpoint is *ejected*: for 1 s at first, twice
//! as long each time and 50 s at last, with a jitter of a half; then one request probes it, and until five more have
//! worked a failure ejects it again. Ten answers of overload in
//! a row do the same, unless most endpoints are overloaded; so do refusals by layers in front of the endpoint that are
//! open, full or have no endpoint themselves. Fewer than three endpoints are never ejected, and of more at most 30 % at a
//! time; one that was among more is back when no other is left. An answer with a Retry-After ejects for as long as it
//! says, half of the first pause at least and 300 s at most. A probe whose caller leaves makes way for the next, after
//! ten times as long as it has taken, 1 s at most. An attempt that its
//! caller gives up after as long as a failure costs counts as one. [`Ejection`] has all these numbers, can be changed
//! live, and has a shadow that lets all through; [`Snapshot::ejected`] says why it was the last time.
//!
//! Endpoints have [priorities](Endpoint::priority) and [zones](Endpoint::zone), which make levels: each level gets all
//! that comes as long as 71 % of it may be picked, and 1.4 x that part of it below; the next has the rest
//! ([`Endpoints::set_zone`]). Of very many endpoints a gateway can use a [`Subset`].
//!
//! With [`Endpoint::gate`] the gate is the ejection, and nothing is counted twice. It is asked before the request is
//! moved, so a request that it refuses goes elsewhere whole, and it hears the same verdict as the balancer. Its
//! [`outlook`](palisade_core::gate::Gate::outlook) is asked during the choice and under a lock: it should only look
//! at an atomic. A probe that it waits for gets the next request.
//! Of three endpoints and more, what speaks against one is advice only while more than 30 % are out or fewer than
//! half may be picked: then an endpoint that its gate refuses is picked at the price of a failure, without the gate
//! hearing of it. With [`Panic::Refuse`] fewer than half means that only probes are sent. Gates that are
//! [`Held`](palisade_core::gate::Outlook::Held), and endpoints that are unhealthy, are never overruled; with fewer than
//! three endpoints no gate is. Limits of capacity are no such matter: use [`Endpoint::max_in_flight`], or a gate that
//! leaves its outlook alone and refuses.
//!
//! [`Endpoints::health_checks`] take out what fails them, and bring it back sooner than probes can. [`HttpCheck`],
//! [`GrpcCheck`] and `TcpCheck` (feature `tcp`) are such checks; what the last one found is in the [`Snapshot`].
//!
//! Any `Clone` service can be an endpoint. `Client` (feature `hyper`) is one with a pool of connections: HTTP/1.1,
//! HTTP/2, and with the feature `hyper-tls` both over TLS. Connections that fail count against its endpoint.
//!
//! [`Endpoints::follow`] keeps the set equal to a list that changes: from DNS, a file, Kubernetes or code of your own;
//! see [`discover`].
//!
//! What an answer says of the load of its endpoint, in the header or the trailer [`endpoint-load-metrics`] of ORCA, is
//! believed ([`LoadReport`], [`BalanceLayer::ignore_load_reports`]). The header stays: what others should not see, a
//! gateway takes away. vLLM and Triton say it to requests with the header `endpoint-load-metrics-format: text`.
//! [`Endpoints::probes`] asks endpoints for it: once a second for the default strategy, and with each request for
//! [`Strategy::Prequal`]. What they say of their errors spares the others what one client has found out.
//!
//! Requests of a user or a session are kept together by [`AffinityLayer`], those of a conversation with a language
//! model by [`PromptAffinityLayer`], both in front of [`Strategy::ConsistentHash`].
//!
//! [`endpoint-load-metrics`]: LoadReport::from_headers
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
//! A request that is dropped while its prompt is read or while it waits leaves no trace; later it is [`Canceled`], and
//! says that the answer would have taken longer than this.
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
//! ([`BalanceLayer::wait`]) or until the request's [`Deadline`](palisade_core::deadline::Deadline), and at once while
//! most endpoints are out and [`Panic::Refuse`] is set. Everything else is the endpoint's own. `poll_ready` never fails;
//! while requests wait for an endpoint it is not ready.
//!
//! # Metrics
//!
//! With the feature `metrics`, by `layer` (the name of the set, [`Endpoints::named`]) and `endpoint`:
//! `palisade_balance_in_flight`, `palisade_balance_attempts_total` by `verdict`, `palisade_balance_ejections_total` and
//! `palisade_balance_shadowed_ejections_total` by `reason` (`consecutive`, `success_ratio`, `overload`,
//! `probe_failed`), and `palisade_balance_endpoint_state` by `state`, of which one is 1. By `layer` alone,
//! `palisade_balance_panic` is 1 while fewer than half of three endpoints and more may be picked. States are those of
//! the last request or change by hand. Handles are registered by [`Endpoints::insert`].
//!
//! `palisade_balance_health_checks_total` by `layer`, `endpoint` and `result` (`passed`, `failed`, `timed_out`).
//! Of a `Client`, by the `endpoint` that it is named after: `palisade_balance_connections`, which are open, and
//! `palisade_balance_connects_total` by `result` (`opened`, `failed`).
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
//! A `Client` is the pool of hyper-util, which bounds only idle connections: a connection here holds its place from
//! before it is made until it is closed. [`Endpoint::max_in_flight`] is what keeps requests from waiting for one.
//!
//! All endpoints are looked at, where others draw two. In virtual time, with ten endpoints of four places at load 0.9,
//! p99 is this much of that of an oracle that knows every queue and every speed, with one gateway and with eight that
//! know nothing of each other; where there are errors, their part follows. The one that asks has probes once a second
//! and health checks every thirty:
//!
//! | workload | adaptive | adaptive that asks | least connections | p2c with peak EWMA | round robin |
//! |---|---|---|---|---|---|
//! | equal | 1.01 · 1.06 | 1.01 · 1.04 | 1.00 · 1.07 | 1.11 · 1.24 | 1.36 · 1.35 |
//! | equal, one request in ten is eleven times as large | 1.02 · 1.10 | 1.02 · 1.05 | 0.99 · 1.10 | 1.12 · 1.44 | 2.29 · 2.23 |
//! | two at 0.4 of the speed | 1.04 · 1.05 | 1.04 · 1.08 | 1.18 · 1.54 | 1.26 · 1.81 | 102 · 106 |
//! | one at 0.1 of the speed | 1.02 · 1.11 | 1.02 · 1.09 | 1.34 · 2.64 | 1.32 · 658 | 816 · 818 |
//! | one fails at once | 1.01, 0.08 % · 1.04, 0.67 % | 1.01 · 1.04 | 0.99, 0.08 % · 1.04, 0.66 % | 0.95, 20.01 % · 0.99, 20.01 % | 1.51, 0.09 % · 1.38, 0.66 % |
//!
//! With twenty and more gateways each hears of an endpoint seldom, and what it is told is worth more. p99 of fifty by
//! what they see, where answers report the load, and where each endpoint is [asked](Endpoints::probes) once a second
//! (seeds of `tests/simulation`, which holds it to that): 1.18, 1.16 and 1.11 with equal endpoints; 1.72, 1.48 and 1.20
//! where endpoints become slow and fast again; 2.87, 2.37 and 1.35 for answers of language models on uneven endpoints;
//! 3.97, 3.86 and 1.28 on uneven endpoints that have just started. Asked, none of twenty-one workloads is above 1.5.
//!
//! An endpoint that fails is probed by each gateway every fifty seconds, which is 0.7 % of all requests with eight
//! gateways and 36 requests in a second; with [health checks](Endpoints::health_checks) it is none. One that begins to
//! fail is left alone after 4.8 s by fifty gateways that see that for themselves, and after 0.6 s where they ask: errors
//! are told in a second, and cost what that many failures would.
//!
//! Who asks one request after the other would have the same endpoint for each, as long as that is a bit faster than is
//! usual. So one that nobody has heard of counts as a tenth better than its peers, and has its turn after thirty of
//! theirs at last; after three, fifty gateways would all send to one that has just come, and p99 of a rolling restart
//! is 2.5 instead of 1.2.
//!
//! The module `simulation`, behind the feature of that name, has twenty-one workloads, and all figures beside what
//! others do; `demo-gateway simulate` shows each. The estimate does not decay while somebody waits: the peak-EWMA that
//! does is metastable when answers last as long as it remembers.

mod affinity;
mod call;
mod choose;
#[cfg(feature = "hyper")]
mod client;
mod coin;
pub mod discover;
mod eject;
mod endpoints;
mod error;
mod fleet;
mod health;
mod layer;
mod load;
mod metrics;
mod orca;
mod outstanding;
mod pace;
mod panic;
mod peers;
mod prefix;
mod probe;
mod report;
mod service;
mod settings;
#[cfg(any(test, feature = "simulation"))]
pub mod simulation;
mod size;
mod slot;
mod snapshot;
mod strategy;
mod subset;
mod sync;
mod told;
mod wait;

#[cfg(feature = "hyper")]
pub use self::client::{Client, ClientFuture, Connections, InvalidUrl, TooManyConnections};
#[cfg(feature = "tcp")]
pub use self::health::TcpCheck;
pub use self::{
    affinity::Affinity,
    call::Call,
    eject::{Ejected, Ejection, EjectionReason},
    endpoints::{Endpoint, Endpoints},
    error::NoEndpoint,
    health::{Checkup, Finding, GrpcCheck, HealthChecker, HealthChecks, HttpCheck, LastCheck},
    layer::BalanceLayer,
    orca::OrcaProbe,
    panic::Panic,
    prefix::{
        AffinityLayer, KeyAffinity, PromptAffinity, PromptAffinityLayer, PromptBody, PromptFuture,
    },
    probe::{Prober, Probes},
    report::LoadReport,
    service::{Balance, ResponseFuture},
    snapshot::{EndpointState, Health, Snapshot},
    strategy::{Strategy, UnknownStrategy},
    subset::{InvalidSubset, Subset},
};
