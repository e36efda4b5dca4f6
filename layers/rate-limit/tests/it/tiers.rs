//! Keys with a quota of their own.

use std::{
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use palisade_core::{key::Key, respond::LayerExt, testing::Answers, time::now};
use palisade_rate_limit::{
    Headers, Quota, QuotaError, RateLimit, RateLimitLayer, Rule, RuleError, Strategy,
};
use tower::{Layer, ServiceExt};

use crate::{STRATEGIES, admit, from, limited, per_user};

fn starts_with(prefix: &'static str) -> impl Fn(&Key<'_>) -> bool {
    move |key| matches!(key, Key::Bytes(bytes) if bytes.starts_with(prefix.as_bytes()))
}

/// 3 a minute, of gold 5, of silver 4, and of one that is named 7.
fn tiered() -> Rule {
    per_user(Quota::per_minute(3))
        .tier("gold", Quota::per_minute(5), starts_with("gold"))
        .tier("precious", Quota::per_minute(4), |key| {
            starts_with("gold")(key) || starts_with("silver")(key)
        })
        .exception("gold:named", Quota::per_minute(7))
}

const QUOTAS: [(&str, u64); 6] = [
    ("gold:a", 5),
    ("gold:b", 5),
    ("silver:a", 4),
    ("gold:named", 7),
    ("gold:named:not", 5),
    ("alice", 3),
];

fn passes(limit: &RateLimit, user: &str) -> u64 {
    let at = now();
    (0..20)
        .filter(|_| admit(limit, &from(user), at).is_ok())
        .count() as u64
}

#[test]
fn each_key_has_the_quota_of_its_tier_and_an_exception_has_its_own() {
    for strategy in [Strategy::SlidingLog].into_iter().chain(STRATEGIES) {
        let limit = RateLimit::rules([tiered().strategy(strategy)]).unwrap();
        for (user, quota) in QUOTAS {
            let state = limit.handle().peek("per_user", &user.into()).unwrap();
            assert_eq!(
                (state.limit, state.holds, state.remaining),
                (quota, quota, quota)
            );
            assert_eq!(passes(&limit, user), quota, "{user} {strategy:?}");
            let state = limit.handle().peek("per_user", &user.into()).unwrap();
            assert_eq!((state.limit, state.remaining), (quota, 0));
            assert!(state.retry_after > Duration::ZERO);
            let refused = admit(&limit, &from(user), now()).unwrap_err();
            assert_eq!(limited(&refused).limit, quota);
        }
        assert_eq!(limit.handle().reset(None, &"gold:named".into()), 1);
        assert_eq!(passes(&limit, "gold:named"), 7);
        assert_eq!(
            limit.handle().snapshot().rules[0].quota,
            Quota::per_minute(3)
        );
    }
}

async fn headers(layer: &RateLimitLayer, request: Request<()>) -> [String; 2] {
    let answer = || Response::new(Empty::<Bytes>::new());
    let service = layer.clone().responding().layer(Answers(answer));
    let Ok(response) = service.oneshot(request).await;
    let field = |name| response.headers()[name].to_str().unwrap().to_owned();
    [field("ratelimit-policy"), field("ratelimit")]
}

#[tokio::test(start_paused = true)]
async fn a_caller_is_told_the_quota_of_its_tier() {
    let global = Rule::new("global", Quota::per_minute(100));
    let layer = RateLimitLayer::rules([global, tiered()]).unwrap();
    for (user, quota) in QUOTAS {
        let [policy, limit] = headers(&layer, from(user)).await;
        assert_eq!(
            policy,
            format!(r#""global";q=100;w=60, "per_user";q={quota};w=60"#)
        );
        let (left, share) = (quota - 1, 60 * (quota - 1));
        let window = share.div_ceil(quota);
        assert!(
            limit.contains(&format!(r#""per_user";r={left};t={window}"#)),
            "{limit}"
        );
    }
    // Also on a refusal.
    for _ in 0..2 {
        headers(&layer, from("silver:a")).await;
    }
    let [.., left] = headers(&layer, from("silver:a")).await;
    assert!(left.starts_with(r#""per_user";r=0;"#), "{left}");
    let [policy, left] = headers(&layer, from("silver:a")).await;
    assert!(policy.ends_with(r#""per_user";q=4;w=60"#), "{policy}");
    assert!(left.starts_with(r#""per_user";r=0;t=15"#), "{left}");
}

#[tokio::test(start_paused = true)]
async fn the_quota_of_a_tier_changes_live_and_that_of_others_does_not() {
    let layer = RateLimitLayer::rules([tiered().strategy(Strategy::FixedWindow)]).unwrap();
    let (limit, handle) = (layer.gate(), layer.handle());
    for (user, _) in QUOTAS {
        admit(limit, &from(user), now()).unwrap();
    }
    handle
        .update_tier("per_user", "gold", Quota::per_minute(9))
        .unwrap();
    let left = |user: &str| {
        let state = handle.peek("per_user", &user.into()).unwrap();
        (state.limit, state.remaining)
    };
    let after = QUOTAS.map(|(user, _)| left(user));
    assert_eq!(after, [(9, 8), (9, 8), (4, 3), (7, 6), (9, 8), (3, 2)]);
    let [policy, limit] = headers(&layer, from("gold:a")).await;
    assert_eq!(policy, r#""per_user";q=9;w=60"#);
    assert!(limit.starts_with(r#""per_user";r=7;"#), "{limit}");

    // Everybody else's, which is what `update` changes.
    handle.update("per_user", Quota::per_minute(2)).unwrap();
    let after = QUOTAS.map(|(user, _)| left(user).0);
    assert_eq!(after, [9, 9, 4, 7, 9, 2]);
    let [policy, _] = headers(&layer, from("alice")).await;
    assert_eq!(policy, r#""per_user";q=2;w=60"#);
}

#[test]
fn a_tier_that_is_not_there_or_cannot_be_changed_changes_nothing() {
    let limit = RateLimit::rules([tiered().strategy(Strategy::FixedWindow)]).unwrap();
    let handle = limit.handle();
    let quota = Quota::per_minute(9);
    assert_eq!(
        handle.update_tier("per_user", "bronze", quota),
        Err(RuleError::NoSuchTier("bronze".into()))
    );
    assert_eq!(
        handle.update_tier("nobody", "gold", quota),
        Err(RuleError::NoSuchRule("nobody".into()))
    );
    assert_eq!(
        handle.update_tier("per_user", "gold", quota.burst(9)),
        Err(RuleError::Quota("per_user".into(), QuotaError::NoBurst))
    );
    for (user, quota) in QUOTAS {
        assert_eq!(passes(&limit, user), quota, "{user}");
    }
}

#[test]
fn who_changes_tier_begins_with_the_quota_of_the_new_one() {
    let is_gold = Arc::new(AtomicBool::new(false));
    let asked = is_gold.clone();
    let rule = per_user(Quota::per_minute(2));
    let rule = rule.tier("gold", Quota::per_minute(4), move |_| asked.load(SeqCst));
    let limit = RateLimit::rules([rule]).unwrap();
    assert_eq!(passes(&limit, "alice"), 2);
    is_gold.store(true, SeqCst);
    assert_eq!(passes(&limit, "alice"), 4);
    is_gold.store(false, SeqCst);
    assert_eq!(passes(&limit, "alice"), 0, "what was used is not forgotten");
}

#[test]
fn a_tier_of_zero_is_closed_and_one_in_a_rule_without_seats_shares_what_all_share() {
    let rule = per_user(Quota::per_minute(3)).tier("none", Quota::per_minute(0), starts_with("x"));
    let limit = RateLimit::rules([rule]).unwrap();
    assert_eq!((passes(&limit, "x:1"), passes(&limit, "y:1")), (0, 3));

    let limit = RateLimit::rules([tiered().capacity(0)]).unwrap();
    assert_eq!(passes(&limit, "gold:a"), 3, "the shared one");
    assert_eq!(passes(&limit, "alice"), 0);
}

#[test]
fn as_many_tiers_as_are_allowed_are_told_apart() {
    let mut rule = per_user(Quota::per_day(1000)).strategy(Strategy::FixedWindow);
    for number in 1..=Rule::MOST_TIERS as u64 {
        rule = rule.exception(number.to_string(), Quota::per_day(number));
    }
    let limit = RateLimit::rules([rule.clone()])
        .unwrap()
        .headers(Headers::Off);
    for number in [1, 2, 127, 128, 253, 254, 255] {
        let limit = limit
            .handle()
            .peek("per_user", &Key::from(number.to_string()))
            .unwrap()
            .limit;
        assert_eq!(limit, if number < 255 { number } else { 1000 });
    }
    let many = rule.exception("one more", Quota::per_day(1));
    let error = RateLimit::rules([many]).map(|_| ()).unwrap_err();
    assert_eq!(error, RuleError::TooManyTiers("per_user".into()));
}
