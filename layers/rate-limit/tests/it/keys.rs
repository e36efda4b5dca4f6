use std::time::Duration;

use palisade_core::{key::Key, time::now};
use palisade_rate_limit::{Headers, Quota, RateLimit};

use crate::{STRATEGIES, admit, from, per_user};

#[test]
fn each_key_has_its_own_quota() {
    for strategy in STRATEGIES {
        let rule = per_user(Quota::per_minute(3)).strategy(strategy);
        let (limit, at) = (RateLimit::rules([rule]).unwrap(), now());
        for user in ["alice", "bob", "ali", "ce"] {
            let passed = (0..9).filter(|_| admit(&limit, &from(user), at).is_ok());
            assert_eq!(passed.count(), 3, "{user}");
        }
    }
}

#[test]
fn a_flood_of_invented_keys_shares_one_quota_and_busy_keys_keep_theirs() {
    for strategy in STRATEGIES {
        let rule = per_user(Quota::per_hour(10))
            .strategy(strategy)
            .capacity(100);
        let limit = RateLimit::rules([rule]).unwrap().headers(Headers::Off);
        let at = now();
        for _ in 0..10 {
            admit(&limit, &from("alice"), at).unwrap();
        }
        let invented = (0..5000).map(|key| from(&format!("invented {key}")));
        let passed = invented.filter(|request| admit(&limit, request, at).is_ok());
        assert_eq!(passed.count(), 99 + 10, "{strategy:?}");
        assert!(admit(&limit, &from("alice"), at).is_err());

        let snapshot = limit.handle().snapshot();
        let rule = &snapshot.rules[0];
        assert_eq!((rule.keys, rule.capacity), (100, 100));
        assert_eq!((rule.admitted, rule.refused), (119, 4892));
        // Shards of at least eight seats, of 32 bytes each.
        assert!(
            rule.bytes <= 80 * 100 + 32 * (64 + 8 * 32),
            "{}",
            rule.bytes
        );
    }
}

#[test]
fn who_has_all_of_the_quota_again_makes_room() {
    for strategy in STRATEGIES {
        let rule = per_user(Quota::per_second(2))
            .strategy(strategy)
            .capacity(50);
        let (limit, at) = (RateLimit::rules([rule]).unwrap(), now());
        for user in 0..50 {
            admit(&limit, &from(&format!("{user}")), at).unwrap();
        }
        // Two windows later, with every strategy. A newcomer looks at a few seats only, so some try twice.
        let later = at + Duration::from_secs(3);
        for newcomer in 0..1000 {
            let _ = admit(&limit, &from(&format!("new {newcomer}")), later);
        }
        let handle = limit.handle();
        let held = (0..1000).filter(|newcomer| {
            let key = format!("new {newcomer}");
            let key = Key::from(&*key);
            handle.reset(None, &key) == 1
        });
        assert_eq!(held.count(), 50, "{strategy:?}");
        assert_eq!(handle.snapshot().rules[0].keys, 0);
    }
}
