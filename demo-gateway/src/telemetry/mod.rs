//! What the program logs, and the spans that it sends to a collector.
//!
//! Only for the program: a library that installs a subscriber takes it from everybody else.

mod export;
mod http;
mod repeats;
pub(crate) mod spans;

use std::{io::IsTerminal, time::Duration};

use opentelemetry::{KeyValue, trace::TracerProvider};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracerProvider},
};
use palisade::BoxError;
use tracing::Level;
use tracing_subscriber::{
    EnvFilter, Layer, filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt,
};

use self::{
    export::{Exporting, Queue},
    repeats::Repeats,
};
use crate::{config::Trace, metrics};

/// What listens to the program, until it is closed.
#[derive(Debug, Default)]
pub struct Telemetry {
    exporting: Option<Exporting>,
}

impl Telemetry {
    /// Logs to stderr as far as `PALISADE_LOG` says (`info` otherwise), a warning that repeats itself at most ten times
    /// a second; and sends spans to the collector, if one is set.
    ///
    /// # Errors
    ///
    /// If the address of the collector is none, or somebody listens already.
    pub fn install(trace: &Trace) -> Result<Self, BoxError> {
        // Before anything registers a metric.
        let _recorder = metrics::recorder();
        let filter = EnvFilter::try_from_env("PALISADE_LOG");
        let filter = filter.unwrap_or_else(|_| EnvFilter::new("info"));
        let log = fmt::layer()
            .event_format(Repeats::new(fmt::format()))
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_filter(filter);
        let (exporting, provider) = exporting(trace)?.unzip();
        let spans = provider.map(|provider: SdkTracerProvider| {
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("demo-gateway"))
                // Who is entered a thousand times in a stream need not be looked up by anybody but us.
                .with_context_activation(false)
                .with_tracked_inactivity(false)
                .with_location(false)
                .with_threads(false)
                .with_target(false)
                .with_filter(Targets::new().with_target("palisade_trace", Level::DEBUG))
        });
        tracing_subscriber::registry()
            .with(log)
            .with(spans)
            .try_init()?;
        Ok(Self { exporting })
    }

    /// Sends what has ended but not been sent, for so long at most; then what is left is counted as lost.
    pub async fn close(self, longest: Duration) {
        if let Some(exporting) = self.exporting {
            exporting.close(longest).await;
        }
    }
}

/// What sends spans, and what makes them.
fn exporting(trace: &Trace) -> Result<Option<(Exporting, SdkTracerProvider)>, BoxError> {
    let Some(collector) = &trace.otlp else {
        return Ok(None);
    };
    let resource = resource(trace);
    let (queue, exporting) = Queue::open(collector, trace, resource.clone())?;
    let sampler = Sampler::TraceIdRatioBased(trace.sample);
    let provider = SdkTracerProvider::builder()
        .with_sampler(Sampler::ParentBased(Box::new(sampler)))
        .with_resource(resource)
        .with_span_processor(queue)
        .build();
    Ok(Some((exporting, provider)))
}

/// Who sends the spans; `OTEL_RESOURCE_ATTRIBUTES` says more.
fn resource(trace: &Trace) -> Resource {
    Resource::builder()
        .with_service_name(trace.service_name.clone())
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", uuid::Uuid::new_v4().to_string()),
            KeyValue::new("process.pid", i64::from(std::process::id())),
        ])
        .build()
}
