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
//!
//! // Alerts begin and end by themselves in a task of the user's.
//! tokio::spawn(sla.monitor());
//! # Ok(())
//! # }
//! ```
//!
//! # Behaviour
//!
//! [`SlaLayer`] lets all requests through and counts each when it ends; its [`Handle`] reports.
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
//! [`Handle::summary`] has the latencies, the time between tokens, rates and tokens of any window up to the longest, says
//! where they go since the window before, and compares them with [`Targets`]. [`Sla::by`] counts by route, by model or by
//! whatever else the head tells, [`Sla::further_in`] and [`Sla::labelled`] by what is only known there, such as the endpoint;
//! [`Handle::labels`] has a summary of each. With the feature `hdr`, `Handle::export` is what one process has counted, and
//! `Replicas` add up several.
//!
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
//! was a minute ago. It ends when the shorter window has been a tenth below that through a fifth of its length: a page
//! for an outage of minutes ends six minutes after it. All of these times scale with the period. A window that is not
//! full yet counts as it is: an hour after the start, six hours are one hour, and the second page may come first.
//!
//! Alerts are looked at when [`Handle::burn`] is asked, and by [`Handle::monitor`], once in 10 s, which tells who
//! [watches](Handle::watch) and sets [signals](Handle::signal): a layer that [heeds](palisade_core::signal) one does less
//! while the error budget burns. A hedge does:
//!
//! ```
//! use std::time::Duration;
//! use palisade_retry::HedgeLayer;
//! use palisade_sla::{AlertKind, Condition, Objective, Sla};
//!
//! let sla = Sla::new(Objective::success(0.999)?);
//! let paging = sla.handle().signal(Condition::Fires(AlertKind::Page));
//! let hedge = HedgeLayer::new(Duration::from_millis(100)).paused_by(paging);
//! # assert!(!hedge.handle().snapshot().paused);
//! # Ok::<(), palisade_sla::InvalidObjective>(())
//! ```
//!
//! It belongs outside of retries, so that a request counts once however many attempts it took.
//!
//! # Streaming
//!
//! A request ends when its response body ends, and is counted then, in the bucket of that time, also when its head had
//! told the verdict. The first data are measured by themselves, as soon as they are there. The time between tokens is
//! that of answers whose classifier counts [pieces](palisade_core::classify::Judge::streamed), as
//! [`Sse`](palisade_core::classify::Sse) does.
//!
//! # Cancellation
//!
//! A request whose future or body is dropped before a verdict is `canceled`: left out, and counted apart. The future of
//! [`Handle::monitor`] can be dropped at any time, and lets go of its signals.
//!
//! # Clones
//!
//! Clones of a layer, of its [`Sla`] and of its handle share all that is counted, and so do the services made by it.
//! A layer takes 0.5 MB on two CPUs, and a label of it 40 KiB, whatever the traffic: 1.3 MB for the 32 of a dimension
//! and the others.
//!
//! # Errors
//!
//! None of its own; a share that is not one is an [`InvalidObjective`], a ninth dimension an [`InvalidDimension`], and an
//! export of another version an `InvalidExport`.
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
//! | `palisade_sla_between_tokens_seconds` | histogram, the mean of each stream | |
//! | `palisade_sla_tokens_total` | counter | `kind`: `input`, `output` |
//! | `palisade_sla_in_flight` | gauge | |
//! | `palisade_sla_error_budget_left_ratio` | gauge | `rule`: `availability`, `latency` |
//! | `palisade_sla_burn_rate_ratio` | gauge | `rule`, `window`: `5m` to `3d` |
//! | `palisade_sla_alert_firing` | gauge, 0 or 1 | `rule`, `kind`: `page`, `ticket` |
//! | `palisade_sla_label_requests_total` | counter, if asked for (`Sla::publish_labels`) | `dimension`, `label`, `standing`: `good`, `bad`, `left_out` |
//! | `palisade_sla_label_in_flight` | gauge, if asked for | `dimension`, `label` |
//!
//! The last five are set by `Handle::publish`, to be called before a scrape, and by the monitor. Those of a promise of
//! latency that is no longer made ([`Handle::update`]) are NaN, which no comparison holds for, and its alerts 0.
//!
//! # When not to use it
//!
//! With few requests an objective says little: of 50 in an hour one bad request is a burn rate of 20 at 99.9 %, and
//! pages. Promise less, or over a longer time. What is counted is gone with the process, and error budgets are of one:
//! objectives that outlive it, or span several, belong into a monitoring system that scrapes the metrics.
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
//! with its first data and its end takes 57 ns, in one thread and in each of two, which share no cache line: 22 ns for being held
//! and counted in flight at all, 20 ns for the locks (`benches/record.rs`, two cores).
//!
//! *Labels* that heads name are found in a table that only grows, without a lock. A label of gates ([`Sla::labelled`]), such
//! as an endpoint, gives its place back when all of them are gone, no request of it is in flight, and what its last ones
//! put aside is counted: so no label has figures of another. Labels have coarser bins and buckets than the whole. What happens to
//! their requests is put aside in the stripe and counted 64 at a time, so that the lock of a label which all threads
//! share is taken once for many: 30 ns for each dimension.
//!
//! *Replicas* are merged by bins, and a bin is exported where its middle is, so that percentiles of the sum are those
//! that one process would have found. HdrHistogram's format is for its tools: three digits of it are finer than the bins.
//!
//! *Alerts* are those of [The Site Reliability Workbook, chapter 5](https://sre.google/workbook/alerting-on-slos/),
//! with 3 x over a day between 6 x and 1 x.

mod burn;
mod class;
mod compliance;
#[cfg(feature = "hdr")]
mod export;
mod gate;
mod handle;
mod histogram;
mod hold;
mod indicators;
mod kept;
mod labels;
mod layer;
#[cfg(feature = "metrics")]
mod metrics;
mod monitor;
mod objective;
mod process;
mod ring;
mod state;
mod summary;
mod trend;

#[cfg(feature = "hdr")]
pub use self::export::{Export, Exported, ExportedBefore, ExportedTokens, InvalidExport, Replicas};
pub use self::{
    burn::{Alert, AlertKind, Burn, BurnRate, ErrorBudget},
    class::Verdicts,
    compliance::{Compared, Compliance, Overall, Targets},
    gate::{InFlight, LabelledSla, Sla},
    handle::{Handle, Snapshot},
    labels::{DimensionSummary, InvalidDimension, LabelSummary},
    layer::SlaLayer,
    monitor::Condition,
    objective::{InvalidObjective, Objective},
    summary::{BetweenTokens, Errors, Latency, ProcessUsage, Summary, Throughput, TokenRates},
    trend::{Direction, Moved, Trend},
};
