//! What answers say of the load of their endpoint.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use palisade_balance::{Balance, BalanceLayer, Endpoint, Endpoints, LoadReport, Strategy};
use palisade_core::{
    classify::Grpc,
    gate::{Admit, Gate},
    head::RequestHead,
    settle::{End, Settle},
    testing::{Answers, CountingAllocator, Step, Steps},
};
use tokio::time::Instant;
use tower::{Layer, ServiceExt};

use crate::support::of;

const SAID: &str = "TEXT cpu_utilization=0.5, named_metrics.in_flight=3";

fn report() -> LoadReport {
    let mut report = LoadReport::default();
    report.utilization = Some(0.5);
    report.in_flight = Some(3);
    report
}

fn says() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from("answer"));
    let headers = response.headers_mut();
    headers.insert("endpoint-load-metrics", SAID.parse().unwrap());
    response
}

type Says = Answers<fn() -> Response<Full<Bytes>>>;

fn set() -> Endpoints<Says> {
    let endpoints = Endpoints::default();
    endpoints.insert(Endpoint::new("a", Answers(says as fn() -> _)));
    endpoints
}

#[tokio::test]
async fn an_answer_is_heard_with_its_head_and_keeps_its_header() {
    let endpoints = set();
    let service = Balance::adaptive(endpoints.clone());
    assert_eq!(of(&endpoints, "a").reported, None);
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(of(&endpoints, "a").reported, Some(report()));
    assert_eq!(of(&endpoints, "a").in_flight, 1, "the body goes on");
    assert_eq!(response.headers()["endpoint-load-metrics"], SAID);
}

#[tokio::test]
async fn what_answers_say_need_not_be_believed() {
    let endpoints = set();
    let layer = BalanceLayer::new(Strategy::Adaptive).ignore_load_reports();
    let service = layer.layer(endpoints.clone());
    service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(of(&endpoints, "a").reported, None);
    // What is said by hand, or to a probe, is.
    endpoints.report("a", &report());
    assert_eq!(of(&endpoints, "a").reported, Some(report()));
    assert!(!endpoints.report("b", &report()));
}

#[tokio::test]
async fn grpc_says_it_in_its_trailers() {
    // cpu_utilization = 0.5; named_metrics = {"in_flight": 3}
    let message = [
        &[0x09][..],
        &0.5f64.to_le_bytes(),
        &[0x42, 20, 0x0A, 9],
        b"in_flight",
        &[0x11],
        &3f64.to_le_bytes(),
    ]
    .concat();
    let endpoints = Endpoints::default();
    let answers = Answers(move || {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        trailers.insert(
            "endpoint-load-metrics-bin",
            STANDARD.encode(&message).parse().unwrap(),
        );
        Response::new(Steps::new([
            Step::Data("message"),
            Step::Trailers(trailers),
        ]))
    });
    endpoints.insert(Endpoint::new("a", answers));
    let service = BalanceLayer::adaptive()
        .classify(Grpc)
        .layer(endpoints.clone());
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(of(&endpoints, "a").reported, None);
    let body = response.into_body().collect().await.unwrap();
    assert!(
        body.trailers()
            .unwrap()
            .contains_key("endpoint-load-metrics-bin")
    );
    assert_eq!(of(&endpoints, "a").reported, Some(report()));
}

#[tokio::test]
async fn an_answer_speaks_of_the_endpoint_that_gave_it_not_of_its_successor() {
    let endpoints = Endpoints::default();
    let (tell, told) = tokio::sync::oneshot::channel();
    let told = std::sync::Arc::new(tokio::sync::Mutex::new(Some(told)));
    let service = move || {
        let told = told.clone();
        tower::service_fn(move |_: Request<()>| {
            let told = told.clone();
            async move {
                if let Some(told) = told.lock().await.take() {
                    told.await.unwrap();
                }
                Ok::<_, std::convert::Infallible>(says())
            }
        })
    };
    endpoints.insert(Endpoint::new("a", service()));
    let request = Balance::adaptive(endpoints.clone()).oneshot(Request::new(()));
    let request = tokio::spawn(request);
    while of(&endpoints, "a").in_flight == 0 {
        tokio::task::yield_now().await;
    }
    endpoints.insert(Endpoint::new("a", service()));
    tell.send(()).unwrap();
    let response = request.await.unwrap().unwrap();
    let all = endpoints.snapshot();
    let reported: Vec<_> = all.iter().map(|endpoint| endpoint.reported).collect();
    assert_eq!(reported, [Some(report()), None]);
    drop(response);
}

/// Notes which headers it hears.
#[derive(Clone, Default)]
struct Listens(std::sync::Arc<std::sync::Mutex<usize>>);

impl Gate for Listens {
    type Guard = Self;

    fn admit(&self, _: &RequestHead<'_>, _: Instant) -> Admit<Self> {
        Admit::Now(Ok(self.clone()))
    }
}

impl Settle for Listens {
    fn hear(&mut self, headers: &HeaderMap) {
        *self.0.lock().unwrap() += headers.len();
    }

    fn settle(&mut self, _: &End, _: Instant) {}
}

#[tokio::test]
async fn the_gate_of_an_endpoint_hears_the_headers_too() {
    let endpoints = Endpoints::default();
    let gate = Listens::default();
    endpoints.insert(Endpoint::new("a", Answers(says)).gate(gate.clone()));
    let service = Balance::adaptive(endpoints.clone());
    service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(*gate.0.lock().unwrap(), 1);
}

#[test]
fn reading_a_report_allocates_nothing() {
    let forms = [
        SAID,
        r#"JSON {"cpu_utilization": 0.5, "named_metrics": {"in_flight": 3}}"#,
        "BIN CQAAAAAAAOA/QhQKCWluX2ZsaWdodBEAAAAAAAAIQA==",
    ];
    for said in forms {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", "text/plain".parse().unwrap());
        headers.insert("endpoint-load-metrics", said.parse().unwrap());
        let before = CountingAllocator::count();
        let heard = LoadReport::from_headers(&headers);
        assert_eq!(CountingAllocator::count() - before, 0, "{said}");
        assert_eq!(heard, Some(report()), "{said}");
    }
}
