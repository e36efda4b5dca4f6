use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use opentelemetry::trace::{SpanId, TracerProvider};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{Sampler, SdkTracerProvider, SpanData, SpanExporter},
};
use palisade_core::{
    BoxError,
    testing::{Step, Steps},
};
use tower::Service;
use tracing::{Level, subscriber::DefaultGuard};
use tracing_subscriber::{Layer, filter::Targets, layer::SubscriberExt};

pub(crate) const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Keeps the spans of this thread that have ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spans(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Spans {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

impl Spans {
    /// Listens on this thread, until the guard is dropped.
    pub(crate) fn listen() -> (Self, DefaultGuard) {
        let spans = Self::default();
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
            .with_simple_exporter(spans.clone())
            .build();
        let exported = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("test"))
            .with_context_activation(false);
        let filter = Targets::new().with_target("palisade_trace", Level::DEBUG);
        let subscriber = tracing_subscriber::registry().with(exported.with_filter(filter));
        (spans, tracing::subscriber::set_default(subscriber))
    }

    pub(crate) fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// All that have ended since the last look, in that order.
    pub(crate) fn take(&self) -> Vec<Seen> {
        let spans = std::mem::take(&mut *self.0.lock().unwrap());
        spans.into_iter().map(Seen).collect()
    }

    /// The one that has ended since the last look.
    pub(crate) fn one(&self) -> Seen {
        let mut spans = self.take();
        assert_eq!(spans.len(), 1, "{spans:?}");
        spans.remove(0)
    }
}

#[derive(Debug)]
pub(crate) struct Seen(pub(crate) SpanData);

impl Seen {
    pub(crate) fn id(&self) -> SpanId {
        self.0.span_context.span_id()
    }

    /// An attribute, which must not be there twice.
    pub(crate) fn says(&self, key: &str) -> String {
        let values = self.0.attributes.iter().filter(|it| it.key.as_str() == key);
        let values: Vec<_> = values.map(|it| it.value.to_string()).collect();
        assert!(values.len() <= 1, "{key}: {values:?}");
        values.into_iter().next().unwrap_or_default()
    }

    pub(crate) fn keys(&self) -> BTreeMap<&str, usize> {
        let mut keys = BTreeMap::new();
        for attribute in &self.0.attributes {
            *keys.entry(attribute.key.as_str()).or_default() += 1;
        }
        keys
    }

    pub(crate) fn is_error(&self) -> bool {
        matches!(self.0.status, opentelemetry::trace::Status::Error { .. })
    }
}

/// A service that answers so, and keeps the headers that it is sent.
#[derive(Clone)]
pub(crate) struct Inner<F> {
    answer: F,
    pub(crate) seen: Arc<Mutex<Vec<HeaderMap>>>,
}

pub(crate) fn inner<F>(answer: F) -> Inner<F>
where
    F: Fn() -> Result<Response<Steps>, BoxError>,
{
    let seen = Arc::default();
    Inner { answer, seen }
}

impl<F> Inner<F> {
    /// A header of the newest request.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let seen = self.seen.lock().unwrap();
        let value = seen.last().unwrap().get(name)?;
        Some(value.to_str().unwrap().to_owned())
    }
}

impl<F, B> Service<Request<B>> for Inner<F>
where
    F: Fn() -> Result<Response<Steps>, BoxError>,
{
    type Response = Response<Steps>;
    type Error = BoxError;
    type Future = std::future::Ready<Result<Response<Steps>, BoxError>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), BoxError>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.seen.lock().unwrap().push(request.headers().clone());
        std::future::ready((self.answer)())
    }
}

pub(crate) fn says(
    status: u16,
    kind: &str,
    steps: impl IntoIterator<Item = Step>,
) -> Result<Response<Steps>, BoxError> {
    let response = Response::builder()
        .status(status)
        .header("content-type", kind);
    Ok(response.body(Steps::new(steps)).unwrap())
}

pub(crate) fn ok() -> Result<Response<Steps>, BoxError> {
    says(200, "text/plain", [Step::Data("hello")])
}

pub(crate) fn request() -> Request<Full<Bytes>> {
    let request = Request::post("http://llm.example:8080/v1/models?key=secret");
    request.body(Full::default()).unwrap()
}

pub(crate) fn request_with(headers: &[(&'static str, &str)]) -> Request<Full<Bytes>> {
    let mut request = request();
    for (name, value) in headers {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    request
}
