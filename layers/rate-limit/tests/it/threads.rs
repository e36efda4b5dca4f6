use std::{
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    thread,
};

use palisade_core::{key, time::now};
use palisade_rate_limit::{Headers, Quota, RateLimit, Rule};

use crate::{STRATEGIES, admit, from, per_user};

#[test]
fn threads_together_admit_exactly_the_limit() {
    for strategy in STRATEGIES {
        for keyed in [false, true] {
            let rule = match keyed {
                true => per_user(Quota::per_day(1000)),
                false => Rule::new("global", Quota::per_day(1000)),
            };
            let limit = RateLimit::rules([rule.strategy(strategy)])
                .unwrap()
                .headers(Headers::Off);
            let (passed, at) = (AtomicU64::new(0), now());
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let request = from("alice");
                        for _ in 0..600 {
                            let admitted = admit(&limit, &request, at).is_ok();
                            passed.fetch_add(admitted.into(), SeqCst);
                        }
                    });
                }
            });
            assert_eq!(passed.load(SeqCst), 1000, "{strategy:?}");
        }
    }
}

#[test]
fn threads_with_crossing_keys_wait_for_nobody_in_a_circle_and_take_all_or_nothing() {
    // Two rules with the keys swapped: what one thread locks first, the other locks last.
    let limit = RateLimit::rules([
        Rule::new("first", Quota::per_day(700)).key(key::header("x-user-id")),
        Rule::new("second", Quota::per_day(500)).key(key::header("x-peer-id")),
        Rule::new("global", Quota::per_day(900)),
    ])
    .unwrap()
    .headers(Headers::Off);
    let (passed, at) = (AtomicU64::new(0), now());
    thread::scope(|scope| {
        for (user, peer) in [("a", "b"), ("b", "a"), ("a", "a"), ("b", "b")] {
            let (limit, passed) = (&limit, &passed);
            scope.spawn(move || {
                let mut request = from(user);
                let peer = http::HeaderValue::from_static(peer);
                request.headers_mut().insert("x-peer-id", peer);
                for _ in 0..1000 {
                    let admitted = admit(limit, &request, at).is_ok();
                    passed.fetch_add(admitted.into(), SeqCst);
                }
            });
        }
    });
    let passed = passed.load(SeqCst);
    assert_eq!(passed, 900);
    let handle = limit.handle();
    let used = |rule, key: &str| {
        let state = handle.peek(rule, &key.into()).unwrap();
        state.holds - state.remaining
    };
    assert_eq!(used("first", "a") + used("first", "b"), passed);
    assert_eq!(used("second", "a") + used("second", "b"), passed);
    for rule in handle.snapshot().rules {
        assert_eq!(rule.admitted, passed, "{}", rule.rule);
    }
}
