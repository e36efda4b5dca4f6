use std::{
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
    classify::Grpc,
    gate::{Gate, Outlook, gates},
    key::{self, Key},
    testing::{Answers, CountingAllocator, Log},
    time::now,
};
use palisade_rate_limit::{QuotaMirror, QuotaMirrorLayer};
use tokio::time::advance;
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::{admit, answer, to};

const NOTHING_LEFT: &[(&str, &str)] = &[("ratelimit", r#""a";r=0;t=60"#)];

fn exhausted() -> Response<Empty<Bytes>> {
    let answer = Response::builder().header("ratelimit", r#""a";r=0;t=1"#);
    answer.body(Empty::new()).unwrap()
}

fn spend(mirror: &QuotaMirror, request: &Request<()>) {
    answer(admit(mirror, request).unwrap(), NOTHING_LEFT);
}

#[tokio::test(start_paused = true)]
async fn each_host_and_port_has_a_quota_of_its_own() {
    let mirror = QuotaMirror::new();
    spend(&mirror, &to("user:secret@API.example.com:8080"));
    for same in ["api.example.com:8080", "Api.example.com:8080"] {
        admit(&mirror, &to(same)).unwrap_err();
    }
    let mut by_header = Request::get("/v1").body(()).unwrap();
    by_header
        .headers_mut()
        .insert("host", "api.example.com:8080".parse().unwrap());
    admit(&mirror, &by_header).unwrap_err();
    for other in ["api.example.com", "example.com:8080"] {
        admit(&mirror, &to(other)).unwrap();
    }
    assert!(
        mirror
            .handle()
            .snapshot(&Key::from("api.example.com:8080"))
            .is_some()
    );
    assert!(mirror.handle().snapshot(&Key::from("nobody")).is_none());
    // Where a request does not say, all share one.
    assert!(mirror.handle().snapshot_keyless().is_none());
    spend(&mirror, &Request::get("/v1").body(()).unwrap());
    admit(&mirror, &Request::get("/v2").body(()).unwrap()).unwrap_err();
    assert_eq!(
        (
            mirror.handle().keys(),
            mirror.handle().snapshot_keyless().unwrap().quotas.len()
        ),
        (4, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_key_can_be_whatever_a_service_counts_by() {
    let mirror = QuotaMirror::new().key(key::bearer());
    let with = |token: &str| {
        Request::builder()
            .header("authorization", format!("Bearer {token}"))
            .body(())
            .unwrap()
    };
    spend(&mirror, &with("a"));
    admit(&mirror, &with("a")).unwrap_err();
    admit(&mirror, &with("b")).unwrap();
}

#[tokio::test(start_paused = true)]
async fn tokens_are_held_against_what_is_left_of_them() {
    let mirror = QuotaMirror::new().wait_up_to(Duration::ZERO).cost(|head| {
        let tokens = head.headers.get("x-tokens");
        tokens.map_or(0, |tokens| tokens.to_str().unwrap().parse().unwrap())
    });
    let asks = |tokens| {
        Request::get("https://api")
            .header("x-tokens", tokens)
            .body(())
            .unwrap()
    };
    answer(
        admit(&mirror, &asks(0)).unwrap(),
        &[
            ("x-ratelimit-limit-tokens", "1000"),
            ("x-ratelimit-remaining-tokens", "600"),
            ("x-ratelimit-reset-tokens", "40s"),
        ],
    );
    std::mem::forget(admit(&mirror, &asks(300)).unwrap());
    let refused = admit(&mirror, &asks(400)).unwrap_err();
    assert_eq!(refused.policy(), Some("x-ratelimit-tokens"));
    // Ten come back each second.
    assert_eq!(refused.delay(), Some(Duration::from_secs(10)));
    admit(&mirror, &asks(300)).unwrap();
    admit(&mirror, &asks(0)).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_keys_is_bounded_and_loses_nothing_that_is_known() {
    let mirror = QuotaMirror::new().capacity(10);
    let host = |nth| to(&format!("host{nth}"));
    (0..10).for_each(|nth| spend(&mirror, &host(nth)));
    for nth in 10..1000 {
        // Neither paced nor remembered.
        spend(&mirror, &host(nth));
        admit(&mirror, &host(nth)).unwrap();
    }
    assert_eq!(mirror.handle().keys(), 10);
    (0..10).for_each(|nth| assert!(admit(&mirror, &host(nth)).is_err()));
    // A minute after the reset nothing is lost with what was known.
    advance(Duration::from_secs(121)).await;
    spend(&mirror, &host(11));
    admit(&mirror, &host(11)).unwrap_err();
    assert_eq!(mirror.handle().keys(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_is_sent_with_the_service_that_was_ready() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let mirror = QuotaMirrorLayer::new().wait_up_to(Duration::from_secs(3));
    let mut service = mirror.layer(service_fn(move |_: Request<()>| {
        counted.fetch_add(1, SeqCst);
        async { Ok::<_, BoxError>(exhausted()) }
    }));
    service
        .ready()
        .await
        .unwrap()
        .call(to("api"))
        .await
        .unwrap();
    // The queue gets its first place.
    drop(service.ready().await.unwrap().call(to("api")));
    let (request, ready) = (to("api"), service.ready().await.unwrap());
    let before = CountingAllocator::count();
    let waits = ready.call(request);
    let waiting = CountingAllocator::count() - before;
    assert_eq!(waiting, 2, "the wait, and the request with its service");
    assert_eq!(calls.load(SeqCst), 1);
    let began = now();
    waits.await.unwrap();
    assert_eq!(((now() - began).as_secs(), calls.load(SeqCst)), (1, 2));
    // Dropped while it waits: never sent, and nobody behind it is kept.
    drop(service.ready().await.unwrap().call(to("api")));
    let snapshot = mirror.handle().snapshot(&"api".into()).unwrap();
    assert_eq!(
        (snapshot.waiting, snapshot.in_flight, calls.load(SeqCst)),
        (0, 0, 2)
    );
}

#[tokio::test(start_paused = true)]
async fn clones_share_what_they_know_and_a_setter_begins_anew() {
    let layer = QuotaMirrorLayer::new().classify(Grpc);
    layer
        .clone()
        .layer(Answers(exhausted))
        .oneshot(to("api"))
        .await
        .unwrap();
    assert_eq!(layer.handle().keys(), 1);
    assert_eq!(
        gates((layer.gate().clone(), ())).gate().0.handle().keys(),
        1
    );
    assert_eq!(layer.clone().named("other").handle().keys(), 0);
    assert_eq!(layer.gate().outlook(now()), Outlook::Admits);
    assert!(format!("{layer:?}").contains("quota_mirror"));
}

#[tokio::test(start_paused = true)]
async fn a_gate_before_it_waits_with_it_and_hears_how_it_ends() {
    let log = Log::default();
    let layer = gates((log.gate("outer"), QuotaMirror::new(), log.gate("inner")));
    let service = layer.layer(Answers(exhausted));
    service.clone().oneshot(to("api")).await.unwrap();
    log.take();
    let waits = tokio::spawn(service.clone().oneshot(to("api")));
    tokio::task::yield_now().await;
    assert_eq!(log.take(), ["outer admitted"]);
    waits.await.unwrap().unwrap();
    assert_eq!(log.take()[0], "inner admitted");
}

#[tokio::test(start_paused = true)]
async fn a_cost_that_panics_wedges_nothing() {
    let mirror = QuotaMirror::new().cost(|head| {
        assert!(head.headers.is_empty(), "on purpose");
        1
    });
    let mut bad = to("api");
    bad.headers_mut().insert("x-bad", 1.into());
    for _ in 0..2 {
        let admitted = std::panic::AssertUnwindSafe(|| drop(admit(&mirror, &bad)));
        assert!(std::panic::catch_unwind(admitted).is_err());
    }
    spend(&mirror, &to("api"));
    assert_eq!(
        mirror.handle().snapshot(&"api".into()).unwrap().in_flight,
        0
    );
}

#[tokio::test]
async fn threads_that_share_what_is_left_send_exactly_that() {
    let mirror = QuotaMirror::new().wait_up_to(Duration::ZERO);
    let told = [
        ("ratelimit-policy", r#""a";q=1000;w=3600"#),
        ("ratelimit", r#""a";r=900;t=3600"#),
    ];
    answer(admit(&mirror, &to("api")).unwrap(), &told);
    let passed = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1000 {
                    if let Ok(sent) = admit(&mirror, &to("api")) {
                        passed.fetch_add(1, SeqCst);
                        std::mem::forget(sent);
                    }
                }
            });
        }
    });
    // From 200 on they are spent evenly over the hour.
    assert_eq!(passed.load(SeqCst), 700);
}
