//! What a request allocates that nothing stands in the way of.

use bytes::Bytes;
use http::Response;
use http_body_util::Empty;
use palisade_core::testing::{Answers, CountingAllocator};
use palisade_rate_limit::{Adaptive, Headers, Mode, Quota, RateLimitLayer, Rule, Strategy};
use tower::{Layer, Service};

use crate::{from, per_user};

/// From the call to the end of the body, of one request and of the next one.
async fn allocations(layer: &RateLimitLayer) -> [(u64, bool); 2] {
    let mut service = layer.layer(Answers(|| Response::new(Empty::<Bytes>::new())));
    // Whoever comes first gets a seat.
    drop(service.call(from("alice")).await);
    let mut counted = [(0, false); 2];
    for counted in &mut counted {
        let request = from("alice");
        let before = CountingAllocator::count();
        let answer = service.call(request).await;
        let passed = answer.is_ok();
        drop(answer);
        *counted = (CountingAllocator::count() - before, passed);
    }
    counted
}

fn layer(rule: Rule) -> RateLimitLayer {
    RateLimitLayer::rules([rule]).unwrap().headers(Headers::Off)
}

#[tokio::test]
async fn each_way_to_count_allocates_nothing_on_the_quiet_path() {
    let quota = Quota::per_day(100);
    let rules = [
        per_user(quota),
        per_user(quota).strategy(Strategy::FixedWindow),
        per_user(quota).strategy(Strategy::SlidingWindow),
        per_user(quota).adaptive(Adaptive::new()),
        Rule::in_flight("places", 5).key(palisade_core::key::header("x-user-id")),
        per_user(quota).mode(Mode::Shadow),
        per_user(Quota::per_day(0)).mode(Mode::Shadow),
        per_user(quota).drain_on_overload(),
        per_user(quota).warm_up(std::time::Duration::from_secs(1)),
        per_user(quota).exception("alice", Quota::per_day(50)),
        per_user(quota).tier("all", Quota::per_day(50), |_| true),
    ];
    for rule in rules {
        let layer = layer(rule.clone());
        assert_eq!(allocations(&layer).await, [(0, true); 2], "{rule:?}");
        // Ready to wait, and nobody does.
        let layer = layer.wait_up_to(std::time::Duration::from_secs(1), 10);
        assert_eq!(allocations(&layer).await, [(0, true); 2], "{rule:?}");
    }
}

#[tokio::test]
async fn a_log_allocates_only_when_it_grows() {
    let layer = layer(per_user(Quota::per_day(1000)).strategy(Strategy::SlidingLog));
    let mut grown = 0;
    for _ in 0..300 {
        for (allocated, passed) in allocations(&layer).await {
            assert!(passed);
            grown += allocated;
        }
    }
    // By doubling, from the first few entries to 1024.
    assert!(grown <= 9, "{grown}");
}

#[tokio::test]
async fn a_refusal_allocates_itself_and_its_source_however_it_is_counted() {
    for rule in [
        per_user(Quota::per_day(1)).strategy(Strategy::SlidingLog),
        per_user(Quota::per_day(1)).adaptive(Adaptive::new().most(1).unwrap()),
        per_user(Quota::per_day(9)).exception("alice", Quota::per_day(1)),
        Rule::in_flight("places", 0),
    ] {
        let layer = layer(rule.clone());
        assert_eq!(allocations(&layer).await, [(2, false); 2], "{rule:?}");
    }
}
