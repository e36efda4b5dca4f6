use std::time::Duration;

use http::Request;
use palisade_core::{
    classify::Verdict,
    key::Key,
    settle::{End, Settle},
    time::now,
};
use palisade_rate_limit::{MissingKey, Quota, RateLimit, Rule, Strategy};
use tokio::time::advance;

use crate::{STRATEGIES, admit, from, per_user};

fn unsent() -> End {
    End::new(Verdict::Unsent)
}

#[tokio::test(start_paused = true)]
async fn reading_consumes_nothing() {
    for strategy in STRATEGIES {
        let rule = per_user(Quota::per_minute(6)).strategy(strategy);
        let limit = RateLimit::rules([rule]).unwrap();
        let (handle, alice) = (limit.handle(), Key::from("alice"));
        for _ in 0..4 {
            admit(&limit, &from("alice"), now()).unwrap();
        }
        let first = handle.peek("per_user", &alice).unwrap();
        for _ in 0..100 {
            assert_eq!(handle.peek("per_user", &alice).unwrap(), first);
            let all = handle.peek_all(&(&from("alice")).into());
            assert_eq!(all, std::slice::from_ref(&first));
            assert_eq!(handle.peek("per_user", &"bob".into()).unwrap().remaining, 6);
        }
        assert_eq!((first.limit, first.holds, first.remaining), (6, 6, 2));
        assert_eq!(
            (first.strategy, first.window),
            (strategy, Duration::from_secs(60))
        );
        let reset = match strategy {
            Strategy::TokenBucket => 40,
            Strategy::FixedWindow => 60,
            _ => 120,
        };
        assert_eq!(first.reset_after, Duration::from_secs(reset));
        assert_eq!(
            handle.snapshot().rules[0].keys,
            1,
            "bob was only looked for"
        );
        assert_eq!(handle.peek("no_such_rule", &alice), None);

        advance(first.reset_after).await;
        assert_eq!(handle.peek("per_user", &alice).unwrap().remaining, 6);
    }
}

#[test]
fn resetting_a_key_touches_no_other() {
    let limit = RateLimit::rules([
        Rule::new("global", Quota::per_day(100)),
        per_user(Quota::per_day(2)),
        Rule::new("tokens", Quota::per_day(90))
            .key(palisade_core::key::header("x-user-id"))
            .cost(|_| 10),
    ])
    .unwrap();
    let handle = limit.handle();
    // The seed reset user:10 with user:1.
    let users = ["user:1", "user:10", "user:*", "*"];
    for user in users {
        admit(&limit, &from(user), now()).unwrap();
        admit(&limit, &from(user), now()).unwrap();
        assert!(admit(&limit, &from(user), now()).is_err());
    }
    assert_eq!(handle.reset(Some("per_user"), &"*".into()), 1);
    assert_eq!(handle.reset(Some("per_user"), &"user:1".into()), 1);
    assert_eq!(handle.reset(None, &"user:1".into()), 1, "tokens");
    assert_eq!(handle.reset(None, &"user:1".into()), 0);
    assert_eq!(handle.reset(Some("no_such_rule"), &"user:10".into()), 0);
    let left = users.map(|user| handle.peek_all(&(&from(user)).into()));
    let left = left.map(|states| {
        states
            .iter()
            .map(|state| state.remaining)
            .collect::<Vec<_>>()
    });
    assert_eq!(left, [[92, 2, 90], [92, 0, 70], [92, 0, 70], [92, 2, 70]]);

    assert!(handle.reset_shared("global"));
    assert!(!handle.reset_shared("global"));
    assert!(!handle.reset_shared("no_such_rule"));
    assert_eq!(
        handle.peek("global", &"anyone".into()).unwrap().remaining,
        100
    );
}

#[test]
fn what_was_reset_is_not_given_back_once_more() {
    for strategy in [Strategy::FixedWindow, Strategy::SlidingWindow] {
        let rule = per_user(Quota::per_day(2)).strategy(strategy);
        let (limit, at) = (RateLimit::rules([rule]).unwrap(), now());
        let mut early = admit(&limit, &from("alice"), at).unwrap();
        limit.handle().reset(None, &"alice".into());
        let mut late = admit(&limit, &from("alice"), at).unwrap();
        admit(&limit, &from("alice"), at).unwrap();
        early.settle(&unsent(), at);
        assert!(admit(&limit, &from("alice"), at).is_err());
        late.settle(&unsent(), at);
        assert!(admit(&limit, &from("alice"), at).is_ok());
        assert!(admit(&limit, &from("alice"), at).is_err());
    }
}

#[test]
fn a_rule_that_does_not_apply_is_not_among_those_that_do() {
    let limit = RateLimit::rules([
        per_user(Quota::per_day(2)).missing_key(MissingKey::Skip),
        Rule::new("global", Quota::per_day(5)),
    ])
    .unwrap();
    let names = |request: Request<()>| {
        let states = limit.handle().peek_all(&(&request).into());
        states
            .iter()
            .map(|state| state.rule.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(Request::new(())), ["global"]);
    assert_eq!(names(from("alice")), ["per_user", "global"]);
}
