//! Refusals in the words that the caller understands.

use std::{
    convert::Infallible,
    io,
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
    respond::{LayerExt, RespondLayer, answer},
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

    // google.rpc.Status { 8, message, [Any { type_url, QuotaFailure { Violation { description, quota_id } } },
    // Any { type_url, RetryInfo { 1 s, 500 001 000 ns } }] }
    let details = STANDARD_NO_PAD
        .decode(&head.headers["grpc-status-details-bin"])
        .unwrap();
    let mut expected = b"\x08\x08\x12\x12over 100 % of \"a\"\n".to_vec();
    expected.extend(b"\x1a\x51\x0a\x2btype.googleapis.com/google.rpc.QuotaFailure");
    expected.extend(b"\x12\x22\x0a\x20\x12\x12over 100 % of \"a\"\n\x2a\x0aper_\"user\"");
    expected.extend(b"\x1a\x36");
    expected.extend(b"\x0a\x28type.googleapis.com/google.rpc.RetryInfo");
    expected.extend(b"\x12\x0a\x0a\x08\x08\x01\x10\xe8\xd1\xb5\xee\x01");
    assert_eq!(
        details.escape_ascii().to_string(),
        expected.escape_ascii().to_string()
    );
}

#[tokio::test]
async fn every_reason_of_a_rate_limit_is_told_alike_in_all_three_languages() {
    const TYPES: &str = "https://iana.org/assignments/http-problem-types#";

    let delay = Some(Duration::from_secs(7));
    // The reason, its delay, HTTP's and gRPC's status, the problem type, and whether a policy was violated.
    for (reason, delay, http, grpc, kind, violated) in [
        (Reason::RateLimited, delay, 429, "8", "quota-exceeded", true),
        (Reason::RateLimited, None, 429, "8", "quota-exceeded", true),
        (
            Reason::QuotaExhausted,
            delay,
            429,
            "8",
            "quota-exceeded",
            true,
        ),
        (Reason::CostExceedsQuota, None, 400, "3", "", true),
        (
            Reason::StoreUnavailable,
            delay,
            503,
            "14",
            "temporary-reduced-capacity",
            false,
        ),
    ] {
        let rejected = Rejected::new(reason, "no").violates("per_user".into());
        let rejected = match delay {
            Some(delay) => rejected.retry_after(delay),
            None => rejected,
        };
        let answer = |path: &str, content: &str| {
            let request = Request::builder().uri(path).header("content-type", content);
            answer(&(&request.body(()).unwrap()).into(), &rejected)
        };

        let problem = answer("/", "application/json");
        assert_eq!(problem.status(), http, "{reason:?}");
        let retry_after = problem.headers().get("retry-after").cloned();
        assert_eq!(retry_after.is_some(), delay.is_some(), "{reason:?}");
        let body = problem.into_body().collect().await.unwrap().to_bytes();
        let body = String::from_utf8(body.into()).unwrap();
        let kind = format!(r#""type":"{TYPES}{kind}""#);
        assert_eq!(
            body.contains(&kind),
            reason != Reason::CostExceedsQuota,
            "{body}"
        );
        let policies = r#""violated-policies":["per_user"]"#;
        assert_eq!(body.contains(policies), violated, "{body}");

        let openai = answer("/v1/models", "application/json");
        assert_eq!(openai.status(), http, "{reason:?}");
        assert_eq!(openai.headers().get("retry-after").cloned(), retry_after);

        let trailers = answer("/", "application/grpc");
        let headers = trailers.headers();
        assert_eq!(headers["grpc-status"], grpc, "{reason:?}");
        let details = headers.get("grpc-status-details-bin");
        let details = details.map(|details| STANDARD_NO_PAD.decode(details).unwrap());
        let details = details.unwrap_or_default();
        let has = |text: &str| {
            details
                .windows(text.len())
                .any(|part| part == text.as_bytes())
        };
        assert_eq!(has("google.rpc.RetryInfo"), delay.is_some(), "{reason:?}");
        assert_eq!(has("google.rpc.QuotaFailure"), violated, "{reason:?}");
        assert_eq!(has("per_user"), violated, "{reason:?}");
    }
}

#[tokio::test]
async fn a_delay_is_not_told_to_a_grpc_client_that_should_not_come_again() {
    let mut rejected = Rejected::new(Reason::RateLimited, "no").retry_after(Duration::from_secs(7));
    rejected.give_up();
    let request = Request::builder().header("content-type", "application/grpc");
    let answer = answer(&(&request.body(()).unwrap()).into(), &rejected);
    assert_eq!(answer.headers()["grpc-retry-pushback-ms"], "-1");
    assert!(!answer.headers().contains_key("grpc-status-details-bin"));
}

#[tokio::test]
async fn a_delay_for_ever_is_a_duration_that_protobuf_knows() {
    let rejected = Rejected::new(Reason::RateLimited, "no").retry_after(Duration::MAX);
    let request = Request::builder().header("content-type", "application/grpc");
    let answer = answer(&(&request.body(()).unwrap()).into(), &rejected);
    let details = &answer.headers()["grpc-status-details-bin"];
    let details = STANDARD_NO_PAD.decode(details).unwrap();
    // 315 576 000 000 s, 999 999 999 ns.
    let duration = b"\x08\x80\xbc\xae\xce\x97\x09\x10\xff\x93\xeb\xdc\x03";
    assert!(details.ends_with(duration), "{}", details.escape_ascii());
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
async fn a_timeout_of_a_client_is_one_in_the_answer_too() {
    let late = || io::Error::new(io::ErrorKind::TimedOut, "10.0.0.1 is slow").into();
    let (head, body) = refusal(Request::new(()), late).await;
    assert_eq!(head.status, 504);
    assert!(
        body.contains("no answer in time") && !body.contains("10.0.0.1"),
        "{body}"
    );
    let grpc = Request::builder().header("content-type", "application/grpc");
    let (head, _) = refusal(grpc.body(()).unwrap(), late).await;
    assert_eq!(head.headers["grpc-status"], "4");
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
