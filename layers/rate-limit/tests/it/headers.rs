use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::Empty;
use palisade_core::{
    BoxError,
    classify::Verdict,
    reject::Rejected,
    respond::LayerExt,
    settle::{End, Settle},
    testing::Answers,
    time::now,
};
use palisade_rate_limit::{Headers, MissingKey, Quota, RateLimit, RateLimitLayer, Rule, Strategy};
use tokio::time::advance;
use tower::{Layer, ServiceExt, service_fn};

use crate::{admit, from, per_user};

fn answer() -> Response<Empty<Bytes>> {
    Response::new(Empty::new())
}

fn fields<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    let values = headers.get_all(name).iter();
    values.map(|value| value.to_str().unwrap()).collect()
}

async fn headers(layer: &RateLimitLayer, request: Request<()>) -> HeaderMap {
    let service = layer.clone().responding().layer(Answers(answer));
    let Ok(response) = service.oneshot(request).await;
    response.headers().clone()
}

#[tokio::test(start_paused = true)]
async fn answers_name_all_policies_and_how_they_stand_most_constrained_first() {
    let layer = RateLimitLayer::rules([
        Rule::new("global", Quota::per_minute(1000)),
        Rule::new(
            "short",
            Quota::new(20, Duration::from_millis(1500)).unwrap(),
        )
        .missing_key(MissingKey::Skip),
        per_user(Quota::per_minute(100).burst(150)).missing_key(MissingKey::Skip),
        Rule::new("daily", Quota::per_day(10)).strategy(Strategy::FixedWindow),
    ])
    .unwrap();
    let policy = r#""global";q=1000;w=60, "short";q=20, "per_user";q=100;w=60;palisade-burst=150, "daily";q=10;w=86400"#;

    let of_alice = headers(&layer, from("alice")).await;
    assert_eq!(fields(&of_alice, "ratelimit-policy"), [policy]);
    assert_eq!(
        fields(&of_alice, "ratelimit"),
        [r#""daily";r=9;t=86400, "short";r=19;t=2, "per_user";r=149;t=90, "global";r=999;t=60"#]
    );
    // Only rules that the request took from.
    let of_nobody = headers(&layer, Request::new(())).await;
    assert_eq!(fields(&of_nobody, "ratelimit-policy"), [policy]);
    assert_eq!(
        fields(&of_nobody, "ratelimit"),
        [r#""daily";r=8;t=86400, "short";r=18;t=2, "global";r=998;t=60"#]
    );
}

#[tokio::test(start_paused = true)]
async fn a_refusal_carries_the_headers_and_no_window_ends_after_retry_after() {
    let layer = RateLimitLayer::rules([
        Rule::new("global", Quota::per_hour(1000)),
        per_user(Quota::per_minute(2)),
        Rule::new("tokens", Quota::per_minute(60)).cost(|_| 15),
    ])
    .unwrap();
    headers(&layer, from("alice")).await;
    headers(&layer, from("alice")).await;
    advance(Duration::from_millis(500)).await;
    let refused = headers(&layer, from("alice")).await;
    assert_eq!(refused["retry-after"], "30");
    assert_eq!(refused["retry-after-ms"], "29500");
    assert_eq!(fields(&refused, "ratelimit-policy").len(), 1);
    assert_eq!(
        fields(&refused, "ratelimit"),
        [r#""per_user";r=0;t=30, "tokens";r=30;t=30, "global";r=998;t=30"#]
    );
}

#[tokio::test(start_paused = true)]
async fn the_effective_window_never_invites_more_than_the_rate() {
    for strategy in [
        Strategy::TokenBucket,
        Strategy::FixedWindow,
        Strategy::SlidingWindow,
    ] {
        let layer =
            RateLimitLayer::rules([Rule::new("a", Quota::per_minute(60)).strategy(strategy)])
                .unwrap();
        // A second before the turn nearly all is left; 59 a second would be the answer of a clock.
        advance(Duration::from_secs(59)).await;
        let told = headers(&layer, Request::new(())).await;
        assert_eq!(
            fields(&told, "ratelimit"),
            [r#""a";r=59;t=59"#],
            "{strategy:?}"
        );
    }
    let layer = RateLimitLayer::rules([Rule::new("a", Quota::per_minute(60))
        .strategy(Strategy::FixedWindow)
        .cost(|_| 50)])
    .unwrap();
    let told = headers(&layer, Request::new(())).await;
    assert_eq!(
        fields(&told, "ratelimit"),
        [r#""a";r=10;t=60"#],
        "no more before the window ends"
    );
}

#[tokio::test(start_paused = true)]
async fn the_headers_tell_how_it_stands_when_the_answer_comes() {
    let layer = RateLimitLayer::new(Quota::per_minute(60));
    let slow = layer.layer(service_fn(async |_: Request<()>| {
        tokio::time::sleep(Duration::from_secs(10)).await;
        Ok::<_, BoxError>(answer())
    }));
    let response = slow.oneshot(Request::new(())).await.unwrap();
    assert_eq!(response.headers()["ratelimit"], r#""default";r=60;t=60"#);
}

#[tokio::test(start_paused = true)]
async fn limits_in_a_row_add_to_each_others_lists() {
    let outer = RateLimitLayer::rules([Rule::new("outer", Quota::per_minute(5))]).unwrap();
    let inner = RateLimitLayer::rules([Rule::new("inner", Quota::per_minute(1))]).unwrap();
    let both = || outer.layer(inner.layer(Answers(answer)));
    let response = both().oneshot(Request::new(())).await.unwrap();
    assert_eq!(
        fields(response.headers(), "ratelimit"),
        [r#""inner";r=0;t=60"#, r#""outer";r=4;t=48"#]
    );
    let error = both().oneshot(Request::new(())).await.unwrap_err();
    let refused = Rejected::find(&*error).unwrap();
    let told = fields(refused.headers().unwrap(), "ratelimit");
    assert_eq!(told, [r#""inner";r=0;t=60"#, r#""outer";r=3;t=36"#]);
}

#[tokio::test(start_paused = true)]
async fn who_wants_no_headers_gets_none() {
    let layer = RateLimitLayer::new(Quota::per_minute(1)).headers(Headers::Off);
    for _ in 0..2 {
        let told = headers(&layer, Request::new(())).await;
        assert!(!told.contains_key("ratelimit") && !told.contains_key("ratelimit-policy"));
    }
}

#[test]
fn what_was_refused_for_good_still_names_the_policy() {
    let deny = per_user(Quota::per_minute(5)).missing_key(MissingKey::Deny);
    let dear = Rule::new("dear", Quota::per_minute(5)).cost(|_| 6);
    for (rule, stands) in [(deny, None), (dear, Some(r#""dear";r=5;t=60"#))] {
        let limit = RateLimit::rules([rule]).unwrap();
        let refused = admit(&limit, &Request::new(()), now()).unwrap_err();
        let told = refused.headers().unwrap();
        assert_eq!(fields(told, "ratelimit-policy").len(), 1);
        assert_eq!(fields(told, "ratelimit").first().copied(), stands);
    }
}

#[test]
fn a_key_without_a_seat_is_told_of_the_quota_that_it_shares() {
    let limit = RateLimit::rules([per_user(Quota::per_day(10)).capacity(1)]).unwrap();
    let mut told = |user| {
        let mut headers = HeaderMap::new();
        let mut guard = admit(&limit, &from(user), now()).unwrap();
        guard.decorate(&mut headers);
        let end = End::new(Verdict::Success);
        guard.finish(&end, now());
        fields(&headers, "ratelimit")
            .join("")
            .split(';')
            .nth(1)
            .map(str::to_owned)
    };
    let told = ["alice", "alice", "bob", "carol", "alice"].map(&mut told);
    assert_eq!(
        told,
        ["r=9", "r=8", "r=9", "r=8", "r=7"].map(|left| Some(left.to_owned()))
    );
}
