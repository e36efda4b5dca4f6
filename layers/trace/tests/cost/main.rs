//! What it costs where nobody listens: nothing.
//!
//! By itself: `tracing` asks less precisely while any other thread of the process listens.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use palisade_core::{
    classify::Sse,
    testing::{Answers, CountingAllocator},
};
use palisade_trace::{OpenTelemetry, TraceLayer};
use tower::{Layer, Service};
use tracing::Level;
use tracing_subscriber::{filter::LevelFilter, fmt, layer::SubscriberExt};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

async fn allocations<S, B>(mut service: S) -> u64
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
    B: http_body::Body<Data = Bytes>,
{
    let mut counted = 0;
    for _ in 0..3 {
        let mut request = Request::new(Full::default());
        let parent = http::HeaderValue::from_static(PARENT);
        request.headers_mut().insert("traceparent", parent);
        let before = CountingAllocator::count();
        {
            let Ok(answer) = service.call(request).await else {
                panic!("no answer")
            };
            let mut body = std::pin::pin!(answer.into_body());
            while let Some(frame) = body.frame().await {
                assert!(frame.is_ok());
            }
        }
        counted = CountingAllocator::count() - before;
    }
    counted
}

fn answers() -> Answers<impl Fn() -> Response<Full<Bytes>> + Clone> {
    Answers(|| Response::new(Full::from("hello")))
}

#[tokio::test]
async fn nothing_is_allocated_where_nobody_listens() {
    let bare = allocations(answers()).await;
    let both = || {
        TraceLayer::request()
            .classify(Sse)
            .propagate(OpenTelemetry)
            .layer(
                TraceLayer::attempt()
                    .classify(Sse)
                    .propagate(OpenTelemetry)
                    .layer(answers()),
            )
    };
    assert_eq!(allocations(both()).await, bare);
    // Nor where somebody listens to something else, as a log does.
    let log = tracing_subscriber::registry()
        .with(fmt::layer().with_writer(std::io::sink))
        .with(LevelFilter::from_level(Level::INFO));
    let _listening = tracing::subscriber::set_default(log);
    assert_eq!(allocations(both()).await, bare);
}
