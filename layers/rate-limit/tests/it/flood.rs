//! Callers that invent keys.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::Empty;
use palisade_core::{
    key::{self, PeerAddr},
    testing::{Answers, CountingAllocator},
    time::now,
};
use palisade_rate_limit::{Headers, MissingKey, Quota, RateLimit, RateLimitLayer, Rule};
use tower::{Layer, Service};

use crate::{STRATEGIES, admit, from, per_user};

#[test]
fn a_million_invented_keys_stay_below_their_ceiling_and_change_nothing_for_a_busy_one() {
    // The most that a hundred thousand keys take, in shards that fill unevenly.
    const CEILING: usize = 10_500_000 + 32 * 128;

    let rule = per_user(Quota::per_day(7)).strategy(STRATEGIES[1]);
    let layer = RateLimitLayer::rules([rule]).unwrap().headers(Headers::Off);
    let mut service = layer.layer(Answers(|| Response::new(Empty::<Bytes>::new())));
    let handle = layer.handle();
    for _ in 0..5 {
        drop(service.call(from("alice")));
    }
    let before = handle.peek("per_user", &"alice".into()).unwrap();
    assert_eq!(before.remaining, 2);
    let mut request = from("");
    let mut most = 0;
    let mut allocated = 0;
    for key in 0..1_000_000_u32 {
        let value = Bytes::copy_from_slice(format!("{key:08x}").as_bytes());
        let value = HeaderValue::from_maybe_shared(value).unwrap();
        request.headers_mut().insert("x-user-id", value);
        let counted = CountingAllocator::count();
        let admitted = admit(layer.gate(), &request, now());
        if admitted.is_ok() {
            // A refusal costs two, which are dropped again.
            allocated += CountingAllocator::count() - counted;
        }
        if key % 100_000 == 0 {
            most = most.max(handle.snapshot().rules[0].bytes);
        }
    }
    let rule = handle.snapshot().rules.remove(0);
    most = most.max(rule.bytes);
    assert!(most <= CEILING, "{most} bytes");
    assert_eq!((rule.keys, rule.capacity), (100_000, 100_000));
    assert_eq!(
        rule.admitted,
        5 + 99_999 + 7,
        "one for each seat, and what all others share"
    );
    // Nothing is kept for a key but its seat: tables of 32 shards that grow by doubling from eight seats.
    assert!(allocated <= 32 * 11, "{allocated} allocations");
    println!("{most} bytes for a million keys, {allocated} allocations");
    let after = handle.peek("per_user", &"alice".into()).unwrap();
    assert_eq!((after.remaining, after.limit), (2, 7));
    assert!((0..2).all(|_| admit(layer.gate(), &from("alice"), now()).is_ok()));
    assert!(admit(layer.gate(), &from("alice"), now()).is_err());
}

/// 20 a minute for each address, and 5 for each key that anybody may make up.
fn cumulative() -> RateLimit {
    let trusted = ["10.0.0.0/8".parse().unwrap()];
    let per_ip = Rule::new("per_ip", Quota::per_minute(20)).key(key::client_address(trusted));
    let per_key = Rule::new("per_key", Quota::per_minute(5)).key(key::api_key());
    let rules = [per_ip, per_key.missing_key(MissingKey::Skip)];
    RateLimit::rules(rules).unwrap().headers(Headers::Off)
}

fn coming(from: &str, key: Option<&str>, forwarded: Option<&str>) -> Request<()> {
    let mut request = Request::new(());
    let address: SocketAddr = from.parse().unwrap();
    request.extensions_mut().insert(PeerAddr(address));
    for (name, value) in [("x-api-key", key), ("x-forwarded-for", forwarded)] {
        if let Some(value) = value {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
    }
    request
}

#[test]
fn a_random_key_for_each_request_gains_nothing_over_the_rule_of_its_address() {
    let (limit, at) = (cumulative(), now());
    let passed = (0..1000).filter(|key| {
        let request = coming("192.0.2.1:999", Some(&key.to_string()), None);
        admit(&limit, &request, at).is_ok()
    });
    assert_eq!(passed.count(), 20);
    // Who keeps to one key has less, and other addresses have their own.
    let passed = (0..1000).filter(|_| {
        let request = coming("192.0.2.2:999", Some("one"), None);
        admit(&limit, &request, at).is_ok()
    });
    assert_eq!(passed.count(), 5);
    assert!(admit(&limit, &coming("192.0.2.2:999", None, None), at).is_ok());
}

#[test]
fn a_forged_chain_of_proxies_gains_nothing() {
    let forged = |number: u32| format!("203.0.{}.{}", number / 250, number % 250 + 1);
    for (peer, last, name) in [
        ("192.0.2.1:999", None, "from a client"),
        ("10.0.0.1:999", Some("192.0.2.1"), "through a trusted proxy"),
        ("10.0.0.1:999", Some("192.0.2.1, 10.0.0.2"), "through two"),
    ] {
        let (limit, at) = (cumulative(), now());
        let passed = (0..1000).filter(|&number| {
            let mut chain = forged(number);
            if let Some(last) = last {
                chain = format!("{chain}, {last}");
            }
            admit(&limit, &coming(peer, None, Some(&chain)), at).is_ok()
        });
        assert_eq!(passed.count(), 20, "{name}");
    }
    // Addresses of one site are one caller.
    let (limit, at) = (cumulative(), now());
    let passed = (0..1000).filter(|number| {
        let peer = format!("[2001:db8:1:2::{number:x}]:999");
        admit(&limit, &coming(&peer, None, None), at).is_ok()
    });
    assert_eq!(passed.count(), 20);
}
