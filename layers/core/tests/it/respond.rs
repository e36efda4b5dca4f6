//! Refusals in the words that the caller understands.

use std::{
    convert::Infallible,
    task::{Context, Poll},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as _;
use http_body_util::{BodyExt, Empty};
use palisade_core::{
    BoxError,
    gate::GateLayer,
    reject::{Reason, Rejected},
    respond::{LayerExt, RespondLayer},
};
use tower::{Layer, Service, ServiceExt, service_fn};

async fn refusal(request: Request<()>, error: fn() -> BoxError) -> (http::response::Parts, String) {
    let inner = service_fn(move |_: Request<()>| {
        std::future::ready(Err::<Response<Empty<Bytes>>, _>(error()))
    });
    let Ok(response) = RespondLayer::auto().layer(inner).oneshot(request).await;
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (head, String::from_utf8(body.into()).unwrap())
}

fn limited() -> BoxError {
    let error = Rejected::new(Reason::RateLimited, "over 100 % of \"a\"\n");
    let error = error.retry_after(Duration::from_micros(1_500_001));
    error.violates("per_\"user\"".into()).into()
}

#[tokio::test]
async fn a_browser_gets_problem_details_and_a_delay_rounded_up() {
    let (head, body) = refusal(Request::new(()), limited).await;
    assert_eq!(head.status, 429);
    assert_eq!(head.headers["content-type"], "application/problem+json");
    assert_eq!(head.headers["retry-after"], "2");
    assert_eq!(head.headers["retry-after-ms"], "1501");
    assert_eq!(
        body,
        r#"{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Too Many Requests","status":429,"detail":"over 100 % of \"a\"\u000a","reason":"rate_limited","violated-policies":["per_\"user\""]}"#
    );
}

#[tokio::test]
async fn an_openai_client_gets_its_error_object() {
    let request = Request::builder().uri("/v1/chat/completions");
    let (head, body) = refusal(request.body(()).unwrap(), limited).await;
    assert_eq!(head.headers["content-type"], "application/json");
    assert_eq!(
        body,
        r#"{"error":{"message":"over 100 % of \"a\"\u000a","type":"rate_limit_error","param":null,"code":"rate_limited"}}"#
    );
}

#[tokio::test]
async fn a_grpc_client_gets_trailers_only() {
    let request = Request::builder().header("content-type", "application/grpc+proto");
    let (head, body) = refusal(request.body(()).unwrap(), limited).await;
    assert_eq!(head.status, 200);
    assert_eq!(head.headers["grpc-status"], "8");
    assert_eq!(head.headers["grpc-message"], "over 100 %25 of \"a\"%0A");
    assert_eq!(head.headers["grpc-retry-pushback-ms"], "1501");
    assert_eq!(body, "");

    // google.rpc.Status { 8, message, [Any { type_url, RetryInfo { 1 s, 500 001 000 ns } }] }
    let details = STANDARD_NO_PAD
        .decode(&head.headers["grpc-status-details-bin"])
        .unwrap();
    let mut expected = b"\x08\x08\x12\x12over 100 % of \"a\"\n\x1a\x36".to_vec();
    expected.extend(b"\x0a\x28type.googleapis.com/google.rpc.RetryInfo");
    expected.extend(b"\x12\x0a\x0a\x08\x08\x01\x10\xe8\xd1\xb5\xee\x01");
    assert_eq!(
        details.escape_ascii().to_string(),
        expected.escape_ascii().to_string()
    );
}

#[tokio::test]
async fn what_can_never_pass_says_so() {
    let final_error = || Rejected::new(Reason::CostExceedsQuota, "too much").into();
    let (head, _) = refusal(Request::new(()), final_error).await;
    assert_eq!(head.status, 400);
    assert_eq!(head.headers["x-should-retry"], "false");
    assert!(!head.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn the_words_of_a_foreign_error_stay_inside() {
    let foreign = || "connect to 10.0.0.1 refused".into();
    let (head, body) = refusal(Request::new(()), foreign).await;
    assert_eq!(head.status, 502);
    assert!(!body.contains("10.0.0.1"));
}

#[tokio::test]
async fn a_service_that_is_dead_is_not_called() {
    #[derive(Clone)]
    struct Dead;

    impl Service<Request<()>> for Dead {
        type Response = Response<Empty<Bytes>>;
        type Error = BoxError;
        type Future = std::future::Ready<Result<Self::Response, BoxError>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            Poll::Ready(Err("gone".into()))
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            panic!("called without being ready")
        }
    }

    let mut service = GateLayer::new(()).responding().layer(Dead);
    for _ in 0..2 {
        let ready = service.ready().await;
        let Ok(response) = ready.unwrap().call(Request::new(())).await;
        assert_eq!(response.status(), 502);
    }
}

#[tokio::test]
async fn an_answer_passes_as_it_is() {
    let inner = service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(http_body_util::Full::<Bytes>::from("hello")))
    });
    let Ok(response) = RespondLayer::auto()
        .layer(inner)
        .oneshot(Request::new(()))
        .await;
    assert_eq!(response.body().size_hint().exact(), Some(5));
}

#[tokio::test]
async fn who_gave_up_asks_not_to_be_asked_again_and_signs() {
    let error = || {
        let error = Rejected::new(Reason::CircuitOpen, "circuit open");
        let mut error = error.retry_after(Duration::from_secs(1));
        error.give_up();
        let headers = error.headers_mut();
        headers.insert("ratelimit", "\"a\";r=0".parse().unwrap());
        error.into()
    };
    let (head, _) = refusal(Request::new(()), error).await;
    assert_eq!(head.status, 503);
    assert_eq!(head.headers["x-should-retry"], "false");
    assert_eq!(head.headers["ratelimit"], "\"a\";r=0");
    assert!(!head.headers.contains_key("retry-after"));

    let request = Request::builder().header("content-type", "application/grpc");
    let (head, _) = refusal(request.body(()).unwrap(), error).await;
    assert_eq!(head.headers["grpc-retry-pushback-ms"], "-1");
}
