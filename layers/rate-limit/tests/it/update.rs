//! Quotas that change while requests come in.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    thread,
    time::Duration,
};

use bytes::Bytes;
use http::Response;
use http_body_util::Empty;
use palisade_core::{key, testing::Answers, time::now};
use palisade_rate_limit::{
    Headers, Quota, QuotaError, RateLimit, RateLimitLayer, Rule, RuleError, Strategy,
};
use tokio::time::advance;
use tower::{Layer, ServiceExt};

use crate::{STRATEGIES, admit, from, per_user};

const ALL: [Strategy; 4] = [
    Strategy::TokenBucket,
    Strategy::FixedWindow,
    Strategy::SlidingWindow,
    Strategy::SlidingLog,
];

fn passes(limit: &RateLimit, user: &str) -> u64 {
    let at = now();
    (0..200)
        .filter(|_| admit(limit, &from(user), at).is_ok())
        .count() as u64
}

fn left(limit: &RateLimit, user: &str) -> u64 {
    let state = limit.handle().peek("per_user", &user.into()).unwrap();
    state.remaining
}

#[tokio::test(start_paused = true)]
async fn what_was_used_is_kept_when_the_quota_changes() {
    for strategy in ALL {
        let rule = per_user(Quota::per_minute(10)).strategy(strategy);
        let limit = RateLimit::rules([rule]).unwrap();
        for _ in 0..5 {
            admit(&limit, &from("alice"), now()).unwrap();
        }
        let update = |limit_: u64| limit.handle().update("per_user", Quota::per_minute(limit_));
        // A bucket stays as long from full as it was: half of it. Others keep what was counted.
        let is_bucket = strategy == Strategy::TokenBucket;
        update(20).unwrap();
        assert_eq!(
            left(&limit, "alice"),
            if is_bucket { 10 } else { 15 },
            "{strategy:?}"
        );
        assert_eq!(left(&limit, "bob"), 20);
        update(4).unwrap();
        assert_eq!(left(&limit, "alice"), if is_bucket { 2 } else { 0 });
        assert_eq!(
            passes(&limit, "alice"),
            left(&limit, "carol") / 2 * u64::from(is_bucket)
        );
        assert_eq!((passes(&limit, "bob"), left(&limit, "bob")), (4, 0));
        let state = limit.handle().peek("per_user", &"alice".into()).unwrap();
        assert_eq!((state.limit, state.holds, state.remaining), (4, 4, 0));
        assert_eq!(
            limit.handle().snapshot().rules[0].quota,
            Quota::per_minute(4)
        );
        // The wait that is named then is right.
        advance(state.retry_after - Duration::from_nanos(1)).await;
        assert!(
            admit(&limit, &from("alice"), now()).is_err(),
            "{strategy:?}"
        );
        advance(Duration::from_nanos(1)).await;
        assert!(admit(&limit, &from("alice"), now()).is_ok(), "{strategy:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_window_of_another_length_takes_over_what_was_used() {
    for strategy in ALL {
        let rule = per_user(Quota::per_minute(10)).strategy(strategy);
        let limit = RateLimit::rules([rule]).unwrap();
        for _ in 0..6 {
            admit(&limit, &from("alice"), now()).unwrap();
        }
        limit
            .handle()
            .update("per_user", Quota::per_hour(10))
            .unwrap();
        // Of a bucket of an hour, 36 seconds are nothing.
        let used = if strategy == Strategy::TokenBucket {
            1
        } else {
            6
        };
        assert_eq!(left(&limit, "alice"), 10 - used, "{strategy:?}");
        limit
            .handle()
            .update("per_user", Quota::per_second(10))
            .unwrap();
        advance(Duration::from_secs(2)).await;
        assert_eq!(left(&limit, "alice"), 10);
    }
}

#[tokio::test(start_paused = true)]
async fn a_bucket_takes_over_what_was_used_of_a_smaller_burst() {
    let rule = per_user(Quota::per_second(10).burst(100));
    let limit = RateLimit::rules([rule]).unwrap();
    assert_eq!(passes(&limit, "alice"), 100);
    let smaller = Quota::per_second(10).burst(20);
    limit.handle().update("per_user", smaller).unwrap();
    // No longer empty than the new one can be.
    advance(Duration::from_secs(1)).await;
    assert_eq!(passes(&limit, "alice"), 10);
}

#[test]
fn fewer_places_are_kept_to_when_those_in_flight_have_left() {
    let limit = RateLimit::rules([Rule::in_flight("places", 5)]).unwrap();
    let at = now();
    let mut held: Vec<_> = (0..5)
        .map(|_| admit(&limit, &from("a"), at).unwrap())
        .collect();
    limit
        .handle()
        .update("places", Quota::per_second(2))
        .unwrap();
    while held.len() >= 2 {
        assert!(
            admit(&limit, &from("a"), at).is_err(),
            "{} in flight",
            held.len()
        );
        held.pop();
    }
    held.push(admit(&limit, &from("a"), at).unwrap());
    limit
        .handle()
        .update("places", Quota::per_second(3))
        .unwrap();
    held.push(admit(&limit, &from("a"), at).unwrap());
    assert!(admit(&limit, &from("a"), at).is_err());
    drop(held);
    let state = limit.handle().peek("places", &"".into()).unwrap();
    assert_eq!((state.remaining, state.limit), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn callers_are_told_the_new_policy() {
    let layer = RateLimitLayer::new(Quota::per_minute(10));
    let policy = async || {
        let service = layer.layer(Answers(|| Response::new(Empty::<Bytes>::new())));
        let response = service.oneshot(http::Request::new(())).await.unwrap();
        let policy = response.headers()["ratelimit-policy"].to_str();
        policy.unwrap().to_owned()
    };
    assert_eq!(policy().await, r#""default";q=10;w=60"#);
    let quota = Quota::per_hour(20).burst(30);
    layer.handle().update("default", quota).unwrap();
    assert_eq!(policy().await, r#""default";q=20;w=3600;palisade-burst=30"#);
    layer
        .handle()
        .update("default", quota.burst(u64::MAX))
        .unwrap_err();
    assert_eq!(policy().await, r#""default";q=20;w=3600;palisade-burst=30"#);
}

#[test]
fn what_cannot_be_kept_changes_nothing() {
    for strategy in ALL {
        let rule = per_user(Quota::per_minute(3)).strategy(strategy);
        let limit = RateLimit::rules([rule]).unwrap();
        admit(&limit, &from("alice"), now()).unwrap();
        let before = limit.handle().snapshot();
        let handle = limit.handle();
        let wrong = match strategy {
            Strategy::TokenBucket => (Quota::per_minute(5).burst(u64::MAX), QuotaError::LargeBurst),
            Strategy::SlidingLog => (Quota::per_minute(10_001), QuotaError::LargeLog),
            _ => (Quota::per_minute(5).burst(9), QuotaError::NoBurst),
        };
        let error = RuleError::Quota("per_user".into(), wrong.1);
        assert_eq!(handle.update("per_user", wrong.0), Err(error));
        let error = RuleError::NoSuchRule("other".into());
        assert_eq!(handle.update("other", Quota::per_minute(5)), Err(error));
        assert_eq!(handle.snapshot(), before);
        assert_eq!(
            (left(&limit, "alice"), left(&limit, "bob")),
            (2, 3),
            "{strategy:?}"
        );
    }
}

#[test]
fn threads_that_take_while_it_changes_never_get_more_than_the_larger_quota() {
    for strategy in STRATEGIES {
        for keyed in [false, true] {
            let mut rule = Rule::new("per_user", Quota::per_day(300)).strategy(strategy);
            if keyed {
                rule = rule.key(key::header("x-user-id"));
            }
            // Before and behind others, whose locks are held meanwhile.
            let plenty = |name: &str| Rule::new(name, Quota::per_day(1_000_000));
            let rules = [plenty("a"), rule, plenty("z")];
            let limit = RateLimit::rules(rules).unwrap().headers(Headers::Off);
            let (passed, done, at) = (AtomicU64::new(0), AtomicBool::new(false), now());
            thread::scope(|scope| {
                let takers: Vec<_> = (0..3)
                    .map(|_| {
                        scope.spawn(|| {
                            let request = from("alice");
                            for _ in 0..2000 {
                                let admitted = admit(&limit, &request, at).is_ok();
                                passed.fetch_add(admitted.into(), SeqCst);
                            }
                        })
                    })
                    .collect();
                scope.spawn(|| {
                    let handle = limit.handle();
                    let mut turn = 0;
                    while !done.load(SeqCst) {
                        turn += 1;
                        let quota = Quota::per_day(if turn % 2 == 0 { 300 } else { 500 });
                        handle.update("per_user", quota).unwrap();
                        handle
                            .update("a", Quota::per_day(1_000_000 + turn))
                            .unwrap();
                    }
                    handle.update("per_user", Quota::per_day(500)).unwrap();
                });
                for taker in takers {
                    taker.join().unwrap();
                }
                done.store(true, SeqCst);
            });
            let mut passed = passed.into_inner();
            passed += (0..1000)
                .filter(|_| admit(&limit, &from("alice"), at).is_ok())
                .count() as u64;
            // A bucket that is changed has what it was from full, in parts of the day: rounded up each time.
            assert!(passed <= 500, "{passed} {strategy:?}");
            assert!(passed >= 300, "{passed} {strategy:?}");
            let snapshot = limit.handle().snapshot();
            assert_eq!(snapshot.rules[1].admitted, passed);
        }
    }
}

#[test]
fn two_who_change_different_tiers_undo_nothing_of_each_other() {
    for round in 0..200 {
        let rule = per_user(Quota::per_day(1))
            .tier("a", Quota::per_day(1), |key| *key == "a".into())
            .tier("b", Quota::per_day(1), |key| *key == "b".into());
        let limit = RateLimit::rules([rule]).unwrap();
        thread::scope(|scope| {
            for tier in ["a", "b"] {
                let handle = limit.handle();
                scope.spawn(move || {
                    for many in 2..=9 {
                        handle
                            .update_tier("per_user", tier, Quota::per_day(many))
                            .unwrap();
                    }
                });
            }
        });
        for tier in ["a", "b"] {
            let state = limit.handle().peek("per_user", &tier.into()).unwrap();
            assert_eq!(
                (state.limit, state.holds),
                (9, 9),
                "{tier} in round {round}"
            );
            assert_eq!(passes(&limit, tier), 9);
        }
    }
}
