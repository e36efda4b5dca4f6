use std::{sync::Arc, time::Duration};

use palisade_core::{key, time::now};
use palisade_rate_limit::{
    Adaptive, MissingKey, Quota, QuotaError, RateLimit, Rule, RuleError, Strategy,
};
use proptest::{collection::vec, prelude::*, sample::select, strategy::Strategy as _};
use tokio::time::advance;

use crate::{STRATEGIES, admit, from, limited, per_user};

fn remaining(limit: &RateLimit, user: &str) -> Vec<u64> {
    let states = limit.handle().peek_all(&(&from(user)).into());
    states.iter().map(|state| state.remaining).collect()
}

#[test]
fn a_request_that_one_rule_refuses_takes_from_none() {
    for strategy in STRATEGIES {
        let limit = RateLimit::rules([
            Rule::new("global", Quota::per_minute(10)).strategy(strategy),
            per_user(Quota::per_minute(2)).strategy(strategy),
            Rule::new("tokens", Quota::per_minute(100))
                .strategy(strategy)
                .cost(|_| 10),
        ])
        .unwrap();
        let at = now();
        for _ in 0..2 {
            admit(&limit, &from("alice"), at).unwrap();
        }
        for _ in 0..50 {
            let refused = admit(&limit, &from("alice"), at).unwrap_err();
            assert_eq!(&*limited(&refused).rule, "per_user");
        }
        assert_eq!(remaining(&limit, "alice"), [8, 0, 80], "{strategy:?}");
        assert!((0..8).all(|user| admit(&limit, &from(&format!("{user}")), at).is_ok()));
        let refused = admit(&limit, &from("bob"), at).unwrap_err();
        assert_eq!(&*limited(&refused).rule, "global");
        assert_eq!(remaining(&limit, "bob"), [0, 2, 0]);
    }
}

#[test]
fn a_newcomer_that_another_rule_refuses_gets_no_seat() {
    let limit = RateLimit::rules([
        per_user(Quota::per_minute(2)),
        Rule::new("global", Quota::per_minute(0)),
    ])
    .unwrap();
    assert!((0..100).all(|user| admit(&limit, &from(&format!("{user}")), now()).is_err()));
    assert_eq!(limit.handle().snapshot().rules[0].keys, 0);
}

#[test]
fn the_refusal_names_the_rule_with_the_longest_wait() {
    for reversed in [false, true] {
        let mut rules = vec![
            Rule::new("second", Quota::per_second(1)),
            Rule::new("minute", Quota::per_minute(1)),
            Rule::new("also_minute", Quota::per_minute(1)),
            Rule::new("plenty", Quota::per_hour(1000)),
        ];
        if reversed {
            rules.reverse();
        }
        let (limit, at) = (RateLimit::rules(rules).unwrap(), now());
        admit(&limit, &from("alice"), at).unwrap();
        let refused = admit(&limit, &from("alice"), at).unwrap_err();
        assert_eq!(limited(&refused).retry_after, Duration::from_secs(60));
        assert_eq!(&*limited(&refused).rule, "also_minute");
    }
}

#[test]
fn rules_that_cannot_be_kept_are_errors() {
    let rules = |rules: Vec<Rule>| RateLimit::rules(rules).map(|_| ()).unwrap_err();
    let rule = |name: &str| Rule::new(name, Quota::per_second(1));
    for name in [
        "",
        "two words",
        "quo\"te",
        "back\\slash",
        "grün",
        "new\nline",
        &"x".repeat(65),
    ] {
        assert_eq!(
            rules(vec![rule(name)]),
            RuleError::Name(name.into()),
            "{name}"
        );
    }
    let fine = [rule(&"x".repeat(64)), rule("per-user/v2:~")];
    assert!(RateLimit::rules(fine).is_ok());
    assert_eq!(
        rules(vec![rule("a"), rule("b"), rule("a")]),
        RuleError::Duplicate("a".into())
    );
    let nine = (0..9).map(|name| rule(&name.to_string())).collect();
    assert_eq!(rules(nine), RuleError::TooMany(9));

    let bursting = Rule::new("b", Quota::per_second(1).burst(2));
    let error = rules(vec![bursting.strategy(Strategy::FixedWindow)]);
    assert_eq!(error, RuleError::Quota("b".into(), QuotaError::NoBurst));
    assert_eq!(error.to_string(), "the quota of rule b cannot be kept");
    let source = std::error::Error::source(&error).unwrap();
    assert_eq!(source.to_string(), "only a token bucket has a burst");
}

#[test]
fn rules_that_contradict_themselves_are_errors() {
    let quota = Quota::per_minute(100);
    let none = |_: &palisade_core::key::Key<'_>| false;
    let r = || Rule::new("r", quota);
    let tokens = || Rule::tokens("r", quota);
    let name = || Arc::<str>::from("r");
    let least = Adaptive::new().least(200).unwrap();
    for (rule, error) in [
        (
            tokens().strategy(Strategy::TokenBucket),
            RuleError::CannotSettle(name(), Strategy::TokenBucket),
        ),
        (
            tokens().strategy(Strategy::SlidingLog),
            RuleError::CannotSettle(name(), Strategy::SlidingLog),
        ),
        (
            tokens().warm_up(Duration::from_secs(1)),
            RuleError::CannotWarmUp(name()),
        ),
        (tokens().leased(10), RuleError::CannotLease(name())),
        (
            Rule::in_flight("r", 5).leased(10),
            RuleError::CannotLease(name()),
        ),
        (r().leased(0), RuleError::EmptyLease(name())),
        (r().growing(), RuleError::CannotGrow(name())),
        (
            r().adaptive(Adaptive::new()).tier("t", quota, none),
            RuleError::CannotTier(name()),
        ),
        (r().tier("", quota, none), RuleError::Name("".into())),
        (
            r().strategy(Strategy::SlidingLog)
                .exception("k", Quota::per_minute(10_001)),
            RuleError::Quota(name(), QuotaError::LargeLog),
        ),
    ] {
        let refused = RateLimit::rules([rule]).map(|_| ()).unwrap_err();
        assert_eq!(refused, error);
        let words = refused.to_string();
        assert!(
            words.contains('r') && !words.contains('\n') || words.starts_with("\"\""),
            "{words}"
        );
    }
    let moved = RateLimit::rules([r().adaptive(least)])
        .map(|_| ())
        .unwrap_err();
    assert!(matches!(moved, RuleError::Adaptive(..)), "{moved}");
    let many = (0..=Rule::MOST_TIERS).fold(r(), |rule, key| rule.exception(key.to_string(), quota));
    let many = RateLimit::rules([many]).map(|_| ()).unwrap_err();
    assert_eq!(many, RuleError::TooManyTiers(name()));
    let adaptive = RateLimit::rules([r().adaptive(Adaptive::new())]).unwrap();
    assert_eq!(
        adaptive.handle().update("r", quota),
        Err(RuleError::CannotTier(name()))
    );
}

fn rule() -> impl proptest::strategy::Strategy<Value = (u64, u64, Strategy, bool, u64)> {
    (
        1..6_u64,
        1..40_u64,
        select(&STRATEGIES[..]),
        any::<bool>(),
        0..4_u64,
    )
}

proptest! {
    #[test]
    fn the_order_of_the_rules_changes_nothing(
        rules in vec(rule(), 1..=5),
        order in Just(vec![0, 1, 2, 3, 4]).prop_shuffle(),
        requests in vec((0..30_u64, 0..3_usize), 1..40),
    ) {
        let build = |order: &[usize]| {
            let rules = order.iter().filter_map(|&place| Some((place, rules.get(place)?)));
            let rules = rules.map(|(place, &(limit, millis, strategy, keyed, cost))| {
                let quota = Quota::new(limit, Duration::from_millis(millis)).unwrap();
                let rule = Rule::new(format!("rule{place}"), quota).strategy(strategy).cost(move |_| cost);
                let rule = rule.missing_key(MissingKey::Skip);
                if keyed { rule.key(key::header("x-user-id")) } else { rule }
            });
            RateLimit::rules(rules).unwrap()
        };
        // Both count from the same instant, so that their windows turn together.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let _time = runtime.enter();
        let (one, other) = (build(&[0, 1, 2, 3, 4]), build(&order));
        for (later, user) in requests {
            runtime.block_on(advance(Duration::from_millis(later)));
            let at = now();
            let request = from(["alice", "bob", "carol"][user]);
            let (one, other) = (admit(&one, &request, at), admit(&other, &request, at));
            prop_assert_eq!(one.is_ok(), other.is_ok());
            if let (Err(one), Err(other)) = (one, other) {
                prop_assert_eq!(one.reason(), other.reason());
                prop_assert_eq!(one.delay(), other.delay());
                let text = |error: &dyn std::error::Error| error.source().unwrap().to_string();
                // The first of two that can never hold it may differ in what it holds, not in that it refuses.
                if one.delay().is_some() {
                    prop_assert_eq!(text(&one), text(&other));
                }
            }
        }
        let users = |limit: &RateLimit| ["alice", "bob", "carol"].map(|user| {
            let mut states = limit.handle().peek_all(&(&from(user)).into());
            states.sort_by(|a, b| a.rule.cmp(&b.rule));
            states
        });
        prop_assert_eq!(users(&one), users(&other));
    }
}
