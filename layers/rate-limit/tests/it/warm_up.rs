//! Quotas that grow after a start.

use std::time::Duration;

use http::Request;
use palisade_core::time::now;
use palisade_rate_limit::{Quota, RateLimit, Rule, RuleError, Strategy};
use tokio::time::advance;

use crate::{admit, limited};

const SECOND: Duration = Duration::from_secs(1);

/// How many pass in the next second, of which a thousand ask evenly.
async fn in_a_second(limit: &RateLimit) -> u64 {
    let mut passed = 0;
    for _ in 0..1000 {
        advance(Duration::from_millis(1)).await;
        passed += u64::from(admit(limit, &Request::new(()), now()).is_ok());
    }
    passed
}

#[tokio::test(start_paused = true)]
async fn it_begins_with_a_third_and_rises_evenly_to_all() {
    for strategy in [
        Strategy::TokenBucket,
        Strategy::FixedWindow,
        Strategy::SlidingLog,
    ] {
        let rule = by_hundred("warm", Quota::per_second(9000)).strategy(strategy);
        let limit = RateLimit::rules([rule.warm_up(SECOND * 60)]).unwrap();
        let mut rates = Vec::new();
        for _ in 0..7 {
            rates.push(in_a_second(&limit).await);
            advance(SECOND * 9).await;
        }
        // From 30 to 90, by 10 in ten seconds; a bucket has saved up a second's worth.
        for (step, rate) in rates.iter().enumerate() {
            let steady = 30 + 10 * step as u64;
            let burst = if strategy == Strategy::TokenBucket {
                steady
            } else {
                0
            };
            let (least, most) = ((steady - 1).min(90), (steady + burst + 3).min(180));
            assert!(
                (least..=most).contains(rate),
                "{strategy:?} {step}: {rates:?}"
            );
        }
        assert!(rates.is_sorted(), "{rates:?}");
    }
}

/// Each costs a hundred, so that parts of one can be told apart.
fn by_hundred(name: &str, quota: Quota) -> Rule {
    Rule::new(name, quota).cost(|_| 100)
}

#[tokio::test(start_paused = true)]
async fn the_wait_that_is_named_is_an_upper_bound() {
    let rule = Rule::new("warm", Quota::per_second(10).burst(3)).warm_up(SECOND);
    let limit = RateLimit::rules([rule]).unwrap();
    admit(&limit, &Request::new(()), now()).unwrap();
    let refused = admit(&limit, &Request::new(()), now()).unwrap_err();
    let wait = limited(&refused).retry_after;
    assert_eq!(
        (limited(&refused).cost, wait),
        (3, Duration::from_millis(300))
    );
    advance(Duration::from_millis(250)).await;
    // It costs two by now.
    assert!(admit(&limit, &Request::new(()), now()).is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_fits_in_the_end_is_not_refused_for_good_at_the_start() {
    for strategy in [
        Strategy::TokenBucket,
        Strategy::SlidingWindow,
        Strategy::InFlight,
    ] {
        let rule = Rule::new("warm", Quota::per_second(4)).strategy(strategy);
        let rule = rule
            .cost(|head| head.headers.len() as u64 + 3)
            .warm_up(SECOND * 10);
        let limit = RateLimit::rules([rule]).unwrap();
        drop(admit(&limit, &Request::new(()), now()).unwrap());
        let state = limit.handle().peek("warm", &"".into()).unwrap();
        let left = if strategy == Strategy::InFlight { 4 } else { 0 };
        assert_eq!(state.remaining, left, "{strategy:?}");
        let larger = Request::builder()
            .header("a", "")
            .header("b", "")
            .body(())
            .unwrap();
        let refused = admit(&limit, &larger, now()).unwrap_err();
        assert!(refused.is_final(), "more than it ever holds");
    }
}

#[test]
fn costs_that_are_settled_are_not_warmed_up() {
    let rule = Rule::tokens("tokens", Quota::per_second(4)).warm_up(SECOND);
    let error = RateLimit::rules([rule]).map(|_| ()).unwrap_err();
    assert_eq!(error, RuleError::CannotWarmUp("tokens".into()));
}
