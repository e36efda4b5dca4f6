//! From spans that have ended to a collector, past the requests.
//!
//! The SDK's own queue counts what it drops for itself only, and cannot drive a client of this runtime.

use std::{io, mem, thread, time::Duration};

use http::HeaderMap;
use metrics::{Counter, counter, describe_counter};
use opentelemetry::Context;
use opentelemetry_otlp::{
    SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
    tonic_types::metadata::MetadataMap,
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Span, SpanData, SpanExporter as _, SpanProcessor},
};
use palisade::BoxError;
use tokio::{
    runtime::Builder,
    sync::{mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};

use super::http::Posting;
use crate::config::{Protocol, Trace};

/// Spans that wait; beyond it they are dropped. Each is about a kilobyte.
const WAITING: usize = 8192;

/// Spans that are sent together.
const BATCH: usize = 512;

/// How long a batch waits for more.
const EVERY: Duration = Duration::from_millis(500);

/// How long a collector may take.
const LONGEST_EXPORT: Duration = Duration::from_secs(5);

const DROPPED: &str = "palisade_gateway_spans_dropped_total";
const EXPORTED: &str = "palisade_gateway_spans_exported_total";

/// Takes spans that have ended, without waiting.
#[derive(Debug)]
pub(super) struct Queue {
    spans: mpsc::Sender<SpanData>,
    dropped: Counter,
}

/// The thread that sends them.
#[derive(Debug)]
pub(super) struct Exporting {
    stop: oneshot::Sender<()>,
    stopped: oneshot::Receiver<()>,
}

impl Queue {
    /// A queue, and the thread that empties it.
    pub(super) fn open(
        collector: &str,
        trace: &Trace,
        resource: Resource,
    ) -> Result<(Self, Exporting), BoxError> {
        describe_counter!(DROPPED, "Spans that no collector has got, by why.");
        describe_counter!(EXPORTED, "Spans that a collector has got.");
        let (spans, waiting) = mpsc::channel(WAITING);
        let (stop, stops) = oneshot::channel();
        let (ended, stopped) = oneshot::channel();
        let (begun, begins) = std::sync::mpsc::sync_channel(1);
        let collector = collector.trim_end_matches('/').to_owned();
        let headers = trace
            .to_headers()
            .ok_or("`trace.headers` has one that is none")?;
        let protocol = trace.protocol;
        let work = move || {
            // What is sent here is nobody's request.
            let _quiet = Context::enter_telemetry_suppressed_scope();
            let worker = || -> Result<_, BoxError> {
                let runtime = Builder::new_current_thread().enable_all().build()?;
                let inside = runtime.enter();
                let mut exporter = exporter(&collector, protocol, headers)?;
                exporter.set_resource(&resource);
                drop(inside);
                Ok((runtime, Worker::new(exporter, waiting)))
            };
            match worker() {
                Ok((runtime, worker)) => {
                    let _heard = begun.send(Ok(()));
                    runtime.block_on(worker.run(stops));
                    let _heard = ended.send(());
                }
                Err(error) => {
                    let _heard = begun.send(Err(error));
                }
            }
        };
        thread::Builder::new().name("traces".into()).spawn(work)?;
        begins.recv().map_err(io::Error::other)??;
        let queue = Self {
            spans,
            dropped: counter!(DROPPED, "reason" => "queue_full"),
        };
        Ok((queue, Exporting { stop, stopped }))
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.spans.try_send(span).is_err() {
            self.dropped.increment(1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        // `Exporting::close` does it, without blocking a runtime.
        Ok(())
    }
}

impl Exporting {
    /// Sends what waits, for so long at most.
    pub(super) async fn close(self, longest: Duration) {
        let _gone = self.stop.send(());
        if timeout(longest, self.stopped).await.is_err() {
            tracing::warn!("gave up on the last spans: the collector takes too long");
        }
    }
}

fn exporter(
    collector: &str,
    protocol: Protocol,
    headers: HeaderMap,
) -> Result<SpanExporter, BoxError> {
    let builder = SpanExporter::builder();
    Ok(match protocol {
        Protocol::Http => {
            let url = format!("{collector}/v1/traces");
            builder
                .with_http()
                .with_http_client(Posting::new(&url, headers, LONGEST_EXPORT)?)
                .with_endpoint(url)
                .with_timeout(LONGEST_EXPORT)
                .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
                .build()?
        }
        Protocol::Grpc => builder
            .with_tonic()
            // Last, as the exporter reads those of the environment by itself, which the file overrules.
            .with_interceptor(move |mut request: tonic::Request<()>| {
                let mut all = mem::take(request.metadata_mut()).into_headers();
                all.extend(headers.clone());
                *request.metadata_mut() = MetadataMap::from_headers(all);
                Ok::<_, tonic::Status>(request)
            })
            .with_endpoint(collector)
            .with_timeout(LONGEST_EXPORT)
            .build()?,
    })
}

struct Worker {
    exporter: SpanExporter,
    waiting: mpsc::Receiver<SpanData>,
    exported: Counter,
    failed: Counter,
    /// Whether the last batch was sent: what goes on is logged once.
    works: bool,
}

impl Worker {
    fn new(exporter: SpanExporter, waiting: mpsc::Receiver<SpanData>) -> Self {
        Self {
            exporter,
            waiting,
            exported: counter!(EXPORTED),
            failed: counter!(DROPPED, "reason" => "export_failed"),
            works: true,
        }
    }

    /// Sends batches until told to stop, and then what waits.
    async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut goes_on = true;
        loop {
            let was_last = tokio::select! {
                was_last = self.fill(&mut batch) => was_last,
                _ = &mut stop, if goes_on => {
                    // Nothing more comes in, and what is there comes out.
                    self.waiting.close();
                    goes_on = false;
                    false
                }
            };
            self.export(&mut batch).await;
            if was_last {
                return;
            }
        }
    }

    /// A batch that is full, or has waited long enough; whether it is the last. Canceled, it leaves what it has.
    async fn fill(&mut self, batch: &mut Vec<SpanData>) -> bool {
        if self.waiting.recv_many(batch, BATCH).await == 0 {
            return true;
        }
        let until = later(EVERY);
        while batch.len() < BATCH {
            let room = BATCH - batch.len();
            match timeout_at(until, self.waiting.recv_many(batch, room)).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        false
    }

    async fn export(&mut self, batch: &mut Vec<SpanData>) {
        if batch.is_empty() {
            return;
        }
        let spans = std::mem::replace(batch, Vec::with_capacity(BATCH));
        let many = spans.len() as u64;
        let sent = timeout(LONGEST_EXPORT, self.exporter.export(spans)).await;
        let works = matches!(sent, Ok(Ok(())));
        match works {
            true => self.exported.increment(many),
            false => self.failed.increment(many),
        }
        if self.works && !works {
            let error = match sent {
                Ok(Err(error)) => error.to_string(),
                _ => "it takes too long".into(),
            };
            tracing::warn!(%error, "the collector gets no spans; requests go on");
        } else if works && !self.works {
            tracing::info!("the collector gets spans again");
        }
        self.works = works;
    }
}

fn later(duration: Duration) -> Instant {
    palisade::time::now() + duration
}
