//! What was wrong with the limiter that this one comes from, as far as it was about Redis.

use http::Request;
use palisade_core::{
    gate::{Admit, Gate},
    key::{self, Key},
    reject::{Reason, Rejected},
    time::now,
};
use palisade_rate_limit::{
    OnStoreError, Quota, RateLimit, RedisConfig, RedisStore, Reservation, Rule, Strategy,
};
use tokio::task::JoinSet;

use crate::support::{Server, connection, dump, store, until};

const STRATEGIES: [Strategy; 4] = [
    Strategy::TokenBucket,
    Strategy::FixedWindow,
    Strategy::SlidingWindow,
    Strategy::SlidingLog,
];

fn per_user(strategy: Strategy, limit: u64) -> Rule {
    Rule::new("per_user", Quota::per_hour(limit))
        .strategy(strategy)
        .key(key::header("x-user-id"))
}

fn limit(store: &RedisStore, rule: Rule) -> RateLimit {
    let limit = RateLimit::rules([rule]).unwrap();
    limit.store(store).unwrap()
}

async fn ask(limit: &RateLimit, user: &str) -> Result<Reservation, Rejected> {
    let request = Request::builder().header("x-user-id", user);
    let request = request.body(()).unwrap();
    match limit.admit(&(&request).into(), now()) {
        Admit::Now(decided) => decided,
        Admit::Later(decided) => decided.await,
    }
}

async fn admitted(limit: &RateLimit, user: &str, requests: usize) -> usize {
    let mut admitted = 0;
    for _ in 0..requests {
        admitted += usize::from(ask(limit, user).await.is_ok());
    }
    admitted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_01_concurrent_requests_lose_no_update() {
    let server = Server::start();
    let store = store(&server).await;
    for strategy in STRATEGIES {
        let limit = limit(&store, per_user(strategy, 100));
        let mut tasks = JoinSet::new();
        for _ in 0..500 {
            let limit = limit.clone();
            tasks.spawn(async move { ask(&limit, strategy.name()).await.is_ok() });
        }
        let passed = tasks.join_all().await;
        let passed = passed.into_iter().filter(|passed| *passed).count();
        assert_eq!(passed, 100, "{strategy:?}");
    }
}

#[tokio::test]
async fn seed_02_what_was_written_is_read_back() {
    let server = Server::start();
    for strategy in STRATEGIES {
        // A store of its own for each, which has nothing in memory.
        let mut passed = 0;
        for _ in 0..5 {
            let store = store(&server).await;
            let limit = limit(&store, per_user(strategy, 5));
            passed += admitted(&limit, strategy.name(), 10).await;
        }
        assert_eq!(passed, 5, "{strategy:?}");
    }
}

#[tokio::test]
async fn seed_05_a_refusal_costs_one_trip_at_most_and_keeps_no_key_alive() {
    let server = Server::start();
    let (store, mut redis) = (store(&server).await, connection(&server).await);
    for strategy in STRATEGIES {
        let limit = limit(&store, per_user(strategy, 3));
        assert_eq!(admitted(&limit, strategy.name(), 3).await, 3);
        let (before, checks) = (dump(&mut redis).await, store.state().checks);
        assert_eq!(admitted(&limit, strategy.name(), 100).await, 0);
        // One in a second, for as long as this takes.
        assert!(store.state().checks <= checks + 5, "{strategy:?}");
        assert_eq!(dump(&mut redis).await, before, "{strategy:?}");
    }
}

#[tokio::test]
async fn seed_06_every_key_has_an_end_and_none_goes_below_zero() {
    let server = Server::start();
    let (store, mut redis) = (store(&server).await, connection(&server).await);
    let rule = Rule::new(
        "per_user",
        Quota::new(2, std::time::Duration::from_millis(50)).unwrap(),
    );
    let rule = rule
        .strategy(Strategy::FixedWindow)
        .key(key::header("x-user-id"));
    let limit = limit(&store, rule);
    assert!(admitted(&limit, "alice", 20).await >= 2);
    for (key, _, ends) in dump(&mut redis).await {
        assert!(ends > 0, "{key} never ends");
    }
    // Given back after the window is over, it leaves nothing behind.
    let late = ask(&limit, "bob").await.unwrap();
    until(|| server.cli(&["DBSIZE"]).parse::<u64>().unwrap() <= 2).await;
    let mut late = late;
    let end = palisade_core::settle::End::new(palisade_core::classify::Verdict::Unsent);
    palisade_core::settle::Settle::finish(&mut late, &end, now());
    drop(late);
    let left = limit.handle().peek_store("per_user", &"bob".into()).await;
    assert_eq!(left.unwrap().unwrap().remaining, 2);
    for (key, _, ends) in dump(&mut redis).await {
        assert!(ends > 0, "{key} never ends");
    }
}

#[tokio::test]
async fn seed_07_the_clock_is_that_of_the_server() {
    let server = Server::start();
    let (one, other) = (store(&server).await, store(&server).await);
    for strategy in STRATEGIES {
        let both = [
            limit(&one, per_user(strategy, 4)),
            limit(&other, per_user(strategy, 4)),
        ];
        // Whatever their own clocks say: these started at other times.
        let mut passed = 0;
        for turn in 0..10 {
            passed += admitted(&both[turn % 2], strategy.name(), 1).await;
        }
        assert_eq!(passed, 4, "{strategy:?}");
    }
}

#[tokio::test]
async fn seed_09_looking_takes_nothing() {
    let server = Server::start();
    let (store, mut redis) = (store(&server).await, connection(&server).await);
    for strategy in STRATEGIES {
        let limit = limit(&store, per_user(strategy, 3));
        assert_eq!(admitted(&limit, strategy.name(), 1).await, 1);
        let before = dump(&mut redis).await;
        for _ in 0..20 {
            let state = limit.handle();
            let state = state.peek_store("per_user", &strategy.name().into()).await;
            assert_eq!(state.unwrap().unwrap().remaining, 2, "{strategy:?}");
        }
        assert_eq!(dump(&mut redis).await, before);
        assert_eq!(admitted(&limit, strategy.name(), 5).await, 2);
    }
}

#[tokio::test]
async fn seed_13_a_reset_is_of_one_key_and_one_rule() {
    let server = Server::start();
    let store = store(&server).await;
    let limit = RateLimit::rules([
        per_user(Strategy::FixedWindow, 1),
        Rule::new("per_hour", Quota::per_hour(1)).key(key::header("x-user-id")),
    ]);
    let limit = limit.unwrap().store(&store).unwrap();
    let users = ["user:1", "user:10", "*", "user:*", "{user}"];
    for user in users {
        assert_eq!(admitted(&limit, user, 2).await, 1, "{user}");
    }
    let handle = limit.handle();
    let reset = async |rule, user: &str| handle.reset_store(rule, &Key::from(user)).await;
    assert_eq!(reset(Some("per_user"), "user:1").await, Ok(1));
    assert_eq!(reset(None, "*").await, Ok(2));
    assert_eq!(admitted(&limit, "*", 2).await, 1);
    for user in ["user:1", "user:10", "user:*", "{user}"] {
        assert_eq!(
            admitted(&limit, user, 1).await,
            0,
            "{user} by one rule or both"
        );
    }
    let left = async |rule| {
        let state = handle.peek_store(rule, &"user:1".into()).await;
        state.unwrap().unwrap().remaining
    };
    assert_eq!((left("per_user").await, left("per_hour").await), (1, 0));
}

#[tokio::test]
async fn seed_14_a_server_that_fails_is_a_matter_of_policy_and_costs_are_weighed() {
    let mut server = Server::start();
    let store = store(&server).await;
    let dear = per_user(Strategy::FixedWindow, 10).cost(|_| 4);
    assert_eq!(admitted(&limit(&store, dear), "alice", 5).await, 2);
    server.kill();
    until(|| !store.state().up).await;
    let policy = |policy| {
        limit(
            &store,
            per_user(Strategy::FixedWindow, 3).on_store_error(policy),
        )
    };
    assert_eq!(admitted(&policy(OnStoreError::Allow), "bob", 9).await, 9);
    assert_eq!(
        admitted(&policy(OnStoreError::LocalShare), "bob", 9).await,
        3
    );
    let refused = ask(&policy(OnStoreError::Deny), "bob").await.unwrap_err();
    assert_eq!(refused.reason(), Reason::StoreUnavailable);
    assert_eq!(refused.reason().status(), 503);
}

#[tokio::test]
async fn seed_17_no_key_reaches_into_another_rule() {
    let server = Server::start();
    let config = RedisConfig::new(&server.url()).unwrap().prefix("a:b");
    let store =
        crate::support::connected(config.deadline(std::time::Duration::from_secs(10))).await;
    let rule = |name: &str| {
        let rule = Rule::new(name, Quota::per_hour(1)).strategy(Strategy::FixedWindow);
        limit(&store, rule.key(key::header("x-user-id")))
    };
    let (plain, colon) = (rule("c"), rule("b:c"));
    for (limit, user) in [
        (&plain, "a:b"),
        (&colon, "a"),
        (&plain, "a"),
        (&colon, "a:b"),
        (&plain, "b:c"),
        (&plain, "}{"),
        (&colon, "}"),
        (&plain, "a:b:c"),
    ] {
        assert_eq!(admitted(limit, user, 2).await, 1, "{user}");
    }
}
