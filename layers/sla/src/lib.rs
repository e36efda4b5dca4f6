//! Tells how well a service keeps its promises, and how long it can go on like that.
//!
//! # Example
//!
//! ```
//! use std::{convert::Infallible, time::Duration};
//!
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use palisade_core::time;
//! use palisade_sla::{Objective, SlaLayer};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), palisade_core::BoxError> {
//! // 99.9 % of requests succeed, and 99 % of those end within 800 ms.
//! let objective = Objective::success(0.999)?.within(Duration::from_millis(800), 0.99)?;
//! let layer = SlaLayer::new(objective).named("chat");
//! let sla = layer.handle();
//!
//! let service = ServiceBuilder::new()
//!     .layer(layer)
//!     .service(service_fn(async |_: Request<()>| {
//!         Ok::<_, Infallible>(Response::new(Full::from("hello")))
//!     }));
//! service.oneshot(Request::new(())).await?.into_body().collect().await?;
//!
//! let summary = sla.summary(Duration::from_secs(300));
//! assert_eq!((summary.total_requests, summary.error_count), (1, 0));
//! let burn = sla.burn(time::now());
//! assert_eq!((burn.availability.error_budget_left, burn.firing()), (1.0, None));
//! # Ok(())
//! # }
//! ```
//!
//! # Behaviour
//!
//! [`SlaLayer`] lets all requests through and counts each when it ends; its [`Handle`] reports when it is asked.
//!
//! | verdict | counts as |
//! |---|---|
//! | success | good |
//! | failure, overload, timed out, unsent | bad |
//! | refused by a layer further in | bad; a rate limit's refusal is left out |
//! | caller's fault, canceled | left out |
//!
//! What is left out is in [`Verdicts`], and in no rate, latency or objective. Latency is promised for requests that
//! succeed: each request spends of one error budget at most.
//!
//! [`Handle::summary`] has the latencies, rates and tokens of a window, and compares them with [`Targets`].
//! [`Handle::burn`] has the error budgets of the period, 30 days unless told otherwise, and four alerts on how fast
//! they are spent:
//!
//! | alert | burn rate | over the last | and the last |
//! |---|---|---|---|
//! | page | 14.4 | 1 h | 5 min |
//! | page | 6 | 6 h | 30 min |
//! | ticket | 3 | 1 d | 2 h |
//! | ticket | 1 | 3 d | 6 h |
//!
//! An alert fires when both windows are that bad, there are 50 requests in the longer one, and the first one counted
//! was a minute ago. It ends when the shorter window is better again. All of these times scale with the period.
//!
//! It belongs outside of retries, so that a request counts once however many attempts it took.
//!
//! # Streaming
//!
//! A request ends when its response body ends, and is counted then, in the bucket of that time, also when its head had
//! told the verdict. The first data are measured by themselves, as soon as they are there.
//!
//! # Cancellation
//!
//! A request whose future or body is dropped before a verdict is `canceled`: left out, and counted apart.
//!
//! # Clones
//!
//! Clones of a layer, of its [`Sla`] and of its handle share all that is counted, and so do the services made by it.
//! For indicators by route or model, give each a layer of its own: 0.35 MB on two CPUs, whatever the traffic.
//!
//! # Errors
//!
//! None of its own; a share that is not one is an [`InvalidObjective`].
//!
//! # Metrics
//!
//! With the feature `metrics`, all with the label `layer`, the name of the layer:
//!
//! | name | kind | labels |
//! |---|---|---|
//! | `palisade_sla_requests_total` | counter | `verdict`: the fields of [`Verdicts`] |
//! | `palisade_sla_duration_seconds` | histogram, good and bad requests | |
//! | `palisade_sla_first_data_seconds` | histogram | |
//! | `palisade_sla_tokens_total` | counter | `kind`: `input`, `output` |
//! | `palisade_sla_in_flight` | gauge | |
//! | `palisade_sla_error_budget_left_ratio` | gauge | `rule`: `availability`, `latency` |
//! | `palisade_sla_burn_rate_ratio` | gauge | `rule`, `window`: `5m` to `3d` |
//! | `palisade_sla_alert_firing` | gauge, 0 or 1 | `rule`, `kind`: `page`, `ticket` |
//!
//! The last three are set by `Handle::publish`, to be called before a scrape.
//!
//! # When not to use it
//!
//! With few requests an objective says little: of 50 in an hour one bad request is a burn rate of 20 at 99.9 %, and
//! pages. Promise less, or over a longer time. What is counted is gone with the process: objectives that outlive it, or
//! span several, belong into a monitoring system that scrapes the metrics.
//!
//! # Design
//!
//! *Time in buckets.* A window is its whole buckets and the running one; a bucket is a 30th of the longest window of
//! summaries, and 10 s at most. Error budgets are counted in buckets of 10 s for two hours, of 5 min for three days
//! and of 1 h for 30 days, so no window of an alert is more than a 30th too long. Numbers equal a recount with the same
//! edges, whichever threads counted them.
//!
//! *Durations in bins*, 32 for each doubling from 66 us to 73 min, as HdrHistogram does it: percentiles are within
//! 1.6 %, interpolated between the two nearest. Shorter ones are in bins of 2 us.
//!
//! *Locks, and not atomics.* A request is three to eight additions, which have to land in the same bucket. As atomics
//! they would be as many locked instructions on lines that all threads write, and a thread that is held up between
//! reading the bucket's epoch and adding to it would count into a later one. So each thread has one of several stripes,
//! plain additions under a lock that is hardly ever shared, and hands its counts over when the bucket ends. A request
//! with its first data and its end takes 57 ns more than one that is only counted in flight, and 42 ns more when two
//! threads do it at once (`benches/record.rs`, two cores).
//!
//! *Alerts* are those of [The Site Reliability Workbook, chapter 5](https://sre.google/workbook/alerting-on-slos/),
//! with 3 x over a day between 6 x and 1 x.

mod burn;
mod class;
mod compliance;
mod gate;
mod handle;
mod histogram;
mod indicators;
mod kept;
mod layer;
#[cfg(feature = "metrics")]
mod metrics;
mod objective;
mod process;
mod ring;
mod state;
mod summary;

pub use self::{
    burn::{Alert, AlertKind, Burn, BurnRate, ErrorBudget},
    class::Verdicts,
    compliance::{Compared, Compliance, Overall, Targets},
    gate::{InFlight, Sla},
    handle::{Handle, Snapshot},
    layer::SlaLayer,
    objective::{InvalidObjective, Objective},
    summary::{Errors, Latency, ProcessUsage, Summary, Throughput, TokenRates},
};
