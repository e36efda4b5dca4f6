//! Rules that only watch.

use http::Request;
use palisade_core::{
    classify::Verdict,
    reject::Reason,
    settle::{End, Settle},
    time::now,
};
use palisade_rate_limit::{Estimate, Mode, Quota, RateLimit, Rule, RuleError, Strategy, Tokens};

use crate::{admit, from, limited, per_user};

const ALL: [Strategy; 6] = [
    Strategy::TokenBucket,
    Strategy::FixedWindow,
    Strategy::SlidingWindow,
    Strategy::SlidingLog,
    Strategy::Adaptive,
    Strategy::InFlight,
];

fn remaining(limit: &RateLimit, rule: &str) -> u64 {
    let state = limit.handle().peek(rule, &"alice".into()).unwrap();
    state.remaining
}

#[test]
fn a_rule_in_shadow_lets_pass_what_it_has_no_room_for_counts_it_and_takes_nothing() {
    for strategy in ALL {
        let watched = per_user(Quota::per_minute(2)).strategy(strategy);
        let limit = RateLimit::rules([
            watched.mode(Mode::Shadow),
            Rule::new("global", Quota::per_minute(5)).strategy(strategy),
        ])
        .unwrap();
        let at = now();
        let held: Vec<_> = (0..5)
            .map(|_| admit(&limit, &from("alice"), at).unwrap())
            .collect();
        assert_eq!(remaining(&limit, "per_user"), 0);
        let refused = admit(&limit, &from("alice"), at).unwrap_err();
        assert_eq!(&*limited(&refused).rule, "global", "{strategy:?}");
        let rules = limit.handle().snapshot().rules;
        assert_eq!((rules[0].admitted, rules[0].refused), (2, 0));
        // The one that the other rule refused did not pass.
        assert_eq!(
            (rules[0].shadowed, rules[1].shadowed),
            (3, 0),
            "{strategy:?}"
        );
        assert_eq!((rules[1].admitted, rules[1].refused), (5, 1));
        assert_eq!(
            (rules[0].mode, rules[1].mode),
            (Mode::Shadow, Mode::Enforce)
        );
        // Those that took nothing give nothing back.
        for mut reservation in held {
            reservation.finish(&End::new(Verdict::Unsent), at);
        }
        let back = if strategy == Strategy::TokenBucket {
            0
        } else {
            2
        };
        assert_eq!(remaining(&limit, "per_user"), back, "{strategy:?}");
    }
}

#[test]
fn the_mode_changes_while_requests_come_in() {
    let rules = [
        per_user(Quota::per_day(2)),
        Rule::new("global", Quota::per_day(9)),
    ];
    let limit = RateLimit::rules(rules).unwrap();
    let (handle, at) = (limit.handle(), now());
    let passes = |many: usize| (0..many).filter(|_| admit(&limit, &from("alice"), at).is_ok());
    assert_eq!(passes(3).count(), 2);
    handle.set_mode("per_user", Mode::Shadow).unwrap();
    assert_eq!(handle.snapshot().rules[0].mode, Mode::Shadow);
    assert_eq!(passes(3).count(), 3);
    handle.set_mode("per_user", Mode::Enforce).unwrap();
    assert_eq!(passes(3).count(), 0);
    handle.set_mode("global", Mode::Shadow).unwrap();
    assert_eq!(passes(3).count(), 0, "each rule by itself");
    assert_eq!(handle.snapshot().rules[0].shadowed, 3);
    let unknown = handle.set_mode("no_such_rule", Mode::Shadow);
    assert_eq!(unknown, Err(RuleError::NoSuchRule("no_such_rule".into())));
}

#[test]
fn a_cost_that_can_never_fit_passes_in_shadow() {
    for strategy in ALL {
        let rule = Rule::new("small", Quota::per_minute(2)).strategy(strategy);
        let limit = RateLimit::rules([rule.cost(|_| 1000)]).unwrap();
        let refused = admit(&limit, &from("alice"), now()).unwrap_err();
        // Where an adaptive limit goes up to nobody knows, but not beyond its end.
        assert_eq!(refused.reason(), Reason::CostExceedsQuota, "{strategy:?}");
        limit.handle().set_mode("small", Mode::Shadow).unwrap();
        assert!(admit(&limit, &from("alice"), now()).is_ok());
        let rule = limit.handle().snapshot().rules.remove(0);
        assert_eq!((rule.shadowed, rule.admitted), (1, 0));
        assert_eq!(remaining(&limit, "small"), 2);
    }
}

#[test]
fn a_limit_of_zero_in_shadow_counts_all_and_refuses_none() {
    let rule = Rule::new("none", Quota::per_minute(0)).mode(Mode::Shadow);
    let limit = RateLimit::rules([rule]).unwrap();
    assert!((0..7).all(|_| admit(&limit, &from("alice"), now()).is_ok()));
    assert_eq!(limit.handle().snapshot().rules[0].shadowed, 7);
    // Nor is a caller told before that there is nothing left.
    let request = from("alice");
    limit.handle().preview(&(&request).into()).unwrap();
    limit.handle().set_mode("none", Mode::Enforce).unwrap();
    assert!(limit.handle().preview(&(&request).into()).is_err());
}

#[test]
fn a_stream_that_grows_beyond_a_rule_in_shadow_goes_on_and_is_counted_once() {
    let rule = Rule::tokens("tokens", Quota::per_minute(300)).growing();
    let rule = rule.estimate(Estimate::Learned).mode(Mode::Shadow);
    let limit = RateLimit::rules([rule]).unwrap();
    let mut request = Request::new(());
    request.extensions_mut().insert(Tokens::new("m", 10));
    let at = now();
    let mut reservation = admit(&limit, &request, at).unwrap();
    for streamed in 1..2000 {
        reservation.progress(streamed, at).unwrap();
    }
    let rule = limit.handle().snapshot().rules.remove(0);
    assert_eq!((rule.admitted, rule.shadowed), (1, 1));
}
