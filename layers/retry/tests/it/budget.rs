use std::time::Duration;

use palisade_core::{cost::Cost, key, time};
use palisade_retry::{Backoff, Budget, RetryLayer};
use proptest::prelude::*;
use tokio::time::advance;
use tokio_test::{assert_pending, task};
use tower::{Layer, ServiceExt};

use crate::support::{
    Backend, MILLI, SECOND, fails, get, hangs, layer, refused_connection, send, status,
};

#[tokio::test(start_paused = true)]
async fn under_a_total_outage_a_server_gets_a_fifth_more() {
    let backend = Backend::new([status(503)]);
    let layer = RetryLayer::new(Backoff::constant(Duration::ZERO));
    for _ in 0..10_000 {
        send(&layer, &backend, get()).await.unwrap();
    }
    // And the reserve, which was full when the first of them paid in; no time has passed.
    assert_eq!(backend.attempts(), 10_000 + 2_000 + 100 - 1);
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.retries, snapshot.budget_left), (2_099, Some(0)));
}

#[tokio::test(start_paused = true)]
async fn after_a_storm_a_blip_is_ridden_out_again() {
    let storm = Backend::new([status(503)]);
    let layer = layer();
    for _ in 0..1000 {
        send(&layer, &storm, get()).await.unwrap();
    }
    assert_eq!(layer.handle().snapshot().budget_left, Some(0));
    // Ten seconds of 10 requests per second, all well: a fifth of a hundred, and the floor.
    let well = Backend::new([status(200)]);
    for _ in 0..100 {
        advance(100 * MILLI).await;
        send(&layer, &well, get()).await.unwrap();
    }
    let left = layer.handle().snapshot().budget_left.unwrap();
    assert!(left >= 29, "{left}");
    let blip = Backend::new([status(503), status(200)]);
    assert_eq!(send(&layer, &blip, get()).await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn two_layers_with_one_budget_share_it() {
    let budget = Budget::percent(0).reserve(3);
    let (one, two) = (layer().budget(budget.clone()), layer().budget(budget));
    let backend = Backend::new([status(503)]);
    send(&one, &backend, get()).await.unwrap();
    send(&two, &backend, get()).await.unwrap();
    // The last of them 200 ms in: not enough for the floor to give one more.
    assert_eq!(backend.attempts(), 2 + 3);
}

#[derive(Clone, Copy, Debug)]
enum Ends {
    Well,
    Fails,
    TimesOut,
    Unsent,
}

proptest! {
    /// Of which a byte was sent: those that were not are free, once per request.
    #[test]
    fn attempts_are_at_most_a_fifth_more_than_requests(
        requests in proptest::collection::vec(
            (
                proptest::collection::vec(
                    prop_oneof![
                        1 => Just(Ends::Well),
                        6 => Just(Ends::Fails),
                        2 => Just(Ends::TimesOut),
                        2 => Just(Ends::Unsent),
                    ],
                    6,
                ),
                0_u64..200,
            ),
            1..150,
        ),
        reserve in 0_u32..20,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let budget = Budget::percent(20).reserve(reserve);
            let layer = RetryLayer::new(Backoff::constant(MILLI)).budget(budget).attempts(5);
            let start = time::now();
            let (mut sent, count) = (0, requests.len());
            for (ends, millis) in requests {
                advance(MILLI * millis as u32).await;
                let script = ends.iter().map(|ends| match ends {
                    Ends::Well => status(200),
                    Ends::Fails => status(502),
                    Ends::TimesOut => fails(|| std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
                    Ends::Unsent => refused_connection(),
                });
                let backend = Backend::new(script);
                drop(send(&layer, &backend, get()).await);
                let made = &ends[..backend.attempts()];
                sent += made.iter().filter(|ends| !matches!(ends, Ends::Unsent)).count();
            }
            let floor = (time::now() - start).as_secs_f64() / SECOND.as_secs_f64();
            let bound = count as f64 * 1.2 + f64::from(reserve) + floor;
            assert!(sent as f64 <= bound, "{sent} for {count} requests");
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_is_down_takes_nothing_from_the_others() {
    let budget = Budget::percent(20).reserve(5).per(key::header("host"));
    let layer = layer().budget(budget);
    let to = |host: &str| {
        let mut request = get();
        request.headers_mut().insert("host", host.parse().unwrap());
        request
    };
    let down = Backend::new([status(503)]);
    for _ in 0..100 {
        send(&layer, &down, to("down")).await.unwrap();
    }
    // Two a request, which takes 200 ms of the floor's seconds.
    let retries = down.attempts() - 100;
    assert!((25..=30).contains(&retries), "{retries}");
    let blip = Backend::new([status(503), status(200)]);
    assert_eq!(send(&layer, &blip, to("up")).await.unwrap().status(), 200);
    let snapshot = layer.handle().snapshot();
    assert_eq!(snapshot.budget_left, Some(0), "of the emptiest");
}

#[tokio::test(start_paused = true)]
async fn a_few_long_prompts_cannot_spend_what_many_short_ones_have_saved() {
    let cost = |units| Cost::new(units).unwrap();
    let budget = Budget::percent(20).reserve(0).weighted(cost(1000.0));
    let layer = RetryLayer::new(Backoff::constant(Duration::ZERO)).budget(budget);
    let of = |units| {
        let mut request = get();
        request.extensions_mut().insert(cost(units));
        request
    };
    let well = Backend::new([status(200)]);
    for _ in 0..100 {
        send(&layer, &well, of(500.0)).await.unwrap();
    }
    assert_eq!(layer.handle().snapshot().budget_left, Some(10));
    // 100 000 tokens: its own share and what is saved are less than that.
    let backend = Backend::new([status(503), status(200)]);
    assert_eq!(
        send(&layer, &backend, of(100_000.0))
            .await
            .unwrap()
            .status(),
        503
    );
    let backend = Backend::new([status(503), status(200)]);
    assert_eq!(
        send(&layer, &backend, of(5_000.0)).await.unwrap().status(),
        200
    );
}

proptest! {
    /// Of tokens: under a total outage a fifth more of them is sent, whatever the requests cost.
    #[test]
    fn attempts_cost_at_most_a_fifth_more_than_requests(
        costs in proptest::collection::vec(1_u32..20_000, 1..200),
        reserve in 0_u32..10,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let ordinary = Cost::new(1000.0).unwrap();
            let budget = Budget::percent(20).reserve(reserve).weighted(ordinary);
            let layer = RetryLayer::new(Backoff::constant(Duration::ZERO)).budget(budget);
            let (mut asked, mut sent) = (0.0, 0.0);
            for cost in costs {
                let cost = f64::from(cost);
                let mut request = get();
                request.extensions_mut().insert(Cost::new(cost).unwrap());
                let backend = Backend::new([status(503)]);
                send(&layer, &backend, request).await.unwrap();
                asked += cost;
                sent += cost * backend.attempts() as f64;
            }
            let bound = asked * 1.2 + f64::from(reserve) * 1000.0;
            prop_assert!(sent <= bound + 1e-6, "{sent} for {asked}");
            Ok(())
        })?;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_for_an_attempt_that_is_not_made_is_given_back() {
    let budget = Budget::percent(0).reserve(3);
    let layer = layer().budget(budget.clone());
    let backend = Backend::new([status(503)]);
    let mut call = task::spawn(layer.layer(backend.clone()).oneshot(get()));
    assert_pending!(call.poll());
    assert_eq!(budget.left(), Some(2), "in the wait");
    drop(call);
    assert_eq!((budget.left(), backend.attempts()), (Some(3), 1));

    // Once an attempt has begun, it is paid.
    let backend = Backend::new([status(503), hangs()]);
    let mut call = task::spawn(layer.layer(backend.clone()).oneshot(get()));
    assert_pending!(call.poll());
    advance(100 * MILLI).await;
    assert_pending!(call.poll());
    drop(call);
    assert_eq!((budget.left(), backend.attempts()), (Some(2), 2));
}
