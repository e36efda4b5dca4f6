//! Requests that wait in the lines of several rules.

use std::time::Duration;

use palisade_core::key;
use palisade_rate_limit::{Quota, Rule};
use tokio::time::{advance, sleep};

use crate::{
    from,
    pacing::{Gatekeeper, MS, at, one_in, paced},
    per_user,
};

#[tokio::test(start_paused = true)]
async fn of_several_rules_each_has_its_line_and_a_newcomer_jumps_none() {
    for global_first in [false, true] {
        let mut rules = vec![per_user(one_in(150)), Rule::new("global", one_in(100))];
        if global_first {
            rules.reverse();
        }
        let limit = paced(rules);
        let line = Gatekeeper::new(&limit);
        line.comes("alice", from("alice")).await;
        sleep(MS * 10).await;
        // Longer than global does: a line of her own.
        line.comes("alice again", from("alice")).await;
        sleep(MS * 10).await;
        line.comes("bob", from("bob")).await;
        line.comes("carol", from("carol")).await;
        sleep(MS * 140).await;
        // She has quota again since 150, and waits for global: before those who come now.
        line.comes("dave", from("dave")).await;
        line.comes("erin", from("erin")).await;
        sleep(MS * 2000).await;
        let mut passed = line.passed();
        assert_eq!(passed[..2], at(&[("alice", 0), ("bob", 100)]));
        let (middle, last) = passed[2..].split_at_mut(2);
        middle.sort();
        let times: Vec<_> = last.iter().map(|(name, at)| (&**name, *at)).collect();
        assert_eq!(times, [("dave", 400), ("erin", 500)], "{global_first}");
        let names = [&*middle[0].0, &*middle[1].0];
        assert_eq!(names, ["alice again", "carol"]);
        assert_eq!(middle[0].1 + middle[1].1, 200 + 300);
        assert_eq!(limit.handle().snapshot().waiting, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_one_rule_after_another_is_not_jumped_in_the_millisecond_of_its_turn() {
    for global_first in [false, true] {
        let global = Quota::new(1, Duration::from_micros(100_300)).unwrap();
        let mut rules = vec![per_user(one_in(150)), Rule::new("global", global)];
        if global_first {
            rules.reverse();
        }
        let line = Gatekeeper::new(&paced(rules));
        line.comes("alice", from("alice")).await;
        sleep(MS * 10).await;
        line.comes("alice again", from("alice")).await;
        advance(Duration::from_micros(90_400)).await;
        line.comes("bob", from("bob")).await;
        sleep(MS * 60).await;
        // Global has one a hundred and some milliseconds after bob, before her timer rings.
        advance(MS * 201 - line.start.elapsed() - Duration::from_micros(100)).await;
        line.comes("dave", from("dave")).await;
        sleep(MS * 500).await;
        // Timers ring by whole milliseconds, so that times may be one later.
        let names: Vec<_> = line.passed().into_iter().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            ["alice", "bob", "alice again", "dave"],
            "{global_first}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_in_two_lines_is_one_that_waits() {
    let rules = [per_user(one_in(100)), Rule::new("global", one_in(100))];
    let limit = paced(rules).wait_up_to(MS * 5000, 3);
    let line = Gatekeeper::new(&limit);
    line.comes("0", from("alice")).await;
    line.comes("1", from("bob")).await;
    line.comes("2", from("alice")).await;
    line.comes("3", from("alice")).await;
    assert_eq!(limit.handle().snapshot().waiting, 3);
    line.comes("4", from("alice")).await;
    sleep(MS * 5000).await;
    let passed = line.passed();
    assert_eq!(passed[..2], at(&[("0", 0), ("not 4", 0)]));
    assert_eq!(passed.len(), 5);
    assert_eq!(passed[4].1, 300);
    assert_eq!(limit.handle().snapshot().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn crossing_lines_wait_for_nobody_in_a_circle() {
    // Each request waits in a line of the one rule for who waits in a line of the other.
    let rules = [
        Rule::new("first", one_in(30)).key(key::header("x-user-id")),
        Rule::new("second", one_in(50)).key(key::header("x-peer-id")),
        Rule::new("third", one_in(10)),
    ];
    let limit = paced(rules).wait_up_to(MS * 60_000, 1000);
    let line = Gatekeeper::new(&limit);
    let names = ["a", "b", "c"];
    for turn in 0..60 {
        let mut request = from(names[turn % 3]);
        let peer = http::HeaderValue::from_static(names[(turn / 3) % 3]);
        request.headers_mut().insert("x-peer-id", peer);
        line.comes(&turn.to_string(), request).await;
        sleep(MS).await;
    }
    sleep(MS * 30_000).await;
    let passed = line.passed();
    assert_eq!(passed.len(), 60);
    assert!(passed.iter().all(|(name, _)| !name.starts_with("not")));
    // As fast as the slowest rule lets them, within a factor of two: 20 for each peer, one in 50 ms.
    assert!(passed[59].1 <= 2 * 20 * 50, "{}", passed[59].1);
    assert_eq!(limit.handle().snapshot().waiting, 0);
}
