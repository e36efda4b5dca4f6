//! What a collector of OpenTelemetry gets, over HTTP and over gRPC.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use prost::Message;
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::transport::server::TcpIncoming;

/// A collector that keeps what it gets.
#[derive(Debug)]
pub(crate) struct Collector {
    url: String,
    kept: Kept,
    server: JoinHandle<()>,
}

#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<Vec<Seen>>>);

/// A span, and who sent it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) span: Span,
    pub(crate) resource: BTreeMap<String, String>,
    /// What it was sent with.
    pub(crate) headers: HeaderMap,
}

impl Collector {
    pub(crate) async fn http() -> Self {
        Self::start(|listener, kept| async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let kept = kept.clone();
                let service = service_fn(move |request| {
                    let kept = kept.clone();
                    async move { Ok::<_, Infallible>(kept.post(request).await) }
                });
                let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(serving);
            }
        })
        .await
    }

    pub(crate) async fn grpc() -> Self {
        Self::start(|listener, kept| async move {
            tonic::transport::Server::builder()
                .add_service(TraceServiceServer::new(kept))
                .serve_with_incoming(TcpIncoming::from(listener))
                .await
                .unwrap();
        })
        .await
    }

    /// One that takes connections and never says a word.
    pub(crate) async fn mute() -> Self {
        Self::start(|listener, _| async move {
            let mut held = Vec::new();
            loop {
                held.push(listener.accept().await.unwrap());
            }
        })
        .await
    }

    async fn start<F>(serve: impl FnOnce(TcpListener, Kept) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let kept = Kept::default();
        let server = tokio::spawn(serve(listener, kept.clone()));
        Self { url, kept, server }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// All that it has got.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.kept.0.lock().unwrap().clone()
    }

    /// What belongs to one trace, in the order in which it began.
    pub(crate) fn trace(&self, id: &str) -> Vec<Seen> {
        let mut seen = self.seen();
        seen.retain(|seen| seen.trace() == id);
        seen.sort_by_key(|seen| seen.span.start_time_unix_nano);
        seen
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Kept {
    fn keep(&self, request: ExportTraceServiceRequest, headers: &HeaderMap) {
        let mut kept = self.0.lock().unwrap();
        for of_one in request.resource_spans {
            let resource = of_one.resource.unwrap_or_default();
            let resource: BTreeMap<_, _> = resource.attributes.iter().map(text).collect();
            let spans = of_one.scope_spans.into_iter().flat_map(|scope| scope.spans);
            kept.extend(spans.map(|span| Seen {
                span,
                resource: resource.clone(),
                headers: headers.clone(),
            }));
        }
    }

    async fn post(&self, request: Request<Incoming>) -> Response<Full<bytes::Bytes>> {
        let mut answer = Response::new(Full::default());
        let is_ours = request.uri().path() == "/v1/traces"
            && request.headers()["content-type"] == "application/x-protobuf";
        let headers = request.headers().clone();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        match ExportTraceServiceRequest::decode(body) {
            Ok(request) if is_ours => self.keep(request, &headers),
            _ => *answer.status_mut() = StatusCode::BAD_REQUEST,
        }
        answer
    }
}

#[tonic::async_trait]
impl TraceService for Kept {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let headers = request.metadata().clone().into_headers();
        self.keep(request.into_inner(), &headers);
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Seen {
    pub(crate) fn trace(&self) -> String {
        hex(&self.span.trace_id)
    }

    pub(crate) fn id(&self) -> String {
        hex(&self.span.span_id)
    }

    pub(crate) fn parent(&self) -> String {
        hex(&self.span.parent_span_id)
    }

    pub(crate) fn is_request(&self) -> bool {
        self.span.kind == 2
    }

    pub(crate) fn is_attempt(&self) -> bool {
        self.span.kind == 3
    }

    pub(crate) fn is_error(&self) -> bool {
        self.span
            .status
            .as_ref()
            .is_some_and(|status| status.code == 2)
    }

    pub(crate) fn seconds(&self) -> f64 {
        (self.span.end_time_unix_nano - self.span.start_time_unix_nano) as f64 / 1e9
    }

    /// An attribute, which must not be there twice; empty if it is not.
    pub(crate) fn says(&self, key: &str) -> String {
        let values = self.span.attributes.iter().map(text);
        let values: Vec<_> = values.filter(|(name, _)| name == key).collect();
        assert!(values.len() <= 1, "{key}: {values:?}");
        let first = values.into_iter().next();
        first.map(|(_, value)| value).unwrap_or_default()
    }
}

fn text(attribute: &KeyValue) -> (String, String) {
    let value = attribute.value.clone().and_then(|value| value.value);
    let text = match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(Value::BoolValue(is)) => is.to_string(),
        other => format!("{other:?}"),
    };
    (attribute.key.clone(), text)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
