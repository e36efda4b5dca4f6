use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use http::Request;
use palisade_core::key;
use proptest::prelude::*;

use super::{account::Account, shared::BATCH, *};

fn shared(budget: &Budget) -> &Shared {
    budget.common().unwrap()
}

fn cost(units: f64) -> Cost {
    Cost::new(units).unwrap()
}

fn costing(units: f64) -> Request<()> {
    let mut request = Request::new(());
    request.extensions_mut().insert(cost(units));
    request
}

fn to(host: &str) -> Request<()> {
    Request::builder().header("host", host).body(()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn requests_are_paid_in_before_anybody_takes_out() {
    let budget = Budget::percent(20).reserve(0);
    for _ in 0..5 {
        assert!(!budget.withdraw(1));
        budget.deposit();
    }
    assert!(budget.withdraw(1));
    assert!(!budget.withdraw(1));
}

#[tokio::test(start_paused = true)]
async fn clones_share_it_and_a_new_reserve_does_not() {
    let budget = Budget::default();
    let other = budget.clone();
    assert!(budget.withdraw(99));
    assert_eq!(other.left(), Some(1));
    assert_eq!(budget.clone().reserve(7).left(), Some(7));
    assert_eq!(budget.left(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_quiet_counter_is_paid_in_by_batches() {
    let budget = Budget::percent(100).reserve(0);
    for _ in 0..63 {
        budget.deposit();
    }
    assert_eq!(shared(&budget).owed(), 63 * TOKEN);
    budget.deposit();
    assert_eq!(shared(&budget).owed(), 0);
    assert_eq!(budget.left(), Some(64));
}

#[test]
fn no_limit_never_ends() {
    let budget = Budget::unlimited()
        .reserve(0)
        .weighted(cost(5.0))
        .per(key::path());
    budget.deposit();
    assert!(budget.withdraw(u32::MAX) && budget.withdraw(u32::MAX));
    let request = costing(1e9);
    assert!(budget.withdraw_for(&(&request).into(), u32::MAX));
    assert_eq!(budget.left(), None);
}

#[test]
fn sixty_four_threads_together_take_out_what_is_there_and_not_one_more() {
    const THREADS: u32 = 64;
    const ROUNDS: u32 = 500;
    const RESERVE: u32 = 1000;

    let (budget, start) = (Budget::percent(20).reserve(RESERVE), time::now());
    let never_more = AtomicBool::new(true);
    let taken: u32 = thread::scope(|scope| {
        let take = || {
            let mut taken = 0;
            for _ in 0..ROUNDS {
                budget.deposit();
                taken += u32::from(budget.withdraw(1)) + 2 * u32::from(budget.withdraw(2));
                // Below zero it would be close to the largest number there is.
                let floor = (time::now() - start).as_secs() as u32;
                let most = RESERVE + THREADS * ROUNDS / 5 + 10 + floor;
                never_more.fetch_and(budget.left().unwrap() <= most, Relaxed);
            }
            taken
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(take)).collect();
        let threads = threads.into_iter();
        threads.map(|thread| thread.join().unwrap()).sum()
    });
    assert!(never_more.into_inner());
    // All of what came in and not one more: it was asked for much more than that. What came while it was full is cut:
    // of one request of each thread at most, which then takes out.
    let full = THREADS / 5 + 1;
    let income = RESERVE + THREADS * ROUNDS / 5;
    let floor = (time::now() - start).as_secs() as u32 + 1;
    let left = budget.left().unwrap();
    assert!(taken <= income + floor, "{taken} of {income}");
    assert!(
        taken + left + full >= income,
        "{taken} and {left} of {income}"
    );
}

#[tokio::test(start_paused = true)]
async fn requests_pay_and_are_paid_for_by_what_they_cost() {
    let budget = Budget::percent(20).reserve(0).weighted(cost(1000.0));
    let (small, large, plain) = (costing(500.0), costing(4000.0), Request::new(()));
    let [small, large, plain] = [&small, &large, &plain].map(RequestHead::from);
    budget.deposit_for(&large);
    // 0.2 of 4: more than one small one, and less than one that is ordinary.
    assert!(!budget.withdraw_for(&plain, 1) && !budget.withdraw_for(&large, 1));
    assert!(budget.withdraw_for(&small, 1));
    assert!(!budget.withdraw_for(&small, 1));
    for _ in 0..10 {
        budget.deposit_for(&small);
    }
    for _ in 0..15 {
        budget.deposit_for(&plain);
    }
    // 0.3 were left, and 1 and 3 have come.
    assert_eq!(budget.left(), Some(4));
    assert!(budget.withdraw_for(&large, 1));
    assert_eq!(budget.left(), Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_cost_beyond_all_measure_neither_overflows_nor_fills_it_for_ever() {
    let budget = Budget::percent(20).weighted(cost(f64::MIN_POSITIVE));
    let request = costing(f64::MAX);
    let head = RequestHead::from(&request);
    assert!(!budget.withdraw_for(&head, u32::MAX));
    for _ in 0..200 {
        budget.deposit_for(&head);
    }
    // A fifth of a million ordinary ones each, and the floor: the income of ten seconds.
    assert_eq!(budget.left(), Some(40_000_010));
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(budget.left(), Some(100), "what came in then is too old");
}

#[tokio::test(start_paused = true)]
async fn each_destination_has_its_own() {
    let budget = Budget::percent(20).reserve(2).per(key::header("host"));
    let (a, b) = (to("a"), to("b"));
    let (a, b) = (RequestHead::from(&a), RequestHead::from(&b));
    let clone = budget.clone();
    assert!(clone.withdraw_for(&a, 2), "clones share them");
    assert!(!budget.withdraw_for(&a, 1));
    assert!(budget.withdraw_for(&b, 1));
    assert_eq!(budget.left(), Some(0), "of the emptiest");
    for _ in 0..5 {
        budget.deposit_for(&a);
    }
    assert!(budget.withdraw_for(&a, 1) && !budget.withdraw_for(&a, 1));
    let none = Request::new(());
    assert!(budget.withdraw_for(&RequestHead::from(&none), 2));
    assert!(!budget.withdraw(1), "that of requests without a key");
}

#[tokio::test(start_paused = true)]
async fn keys_that_never_end_get_no_more_than_there_is_room_for() {
    let budget = Budget::percent(0)
        .reserve(5)
        .per(key::header("host"))
        .keys(10);
    let Kind::PerKey(keyed) = &budget.0 else {
        panic!("not keyed");
    };
    let take = |key: u32| {
        let request = to(&format!("host-{key}"));
        budget.withdraw_for(&RequestHead::from(&request), 5)
    };
    let taken = (0..100_000).filter(|&key| take(key)).count();
    // Ten of their own, and the one that all others share.
    assert_eq!((taken, keyed.len()), (11, 10));
    // Half a minute on they are full again by the floor, and nobody has used them.
    tokio::time::advance(Duration::from_secs(30)).await;
    assert!(take(200_000) && !take(200_000));
    assert_eq!(keyed.len(), 1, "forgotten");
}

#[tokio::test(start_paused = true)]
async fn what_was_spent_is_not_forgotten_while_it_matters() {
    let budget = Budget::percent(0)
        .reserve(50)
        .per(key::header("host"))
        .keys(1);
    let (a, b) = (to("a"), to("b"));
    let (a, b) = (RequestHead::from(&a), RequestHead::from(&b));
    assert!(budget.withdraw_for(&a, 50));
    for _ in 0..20 {
        tokio::time::advance(Duration::from_secs(2)).await;
        budget.deposit_for(&b);
    }
    // 40 seconds of floor, and not the 50 of a new one.
    assert!(!budget.withdraw_for(&a, 41));
    assert!(budget.withdraw_for(&a, 40));
}

proptest! {
    /// Against an account that is told of each request at once.
    #[test]
    fn batches_change_nothing_but_by_what_one_holds(
        steps in proptest::collection::vec((0_u64..400, 0_u32..200, 0_u32..3), 1..200),
        reserve in 0_u32..20,
    ) {
        const SHARE: u64 = TOKEN / 5;
        const HELD: u64 = BATCH * SHARE / TOKEN;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let budget = Budget::percent(20).reserve(reserve);
            let mut exact = Account::new(u64::from(reserve) * TOKEN);
            let start = time::now();
            exact.balance(start);
            budget.left();
            let (mut came, mut went) = (u64::from(reserve) * TOKEN, 0);
            for (millis, requests, attempts) in steps {
                tokio::time::advance(Duration::from_millis(millis)).await;
                let now = time::now();
                for _ in 0..requests {
                    budget.deposit();
                    exact.deposit(SHARE, now);
                }
                came += u64::from(requests) * SHARE;
                for _ in 0..attempts {
                    let there = exact.balance(now);
                    if budget.withdraw(1) {
                        went += TOKEN;
                        prop_assert!(there + HELD >= TOKEN, "{there}");
                        exact.withdraw(there.min(TOKEN), now);
                    } else {
                        prop_assert!(there < TOKEN + HELD, "{there}");
                    }
                }
                // To the unit, whatever the batches: out goes what came in.
                let floor = (now - start).as_millis() as u64;
                prop_assert!(went <= came + floor, "{went} of {came} and {floor}");
            }
            Ok(())
        })?;
    }
}
