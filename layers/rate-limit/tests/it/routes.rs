use axum::{Router, body::Body, extract::State, routing::get};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use palisade_core::{key, respond::LayerExt};
use palisade_rate_limit::{Quota, RateLimitLayer};
use tower::ServiceExt;

fn app(layer: RateLimitLayer) -> Router {
    let hello = async |State(word): State<&'static str>| word;
    Router::new()
        .route("/a", get(hello))
        .route("/b", get(hello))
        .route("/v1/c", get(hello))
        .layer(layer.responding())
        .with_state("hello")
}

async fn status(app: &Router, path: &str) -> StatusCode {
    let request = Request::get(path).body(Body::empty()).unwrap();
    app.clone().oneshot(request).await.unwrap().status()
}

#[tokio::test(start_paused = true)]
async fn all_routes_share_one_limit_though_axum_clones_the_layer() {
    let app = app(RateLimitLayer::new(Quota::per_minute(5)));
    let mut passed = 0;
    for path in [
        "/a", "/b", "/v1/c", "/a", "/b", "/v1/c", "/a", "/b", "/v1/c",
    ] {
        match status(&app, path).await {
            StatusCode::OK => passed += 1,
            status => assert_eq!(status, StatusCode::TOO_MANY_REQUESTS),
        }
    }
    assert_eq!(passed, 5);
}

#[tokio::test(start_paused = true)]
async fn the_path_as_a_key_gives_each_route_its_own() {
    let app = app(RateLimitLayer::new(Quota::per_minute(1)).key(key::path()));
    for path in ["/a", "/b", "/v1/c"] {
        assert_eq!(status(&app, path).await, StatusCode::OK);
        assert_eq!(status(&app, path).await, StatusCode::TOO_MANY_REQUESTS);
    }
}

#[tokio::test(start_paused = true)]
async fn the_refusal_says_in_the_callers_words_which_rule_and_how_long() {
    let app = app(RateLimitLayer::new(Quota::per_minute(1)));
    assert_eq!(status(&app, "/a").await, StatusCode::OK);
    let request = Request::get("/b").body(Body::empty()).unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    assert_eq!(head.headers["retry-after"], "60");
    assert_eq!(head.headers["content-type"], "application/problem+json");
    assert_eq!(head.headers["ratelimit"], r#""default";r=0;t=60"#);
    assert_eq!(head.headers["ratelimit-policy"], r#""default";q=1;w=60"#);
    let body = body.collect().await.unwrap().to_bytes();
    assert_eq!(
        body,
        r#"{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Too Many Requests","status":429,"detail":"rate limit default is used up for another 60.0s","reason":"rate_limited","violated-policies":["default"]}"#
    );
}
