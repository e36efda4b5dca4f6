use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    thread,
};

use super::*;

fn take(store: &Store, hash: u64, idle: impl Fn(&Count, u64) -> bool) -> Payer {
    let mut payer = Payer::hashed(hash);
    let locked = store.lock(&mut payer, idle);
    locked.admit(Count::used(hash));
    payer
}

fn never(_: &Count, _: u64) -> bool {
    false
}

fn always(_: &Count, _: u64) -> bool {
    true
}

#[test]
fn a_flood_of_a_million_keys_stays_below_its_ceiling_and_moves_nobody() {
    let hasher = RandomState::new();
    let store = Store::keyed(100_000);
    let busy: Vec<u64> = (0..1000)
        .map(|key| hasher.hash_one(("busy", key)))
        .collect();
    for &hash in &busy {
        assert_ne!(take(&store, hash, never), Payer::SHARED);
    }
    let shared = (0..1_000_000_u64)
        .map(|key| hasher.hash_one(key))
        .filter(|&hash| take(&store, hash, never) == Payer::SHARED);
    assert_eq!(shared.count(), 1_000_000 - 99_000);
    assert_eq!(store.held(), 100_000);
    assert!(
        store.bytes() <= 8_000_000 + 32 * 64,
        "{} bytes",
        store.bytes()
    );
    for hash in busy {
        assert_eq!(store.read(Payer::hashed(hash)), Count::used(hash));
    }
    let Totals { admitted, refused } = store.totals();
    assert_eq!((admitted, refused), (1_001_000, 0));
}

#[test]
fn memory_comes_back_as_newcomers_find_the_old_ones_idle() {
    let hasher = RandomState::new();
    let store = Store::keyed(100_000);
    for key in 0..100_000_u64 {
        take(&store, hasher.hash_one(key), never);
    }
    let full = store.bytes();
    // As many as there were: each looks at eight seats, of which there are at most five for every two keys.
    for key in 0..100_000_u64 {
        assert_ne!(
            take(&store, hasher.hash_one(("new", key)), always),
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
    let idle_for_a_second = |_: &Count, nanos| nanos <= 1_000_000_000;
    let store = Store::keyed(100);
    for hash in 1..=100 {
        take(&store, hash, idle_for_a_second);
    }
    assert_eq!(store.held(), 100);
    assert_ne!(take(&store, 101, idle_for_a_second), Payer::SHARED);
    assert!(store.held() < 100, "eight went, and one came");
}

#[test]
fn a_seat_that_is_not_taken_is_free_again() {
    let store = Store::keyed(1);
    for hash in 1..10 {
        let mut payer = Payer::hashed(hash << 32);
        store.lock(&mut payer, never).refuse();
        assert_ne!(payer, Payer::SHARED);
        assert_eq!(store.held(), 0);
    }
    assert_ne!(take(&store, 1, never), Payer::SHARED);
    assert_eq!(take(&store, 2, never), Payer::SHARED);
    assert!(store.forget(Payer::hashed(1), || ()));
    assert!(!store.forget(Payer::hashed(1), || ()));
    assert_ne!(take(&store, 2, never), Payer::SHARED);
}

#[test]
fn a_store_without_seats_shares_one_count() {
    let store = Store::keyed(0);
    assert_eq!(take(&store, 7, never), Payer::SHARED);
    assert_eq!(take(&store, 8, never), Payer::SHARED);
    assert_eq!(store.read(Payer::SHARED), Count::used(8));
}

#[test]
fn threads_together_never_hold_more_than_the_capacity() {
    let (store, seated) = (Store::keyed(500), AtomicUsize::new(0));
    let hasher = RandomState::new();
    thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (store, seated, hasher) = (&store, &seated, &hasher);
            scope.spawn(move || {
                for key in 0..1000_u64 {
                    if take(store, hasher.hash_one((thread, key)), never) != Payer::SHARED {
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
        let store = Store::keyed(capacity);
        for key in 0..capacity as u64 {
            take(&store, hasher.hash_one(key), never);
        }
        let shared = (0..capacity as u64)
            .filter(|key| {
                take(&store, hasher.hash_one(("new", key)), |count, _| {
                    *count > Count::used(0)
                }) == Payer::SHARED
            })
            .count();
        assert_eq!(shared, 0, "of {capacity}, whose seats are all idle");
    }
    // One key a day, for a month: each finds nobody else.
    let store = Store::keyed(1);
    let seated = (0..30_u64)
        .filter(|day| take(&store, hasher.hash_one(("day", day)), always) != Payer::SHARED)
        .count();
    assert_eq!(seated, 30);
}
