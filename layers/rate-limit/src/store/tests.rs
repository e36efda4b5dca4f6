use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    thread,
};

use super::*;
use crate::{numbers::Tier, quota::Quota, rule::Strategy};

const SECOND: u64 = 1_000_000_000;

/// In the window that all are counted in, and in one where all are idle.
const BUSY: u64 = 0;
const IDLE: u64 = 1000 * SECOND;

/// Counts to any number in windows of a second.
fn numbers() -> Arc<Numbers> {
    let quota = Quota::per_second(Quota::MOST);
    Arc::new(Numbers::new([Tier {
        name: None,
        quota,
        meter: Meter::new(Strategy::FixedWindow, &quota).unwrap(),
    }]))
}

fn payer(hash: u64) -> Payer {
    Payer::hashed(hash << 8, 0)
}

fn take_cost(store: &Store, mut payer: Payer, cost: u64, at: u64) -> Payer {
    let locked = store.lock(&mut payer, at);
    let next = locked.try_take(cost, at).unwrap();
    locked.admit(next, at);
    payer
}

fn take(store: &Store, hash: u64, at: u64) -> Payer {
    take_cost(store, Payer::hashed(hash, 0), 1, at)
}

/// What was used in the window in which all are busy.
fn used(store: &Store, payer: Payer) -> u64 {
    store.read(payer, |meter, count| {
        meter.holds() - meter.standing(count, BUSY).remaining
    })
}

#[test]
fn a_flood_of_a_million_keys_stays_below_its_ceiling_and_moves_nobody() {
    let hasher = RandomState::new();
    let store = Store::keyed(100_000, &numbers());
    let busy: Vec<u64> = (0..1000)
        .map(|key| hasher.hash_one(("busy", key)))
        .collect();
    for &hash in &busy {
        assert_ne!(take(&store, hash, BUSY), Payer::SHARED);
    }
    let shared = (0..1_000_000_u64)
        .map(|key| hasher.hash_one(key))
        .filter(|&hash| take(&store, hash, BUSY) == Payer::SHARED);
    assert_eq!(shared.count(), 1_000_000 - 99_000);
    assert_eq!(store.held(), 100_000);
    assert!(
        store.bytes() <= 10_500_000 + 32 * 64,
        "{} bytes",
        store.bytes()
    );
    for hash in busy {
        assert_eq!(used(&store, Payer::hashed(hash, 0)), 1);
    }
    let Totals { admitted, refused } = store.totals();
    assert_eq!((admitted, refused), (1_001_000, 0));
}

#[test]
fn memory_comes_back_as_newcomers_find_the_old_ones_idle() {
    let hasher = RandomState::new();
    let store = Store::keyed(100_000, &numbers());
    for key in 0..100_000_u64 {
        take(&store, hasher.hash_one(key), BUSY);
    }
    let full = store.bytes();
    // As many as there were: each looks at eight seats, of which there are at most five for every two keys.
    for key in 0..100_000_u64 {
        assert_ne!(
            take(
                &store,
                hasher.hash_one(("new", key)),
                IDLE + key * 20 * SECOND
            ),
            Payer::SHARED
        );
    }
    assert!(
        store.bytes() < full / 100,
        "{} of {full} bytes",
        store.bytes()
    );
    assert!(store.held() < 32 * 8, "{} keys", store.held());
}

#[test]
fn who_was_idle_for_a_moment_only_keeps_its_seat_while_there_are_others() {
    let store = Store::keyed(100, &numbers());
    for hash in 1..=99 {
        take_cost(&store, payer(hash), 1, BUSY);
    }
    // Idle for a second, and there are others.
    take_cost(&store, payer(100), 1, 2 * SECOND);
    assert_eq!(store.held(), 100);
    assert_ne!(take_cost(&store, payer(101), 1, 2 * SECOND), Payer::SHARED);
    assert!(store.held() < 100, "eight went, and one came");
}

#[test]
fn a_seat_that_is_not_taken_is_free_again() {
    let store = Store::keyed(1, &numbers());
    for hash in 1..10 {
        let mut payer = payer(hash << 24);
        store.lock(&mut payer, BUSY).refuse();
        assert_ne!(payer, Payer::SHARED);
        assert_eq!(store.held(), 0);
    }
    assert_ne!(take_cost(&store, payer(1), 1, BUSY), Payer::SHARED);
    assert_eq!(take_cost(&store, payer(2), 1, BUSY), Payer::SHARED);
    assert!(store.forget(payer(1), || 1));
    assert!(!store.forget(payer(1), || 2));
    assert_ne!(take_cost(&store, payer(2), 1, BUSY), Payer::SHARED);
}

#[test]
fn what_was_forgotten_is_known_of_each_and_of_many_at_least_not_later() {
    // All in one shard.
    let store = Store::keyed(100, &numbers());
    let is_in = |hash, epoch| {
        let mut found = None;
        store.change(payer(hash), epoch, |_, _, is_in| found = Some(is_in));
        found
    };
    for hash in 1..=9 {
        take_cost(&store, payer(hash), 1, BUSY);
    }
    for hash in 1..=4 {
        assert!(store.forget(payer(hash), || hash));
        take_cost(&store, payer(hash), 1, BUSY);
    }
    for hash in 1..=4 {
        assert_eq!(is_in(hash, hash - 1), Some(false));
        assert_eq!(is_in(hash, hash), Some(true));
    }
    assert_eq!(is_in(9, 0), Some(true), "nobody has forgotten it");
    assert!(store.forget(payer(5), || 5));
    assert_eq!(is_in(5, 9), None, "not held any more");
    assert_eq!(is_in(1, 0), Some(false), "one of all the others");
    assert_eq!(
        is_in(9, 0),
        Some(false),
        "as are those that were not forgotten"
    );
    assert_eq!((is_in(9, 1), is_in(2, 1)), (Some(true), Some(false)));
}

#[test]
fn a_store_without_seats_shares_one_count() {
    let store = Store::keyed(0, &numbers());
    assert_eq!(take(&store, 7, BUSY), Payer::SHARED);
    assert_eq!(take(&store, 8, BUSY), Payer::SHARED);
    assert_eq!(used(&store, Payer::SHARED), 2);
}

#[test]
fn threads_together_never_hold_more_than_the_capacity() {
    let (store, seated) = (Store::keyed(500, &numbers()), AtomicUsize::new(0));
    let hasher = RandomState::new();
    thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (store, seated, hasher) = (&store, &seated, &hasher);
            scope.spawn(move || {
                for key in 0..1000_u64 {
                    if take(store, hasher.hash_one((thread, key)), BUSY) != Payer::SHARED {
                        seated.fetch_add(1, SeqCst);
                    }
                    assert!(store.held() <= 500);
                }
            });
        }
    });
    assert_eq!((seated.load(SeqCst), store.held()), (500, 500));
    assert_eq!(store.totals().admitted, 4000);
}

#[test]
fn idle_keys_make_room_also_in_a_small_store() {
    let hasher = RandomState::new();
    for capacity in [1_usize, 8, 32, 100] {
        let store = Store::keyed(capacity, &numbers());
        for key in 0..capacity as u64 {
            take(&store, hasher.hash_one(key), BUSY);
        }
        let shared = (0..capacity as u64)
            .filter(|key| take(&store, hasher.hash_one(("new", key)), IDLE) == Payer::SHARED)
            .count();
        assert_eq!(shared, 0, "of {capacity}, whose seats are all idle");
    }
    // One key a day, for a month: each finds nobody else.
    let store = Store::keyed(1, &numbers());
    let seated = (0..30_u64)
        .filter(|day| {
            let at = day * 86_400 * SECOND;
            take(&store, hasher.hash_one(("day", day)), at) != Payer::SHARED
        })
        .count();
    assert_eq!(seated, 30);
}

#[test]
fn numbers_are_changed_for_all_at_once_and_what_was_used_is_kept() {
    let store = Store::keyed(1000, &numbers());
    for hash in 1..=500 {
        take_cost(&store, payer(hash), hash, BUSY);
    }
    take_cost(&store, Payer::SHARED, 7, BUSY);
    let quota = Quota::per_second(100);
    let fewer = Numbers::new([Tier {
        name: None,
        quota,
        meter: Meter::new(Strategy::FixedWindow, &quota).unwrap(),
    }]);
    store.renew(&Arc::new(fewer), BUSY);
    for hash in 1..=500 {
        assert_eq!(used(&store, payer(hash)), hash.min(100), "{hash}");
    }
    assert_eq!(used(&store, Payer::SHARED), 7);
}

#[test]
fn a_count_is_raised_where_there_is_a_seat_and_never_put_on_all_others() {
    let store = Store::keyed(1, &numbers());
    let raise =
        |payer| store.change_or_seat(payer, BUSY, |meter, count| meter.raise(count, 5, BUSY));
    raise(payer(1));
    raise(payer(1));
    raise(payer(2));
    assert_eq!((used(&store, payer(1)), store.held()), (5, 1));
    assert_eq!(used(&store, Payer::SHARED), 0);
    raise(Payer::SHARED);
    assert_eq!(used(&store, Payer::SHARED), 5);
}
