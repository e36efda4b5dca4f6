//! What is left in the server, and what is not.

use std::time::Duration;

use palisade_rate_limit::{
    RedisConfig, RedisStore,
    testing::{self, Ask, Full, Plan},
};

use crate::support::{self, Server, connected, connection, dump, refused, store, window};

const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;

/// One of each kind, with so many in about an hour.
fn plans(limit: u64) -> [Plan; 5] {
    let window = window();
    [
        Plan::token_bucket(window / limit, limit),
        Plan::fixed_window(limit, window),
        Plan::sliding_window(limit, window, 1000),
        Plan::sliding_log(limit, window),
        Plan::in_flight(limit),
    ]
}

fn asks(store: &RedisStore, key: &str, limit: u64) -> Vec<Ask> {
    let rules = plans(limit).into_iter().zip(["a", "b", "c", "d", "e"]);
    let rules = rules.zip(1..);
    rules
        .map(|((plan, rule), ticket)| Ask::new(store, rule, Some(key), plan).ticket(ticket))
        .collect()
}

async fn assert_all_expire(redis: &mut redis::aio::MultiplexedConnection, why: &str) {
    for (key, _, ends) in dump(redis).await {
        assert!(ends > 0, "{key} never expires, {why}");
    }
}

#[tokio::test]
async fn every_key_expires_whatever_was_done_to_it() {
    let server = Server::start();
    let (store, mut redis) = (store(&server).await, connection(&server).await);
    let asks = asks(&store, "k", 5);
    for ask in &asks {
        let answers = testing::take(&store, std::slice::from_ref(ask))
            .await
            .unwrap();
        assert_all_expire(&mut redis, "when it was taken from").await;
        let at = answers[0].at;
        for used in [0, 1, 3] {
            testing::settle(&store, &[ask.used(at, used)])
                .await
                .unwrap();
            assert_all_expire(&mut redis, "when it was settled").await;
            testing::take(&store, std::slice::from_ref(ask))
                .await
                .unwrap();
        }
        testing::settle(&store, &[ask.used(at, 1).drain()])
            .await
            .unwrap();
        assert_all_expire(&mut redis, "when it was drained").await;
        testing::reset(&store, std::slice::from_ref(ask))
            .await
            .unwrap();
        testing::settle(&store, &[ask.used(at, 9)]).await.unwrap();
        assert_all_expire(&mut redis, "when it was charged afterwards").await;
        testing::lease(&store, ask, 3).await.unwrap();
        assert_all_expire(&mut redis, "when it was leased from").await;
    }
    let numbers = testing::Numbers {
        limits: [10, 1, 100],
        factors: [1.2, 0.8, 0.95, 0.1],
        samples: 1,
        interval: SECOND,
    };
    testing::adapt(&store, "r", (1, 0), numbers).await.unwrap();
    assert_all_expire(&mut redis, "when it was adapted").await;
    assert!(dump(&mut redis).await.len() >= asks.len());
    for key in ["palisade:{probe}", "palisade:{replicas}"] {
        let ends: i64 = redis::cmd("PTTL")
            .arg(key)
            .query_async(&mut redis)
            .await
            .unwrap();
        assert_ne!(ends, -1, "{key} never expires");
    }
}

#[tokio::test]
async fn keys_expire_when_nothing_is_used_any_more() {
    let server = Server::start();
    let (store, mut redis) = (store(&server).await, connection(&server).await);
    let millis = 1_000_000;
    let plans = [
        Plan::token_bucket(10 * millis, 10),
        Plan::fixed_window(10, 100 * millis),
        Plan::sliding_window(10, 100 * millis, 1000),
        Plan::sliding_log(10, 100 * millis),
    ];
    for (plan, least, most) in [
        (plans[0], 50, 52),
        (plans[1], 1, 102),
        (plans[2], 100, 202),
        (plans[3], 99, 102),
    ] {
        let ask = Ask::new(&store, "r", Some("k"), plan).cost(5);
        testing::take(&store, &[ask]).await.unwrap();
        let [(key, ..)] = &dump(&mut redis).await[..] else {
            panic!("one key");
        };
        let ends: i64 = redis::cmd("PTTL")
            .arg(key)
            .query_async(&mut redis)
            .await
            .unwrap();
        // Some time has passed since.
        assert!(
            (least - 50..=most).contains(&ends),
            "{key} ends in {ends} ms"
        );
        while !dump(&mut redis).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn a_denial_and_a_look_leave_every_key_as_it_was() {
    let server = Server::start();
    let (store, mut redis) = (store(&server).await, connection(&server).await);
    let all = asks(&store, "k", 3);
    for _ in 0..2 {
        assert!(!refused(&store, &all).await);
    }
    testing::take(&store, &all[..1]).await.unwrap();
    let before = dump(&mut redis).await;
    assert_eq!(before.len(), 5);

    let answers = testing::take(&store, &all).await.unwrap();
    let full: Vec<_> = answers.iter().map(|answer| answer.full.is_some()).collect();
    assert_eq!(full, [true, false, false, false, false]);
    assert!(refused(&store, &[all[1].clone().cost(4)]).await);
    testing::peek(&store, &all).await.unwrap();
    testing::settle(&store, &[all[1].used(answers[1].at, 1)])
        .await
        .unwrap();
    assert_eq!(dump(&mut redis).await, before);
}

#[tokio::test]
async fn all_rules_are_taken_from_or_none_whatever_their_order() {
    let server = Server::start();
    let store = store(&server).await;
    let limits = [4, 3, 2, 5, 6];
    for first in 0..5 {
        let key = format!("k{first}");
        let mut rules: Vec<Ask> = (0..5)
            .map(|at| asks(&store, &key, limits[at]).swap_remove(at))
            .collect();
        rules.rotate_left(first);
        let mut admitted = 0;
        for ticket in 0..6 {
            let rules: Vec<_> = rules.iter().map(|ask| ask.clone().ticket(ticket)).collect();
            admitted += u64::from(!refused(&store, &rules).await);
        }
        assert_eq!(admitted, 2, "the least limit, from {first} on");
        let left = testing::peek(&store, &rules).await.unwrap();
        let mut left: Vec<_> = left.iter().map(|answer| answer.remaining).collect();
        left.rotate_right(first);
        assert_eq!(left, [2, 1, 0, 3, 4], "from {first} on");
    }
}

#[tokio::test]
async fn a_reset_forgets_one_key_and_no_other() {
    let server = Server::start();
    let store = store(&server).await;
    let keys = [
        "user:1", "user:10", "*", "user:*", "{user}", "{}", "a b", "",
    ];
    for key in keys {
        assert!(!refused(&store, &asks(&store, key, 2)).await);
    }
    let was = testing::reset(&store, &asks(&store, "user:1", 2))
        .await
        .unwrap();
    assert_eq!(was, [true; 5]);
    let was = testing::reset(&store, &asks(&store, "user:1", 2))
        .await
        .unwrap();
    assert_eq!(was, [false; 5]);
    testing::reset(&store, &asks(&store, "*", 2)).await.unwrap();
    for key in keys {
        let is_reset = matches!(key, "user:1" | "*");
        for answer in testing::peek(&store, &asks(&store, key, 2)).await.unwrap() {
            assert_eq!(answer.remaining, if is_reset { 2 } else { 1 }, "{key}");
        }
    }
}

#[tokio::test]
async fn rules_with_any_name_count_apart() {
    let server = Server::start();
    let store = store(&server).await;
    let window = window();
    let plans = [
        Plan::fixed_window(1, window),
        Plan::fixed_window(1, 7 * window),
        Plan::sliding_window(1, window, 1000),
    ];
    let alike = format!("a:f{}", window / 1000);
    for plan in plans {
        for rule in ["a", alike.as_str(), "a}", "{a}", "*", "a:"] {
            let ask = [Ask::new(&store, rule, Some("k"), plan)];
            assert!(!refused(&store, &ask).await, "{rule} of {plan:?}");
            assert!(refused(&store, &ask).await, "{rule} of {plan:?}");
        }
    }
}

#[tokio::test]
async fn no_key_of_a_caller_is_in_the_server_and_secrets_and_prefixes_tell_stores_apart() {
    let server = Server::start();
    let config = RedisConfig::new(&server.url()).unwrap();
    let configs = [
        config.clone(),
        config.clone().prefix("other"),
        config.clone().secret(b"s1"),
        config.clone().secret(b"s2"),
    ];
    let plan = Plan::token_bucket(window(), 1);
    for config in configs {
        let store = connected(config.deadline(Duration::from_secs(10))).await;
        assert!(!refused(&store, &[Ask::new(&store, "r", Some("sk-42"), plan)]).await);
        assert!(refused(&store, &[Ask::new(&store, "r", Some("sk-42"), plan)]).await);
    }
    let again = connected(config.secret(b"s1").deadline(Duration::from_secs(10))).await;
    assert!(refused(&again, &[Ask::new(&again, "r", Some("sk-42"), plan)]).await);
    let keys = server.cli(&["KEYS", "*:r:t"]);
    assert_eq!(keys.lines().count(), 4);
    assert!(!keys.contains("sk-42"));
}

#[tokio::test]
async fn a_server_that_forgets_its_scripts_is_told_them_again() {
    let server = Server::start();
    let store = store(&server).await;
    let asks = asks(&store, "k", 100);
    for _ in 0..10 {
        server.cli(&["SCRIPT", "FLUSH"]);
        assert!(!refused(&store, &asks[..4]).await);
        server.cli(&["SCRIPT", "FLUSH"]);
        testing::settle(&store, &[asks[1].used(0, 1).drain()])
            .await
            .unwrap();
        testing::reset(&store, &asks[1..2]).await.unwrap();
    }
    let left = testing::peek(&store, &asks[..4]).await.unwrap();
    let left: Vec<_> = left.iter().map(|answer| answer.remaining).collect();
    assert_eq!(left[2..], [90, 90], "each was counted once");
    assert_eq!(store.state().errors, 0);
}

#[tokio::test]
async fn a_clock_that_steps_back_refills_nothing_and_locks_nobody_out_for_longer_than_a_window() {
    const START: u64 = 1_700_000_000_000_000;
    const HOUR: u64 = 3_600_000_000;
    let server = Server::start();
    let store = store(&server).await;
    let hour = HOUR * 1000;
    let plans = [
        Plan::token_bucket(hour / 10, 10),
        Plan::fixed_window(10, hour),
        Plan::sliding_window(10, hour, 1000),
        Plan::sliding_log(10, hour),
    ];
    for back in [1, HOUR / 3, HOUR, 24 * HOUR] {
        for (at, plan) in plans.into_iter().enumerate() {
            let ask = Ask::new(&store, "r", Some(&format!("{at} {back}")), plan);
            let all = [ask.clone().cost(10)];
            testing::set_clock(&store, Some(START));
            assert!(!refused(&store, &all).await);
            testing::set_clock(&store, Some(START - back));
            let answer = testing::peek(&store, std::slice::from_ref(&ask))
                .await
                .unwrap()[0];
            assert_eq!(answer.remaining, 0, "{plan:?} {back} µs back");
            let answer = testing::take(&store, std::slice::from_ref(&ask))
                .await
                .unwrap()[0];
            let Some(Full::For(wait)) = answer.full else {
                panic!("{plan:?} has refilled {back} µs back");
            };
            // A sliding window lets in the first when a tenth of the next window has passed.
            assert!(wait <= hour + hour / 10, "{plan:?} {back} µs back: {wait}");
            let later = START - back + wait.div_ceil(1000);
            testing::set_clock(&store, Some(later - 1));
            assert!(refused(&store, std::slice::from_ref(&ask)).await);
            testing::set_clock(&store, Some(later));
            assert!(
                !refused(&store, std::slice::from_ref(&ask)).await,
                "{plan:?} {back} µs back"
            );
        }
    }
}

#[tokio::test]
async fn a_place_in_flight_is_freed_once_and_by_its_ticket() {
    let server = Server::start();
    let (store, mut redis) = (store(&server).await, connection(&server).await);
    let ask = |ticket| [Ask::new(&store, "r", Some("k"), Plan::in_flight(3)).ticket(ticket)];
    for ticket in [1, u64::MAX, 7] {
        assert!(!refused(&store, &ask(ticket)).await);
    }
    assert!(refused(&store, &ask(8)).await);
    for _ in 0..2 {
        testing::settle(&store, &[ask(u64::MAX)[0].used(0, 0)])
            .await
            .unwrap();
    }
    assert!(!refused(&store, &ask(9)).await);
    assert!(refused(&store, &ask(10)).await, "freed once");

    let two = [ask(1)[0].clone(), ask(7)[0].clone(), ask(9)[0].clone()];
    testing::settle(&store, &two.map(|ask| ask.used(0, 0)))
        .await
        .unwrap();
    let heavy = ask(20)[0].clone().cost(3);
    assert!(!refused(&store, std::slice::from_ref(&heavy)).await);
    assert!(refused(&store, &ask(21)).await);
    testing::settle(&store, &[heavy.used(0, 0)]).await.unwrap();
    assert_eq!(dump(&mut redis).await, []);
}

#[tokio::test]
async fn a_place_in_flight_that_nobody_renews_is_free_after_half_a_minute() {
    const START: u64 = 1_700_000_000_000_000;
    let server = Server::start();
    let store = store(&server).await;
    let ask = |ticket| [Ask::new(&store, "r", None, Plan::in_flight(1)).ticket(ticket)];
    testing::set_clock(&store, Some(START));
    assert!(!refused(&store, &ask(1)).await);
    testing::set_clock(&store, Some(START + 30_000_000 - 1));
    assert!(refused(&store, &ask(2)).await);
    testing::set_clock(&store, Some(START + 30_000_000));
    assert!(!refused(&store, &ask(2)).await);
}

#[tokio::test]
async fn what_is_left_of_a_dropped_request_for_a_place_is_freed() {
    let server = Server::start();
    let store = store(&server).await;
    let ask = |ticket| vec![Ask::new(&store, "r", None, Plan::in_flight(1)).ticket(ticket)];
    for ticket in 1..100 {
        let asks = ask(ticket);
        let taken = testing::take(&store, &asks);
        // Sent, and nobody waits for the answer.
        let _ = futures_util::FutureExt::now_or_never(taken);
    }
    let is_free = async {
        while refused(&store, &ask(100)).await {
            tokio::task::yield_now().await;
        }
    };
    let is_free = tokio::time::timeout(Duration::from_secs(5), is_free);
    is_free.await.expect("the place is free");
    assert_eq!(store.state().jobs_lost, 0);
}

#[tokio::test]
async fn keys_that_others_have_written_to_hold_nothing_and_harm_nobody() {
    let server = Server::start();
    let store = store(&server).await;
    let good = |at: usize| Ask::new(&store, "good", Some(&at.to_string()), plans(5)[1]);
    let foreign: [&[&str]; 5] = [
        &["SET", "word"],
        &["SET", "aaaaaaaaaaaaaaaaaaaaaaaa"],
        &["ZADD", "1", "member"],
        &["ZADD", "9e15", "member"],
        &["RPUSH", "element"],
    ];
    let mut asked = 0;
    for write in foreign {
        let all = asks(&store, "k", 5);
        assert!(!refused(&store, &all).await);
        let keys = server.cli(&["KEYS", "*"]);
        let keys: Vec<_> = keys.lines().filter(|key| !key.contains("good")).collect();
        let keys = keys
            .into_iter()
            .filter(|key| !key.contains("{probe}") && !key.contains("{replicas}"));
        let foul = || {
            for key in keys.clone() {
                server.cli(&["DEL", key]);
                server.cli(&[&[write[0], key], &write[1..]].concat());
            }
        };
        for ask in &all {
            foul();
            assert!(
                !refused(&store, std::slice::from_ref(ask)).await,
                "{ask:?} {write:?}"
            );
            assert!(
                !refused(&store, std::slice::from_ref(ask)).await,
                "{ask:?} {write:?}"
            );
            foul();
            let at = wall_clock_nanos();
            let settled = [ask.used(at, 0), good(asked).used(at, 3)];
            testing::settle(&store, &settled).await.unwrap();
            let left = testing::peek(&store, &[good(asked)]).await.unwrap()[0].remaining;
            assert_eq!(left, 3, "{ask:?} {write:?}");
            asked += 1;
        }
        foul();
        // Enough to be sent together.
        let decisions = (0..40).map(async |at| {
            let ask = match all.get(at % 10) {
                Some(ask) => ask.clone().ticket(1000 + at as u64),
                None => good(10_000 * asked + at),
            };
            testing::take(&store, &[ask]).await.unwrap();
        });
        futures_util::future::join_all(decisions).await;
        testing::reset(&store, &all).await.unwrap();
    }
    let state = store.state();
    assert_eq!((state.errors, state.trips), (0, 0), "{state:?}");
}

fn wall_clock_nanos() -> u64 {
    let now = palisade_core::time::wall_clock();
    let since = now.duration_since(std::time::UNIX_EPOCH).unwrap();
    since.as_nanos() as u64
}

#[tokio::test]
async fn the_largest_numbers_are_counted_exactly() {
    let server = Server::start();
    let store = store(&server).await;
    // In the middle of every window.
    testing::set_clock(&store, Some(9_000_000_000_000_000 - 29_999_999));
    // Of 2^53: the largest quotas that there are.
    let burst = (1 << 53) / 2_100_000;
    let plans = [
        (Plan::token_bucket(2_100_000, burst), burst),
        (
            Plan::fixed_window(999_999_999_999_999, MINUTE),
            999_999_999_999_999,
        ),
        (
            Plan::sliding_window(90_000_000, 100 * SECOND, 1000),
            90_000_000,
        ),
        (
            Plan::sliding_window(999_999_999_999_999, MINUTE, 10 * SECOND),
            999_999_999_999_999,
        ),
    ];
    for (plan, limit) in plans {
        let ask = Ask::new(&store, "r", Some("k"), plan);
        assert!(
            !refused(&store, &[ask.clone().cost(limit - 1)]).await,
            "{plan:?}"
        );
        let left = testing::peek(&store, std::slice::from_ref(&ask))
            .await
            .unwrap()[0];
        assert_eq!((left.remaining, left.full), (1, None), "{plan:?}");
        assert!(refused(&store, &[ask.clone().cost(2)]).await, "{plan:?}");
        assert!(
            !refused(&store, std::slice::from_ref(&ask)).await,
            "{plan:?}"
        );
        assert!(
            refused(&store, std::slice::from_ref(&ask)).await,
            "{plan:?}"
        );
        let never = testing::take(&store, &[ask.cost(limit + 1)]).await.unwrap()[0];
        assert_eq!(never.full, Some(Full::Forever));
    }
}

#[tokio::test]
async fn a_lease_is_a_fair_share_when_there_is_little_and_never_less_than_the_cost() {
    let server = Server::start();
    let first = support::store(&server).await;
    for (at, plan) in plans(100).into_iter().take(4).enumerate() {
        let ask = Ask::new(&first, "r", Some(&format!("k{at}")), plan).cost(2);
        let lease = async |want| testing::lease(&first, &ask, want).await.unwrap();
        let (granted, answer) = lease(64).await;
        assert_eq!((granted, answer.remaining, answer.full), (64, 36, None));
        assert_eq!(lease(64).await.0, 36);
        let (granted, answer) = lease(64).await;
        assert_eq!(granted, 0);
        assert!(answer.full.is_some());
    }

    let second = support::store(&server).await;
    support::until(|| first.state().replicas == 2 && second.state().replicas == 2).await;
    for (at, plan) in plans(100).into_iter().take(4).enumerate() {
        let ask = Ask::new(&first, "shared", Some(&format!("k{at}")), plan).cost(10);
        let mut granted = Vec::new();
        while let (some @ 1.., _) = testing::lease(&first, &ask, 64).await.unwrap() {
            granted.push(some);
        }
        assert_eq!(
            granted,
            [50, 25, 12, 10],
            "half of what there is, and the cost"
        );
    }
}
