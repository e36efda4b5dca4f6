use std::{
    convert::Infallible,
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use palisade_core::{
    BoxError,
    gate::{Gate, Outlook, gates},
    reject::{Reason, Rejected},
    testing::{Answers, Log, exchange},
    time::now,
};
use palisade_rate_limit::{
    CostExceedsQuota, Headers, KeyMissing, MissingKey, Quota, RateLimit, RateLimitLayer,
    RateLimited, Rule,
};
use tokio::time::advance;
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::{STRATEGIES, admit, from, limited, per_user};

type Answer = Result<Response<Empty<Bytes>>, BoxError>;

fn hello() -> Response<Empty<Bytes>> {
    Response::new(Empty::new())
}

fn unreachable() -> BoxError {
    std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into()
}

#[tokio::test(start_paused = true)]
async fn what_is_over_the_quota_never_reaches_the_service() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let service = RateLimitLayer::new(Quota::per_second(3)).layer(Answers(move || {
        counted.fetch_add(1, SeqCst);
        hello()
    }));
    for _ in 0..3 {
        exchange(service.clone()).await.unwrap();
    }
    let error = exchange(service.clone()).await.unwrap_err();
    let rejected = Rejected::find(&*error).unwrap();
    assert_eq!(rejected.reason(), Reason::RateLimited);
    assert_eq!(rejected.delay(), Some(limited(rejected).retry_after));
    assert_eq!(calls.load(SeqCst), 3);

    advance(limited(rejected).retry_after).await;
    exchange(service).await.unwrap();
    assert_eq!(calls.load(SeqCst), 4);
}

#[test]
fn the_wait_named_is_exact_to_the_nanosecond_with_every_strategy() {
    for strategy in STRATEGIES {
        for (limit, into) in [(1, 0), (7, 300), (50, 999_999_937)] {
            let rule = Rule::new("exact", Quota::per_second(limit)).strategy(strategy);
            let limit = RateLimit::rules([rule]).unwrap();
            let at = now() + Duration::from_nanos(into);
            let refused = loop {
                if let Err(refused) = admit(&limit, &Request::new(()), at) {
                    break refused;
                }
            };
            let wait = limited(&refused).retry_after;
            let early = at + wait - Duration::from_nanos(1);
            let again = admit(&limit, &Request::new(()), early).unwrap_err();
            assert_eq!(
                limited(&again).retry_after,
                Duration::from_nanos(1),
                "{strategy:?}"
            );
            assert!(
                admit(&limit, &Request::new(()), at + wait).is_ok(),
                "{strategy:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn readiness_is_that_of_the_service_whatever_is_left_of_the_quota() {
    let mut service = RateLimitLayer::new(Quota::per_second(0)).layer(Answers(hello));
    for _ in 0..2 {
        let ready = ServiceExt::<Request<()>>::ready(&mut service)
            .await
            .unwrap();
        assert!(ready.call(Request::new(())).await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn what_never_reached_a_service_goes_back_to_windows_and_not_to_buckets() {
    for (strategy, passes) in STRATEGIES.into_iter().zip([false, true, true]) {
        let rule = Rule::new("one", Quota::per_second(1)).strategy(strategy);
        let layer = RateLimitLayer::rules([rule]).unwrap();
        let down = layer.layer(service_fn(
            async |_: Request<()>| Answer::Err(unreachable()),
        ));
        down.oneshot(Request::new(())).await.unwrap_err();
        let up = layer.layer(Answers(hello));
        assert_eq!(exchange(up).await.is_ok(), passes, "{strategy:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_layer_further_in_refused_goes_back() {
    let rule = |name| Rule::new(name, Quota::per_minute(2)).strategy(STRATEGIES[1]);
    let outer = RateLimit::rules([rule("outer")]).unwrap();
    let inner = RateLimit::rules([rule("inner").cost(|_| 2)]).unwrap();
    for service in [
        gates((outer.clone(), inner.clone())).layer(Answers(hello)),
        gates((outer.clone(), inner.clone())).layer(Answers(hello)),
    ] {
        let _ = exchange(service).await;
    }
    let left = |limit: &RateLimit, rule| limit.handle().peek(rule, &"".into()).unwrap().remaining;
    assert_eq!((left(&outer, "outer"), left(&inner, "inner")), (1, 0));
    assert_eq!(inner.handle().snapshot().rules[0].refused, 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_an_error_and_a_caller_that_leaves_have_used_what_they_took() {
    let rule = Rule::new("five", Quota::per_minute(5)).strategy(STRATEGIES[1]);
    let layer = RateLimitLayer::rules([rule]).unwrap();
    let failing = layer.layer(Answers(|| {
        let mut response = hello();
        *response.status_mut() = http::StatusCode::BAD_GATEWAY;
        response
    }));
    exchange(failing).await.unwrap();
    let hanging = layer.layer(service_fn(|_: Request<()>| {
        std::future::pending::<Answer>()
    }));
    drop(hanging.oneshot(Request::new(())));
    let mut called = layer.layer(service_fn(|_: Request<()>| {
        std::future::pending::<Answer>()
    }));
    drop(called.ready().await.unwrap().call(Request::new(())));
    assert_eq!(
        layer.handle().peek("five", &"".into()).unwrap().remaining,
        3
    );
}

#[tokio::test(start_paused = true)]
async fn what_goes_back_late_is_not_added_to_a_later_window() {
    let rule = Rule::new("one", Quota::per_second(1)).strategy(STRATEGIES[1]);
    let layer = RateLimitLayer::rules([rule]).unwrap();
    let mut slow = layer.layer(service_fn(|_: Request<()>| {
        // From the call on, not from the first poll.
        let second = tokio::time::sleep(Duration::from_secs(1));
        async {
            second.await;
            Answer::Err(unreachable())
        }
    }));
    let late = slow.ready().await.unwrap().call(Request::new(()));
    advance(Duration::from_secs(1)).await;
    exchange(layer.layer(Answers(hello))).await.unwrap();
    late.await.unwrap_err();
    exchange(layer.layer(Answers(hello))).await.unwrap_err();
}

#[test]
fn a_cost_above_what_a_rule_holds_is_refused_for_good_and_takes_nothing() {
    for strategy in STRATEGIES {
        let limit = RateLimit::rules([
            Rule::new("requests", Quota::per_minute(10)),
            Rule::new("tokens", Quota::per_minute(1000))
                .strategy(strategy)
                .cost(|head| {
                    let tokens = head.headers.get("x-tokens").unwrap();
                    tokens.to_str().unwrap().parse().unwrap()
                }),
        ])
        .unwrap();
        let tokens = |tokens| {
            Request::builder()
                .header("x-tokens", tokens)
                .body(())
                .unwrap()
        };
        let refused = admit(&limit, &tokens("1001"), now()).unwrap_err();
        assert_eq!(
            (refused.reason(), refused.delay()),
            (Reason::CostExceedsQuota, None)
        );
        let error: &CostExceedsQuota = refused.source().unwrap().downcast_ref().unwrap();
        assert_eq!(
            (&*error.rule, error.cost, error.holds),
            ("tokens", 1001, 1000)
        );
        assert_eq!(
            error.to_string(),
            "a cost of 1001 exceeds the 1000 that rate limit tokens holds at most"
        );
        let at = now();
        let _held = admit(&limit, &tokens("1000"), at).unwrap();
        assert!(admit(&limit, &tokens("1"), at).is_err());
        assert!(
            admit(&limit, &tokens("0"), at).is_ok(),
            "takes nothing of what is used up"
        );
        let left = limit.handle().peek_all(&(&tokens("1")).into());
        assert_eq!(left[0].remaining, 8);
    }
}

#[test]
fn a_window_of_a_day_is_exhausted_and_not_limited() {
    for (strategy, quota, reason) in [
        (STRATEGIES[0], Quota::per_day(1), Reason::RateLimited),
        (STRATEGIES[1], Quota::per_day(1), Reason::QuotaExhausted),
        (STRATEGIES[2], Quota::per_day(1), Reason::QuotaExhausted),
        (STRATEGIES[1], Quota::per_hour(1), Reason::RateLimited),
    ] {
        let limit = RateLimit::rules([Rule::new("a", quota).strategy(strategy)]).unwrap();
        let at = now();
        admit(&limit, &Request::new(()), at).unwrap();
        let refused = admit(&limit, &Request::new(()), at).unwrap_err();
        assert_eq!(refused.reason(), reason);
    }
}

#[test]
fn a_request_without_a_key_shares_skips_or_is_denied() {
    let limit = |missing| {
        let rule = per_user(Quota::per_minute(1)).missing_key(missing);
        RateLimit::rules([rule]).unwrap().headers(Headers::Off)
    };
    let (nobody, at) = (Request::new(()), now());

    let shared = limit(MissingKey::Shared);
    assert!(admit(&shared, &nobody, at).is_ok());
    assert!(admit(&shared, &nobody, at).is_err());
    assert!(admit(&shared, &from("alice"), at).is_ok());

    let skip = limit(MissingKey::Skip);
    assert!((0..9).all(|_| admit(&skip, &nobody, at).is_ok()));
    assert!(admit(&skip, &from("alice"), at).is_ok());
    assert!(admit(&skip, &from("alice"), at).is_err());

    let deny = limit(MissingKey::Deny);
    let refused = admit(&deny, &nobody, at).unwrap_err();
    assert!(refused.source().unwrap().is::<KeyMissing>());
    assert!(refused.is_final() && refused.delay().is_none());
    assert!(admit(&deny, &from("alice"), at).is_ok());
}

#[test]
fn a_balancer_is_not_asked_to_overrule_a_quota_that_is_used_up() {
    // What a gate says of the future may be overruled when too many endpoints are out; what it admits may not.
    let limit = RateLimit::new(Quota::per_second(1));
    let at = now();
    admit(&limit, &from("alice"), at).unwrap();
    assert_eq!(limit.outlook(at), Outlook::Admits);
    admit(&limit, &from("alice"), at).unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn clones_share_their_counts_and_a_setter_begins_new_ones() {
    let layer = RateLimitLayer::new(Quota::per_minute(1)).classify(palisade_core::classify::Grpc);
    let fused = gates((layer.gate().clone(), ()));
    exchange(layer.clone().layer(Answers(hello))).await.unwrap();
    exchange(fused.layer(Answers(hello))).await.unwrap_err();
    let other = layer.named("other");
    exchange(other.layer(Answers(hello))).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_limit_without_rules_lets_all_through_and_says_nothing() {
    let layer = RateLimitLayer::rules([]).unwrap();
    let service = layer.layer(Answers(hello));
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert!(response.headers().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_key_that_panics_wedges_nothing() {
    let rule = Rule::new("panics", Quota::per_minute(2)).cost(|head| {
        assert!(head.headers.is_empty(), "on purpose");
        1
    });
    let layer = RateLimitLayer::rules([per_user(Quota::per_minute(2)), rule]).unwrap();
    let mut service = layer.layer(service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(hello())
    }));
    let mut call = || {
        let called = std::panic::AssertUnwindSafe(|| drop(service.call(from("alice"))));
        std::panic::catch_unwind(called)
    };
    assert!(call().is_err() && call().is_err() && call().is_err());
    assert_eq!(
        layer
            .handle()
            .peek("per_user", &"alice".into())
            .unwrap()
            .remaining,
        2
    );
    exchange(service).await.unwrap();
}

#[test]
fn errors_say_in_one_line_which_rule_it_was() {
    let rule: Arc<str> = "per_user".into();
    let retry_after = Duration::from_millis(1500);
    let limited = |cost, remaining| RateLimited {
        rule: rule.clone(),
        cost,
        limit: 100,
        remaining,
        retry_after,
    };
    let errors: [Box<dyn Error>; 3] = [
        Box::new(limited(1, 0)),
        Box::new(limited(30, 20)),
        Box::new(KeyMissing { rule: rule.clone() }),
    ];
    assert_eq!(
        errors.map(|error| error.to_string()),
        [
            "rate limit per_user is used up for another 1.5s",
            "rate limit per_user has 20 of 100 left, too few for a cost of 30 for another 1.5s",
            "the request has no key for rate limit per_user"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_gate_before_it_hears_the_refusal() {
    let log = Log::default();
    let layer = gates((log.gate("outer"), RateLimit::new(Quota::per_minute(1))));
    exchange(layer.layer(Answers(hello))).await.unwrap();
    exchange(layer.layer(Answers(hello))).await.unwrap_err();
    assert_eq!(
        log.take(),
        [
            "outer admitted",
            "outer Success after 0s",
            "outer released",
            "outer admitted",
            "outer Refused(RateLimited) after 0s",
            "outer released"
        ]
    );
}
