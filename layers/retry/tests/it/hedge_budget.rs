use palisade_core::{cost::Cost, head::RequestHead, key, ratio::Ratio};
use palisade_retry::{Budget, HedgeLayer};

use crate::hedge_support::{MILLI, Server, answers, fails, get, hedge, send};

fn slow() -> Server {
    Server::new([answers(200, 200)])
}

#[tokio::test(start_paused = true)]
async fn one_request_in_twenty_is_hedged_and_not_one_more() {
    let (layer, server) = (HedgeLayer::new(100 * MILLI), slow());
    for request in 1..=200 {
        send(&layer, &server, get()).await.0.unwrap();
        assert_eq!(server.times().len(), request + request / 20);
    }
    let seen = layer.handle().snapshot();
    assert_eq!((seen.sent, seen.no_budget), (10, 190));
}

#[tokio::test(start_paused = true)]
async fn the_share_can_be_changed_live() {
    let (layer, server) = (HedgeLayer::new(100 * MILLI), slow());
    layer.handle().set_at_most(Ratio::HALF);
    for _ in 0..20 {
        send(&layer, &server, get()).await.0.unwrap();
    }
    assert_eq!(layer.handle().snapshot().sent, 10);
}

#[tokio::test(start_paused = true)]
async fn a_hedge_takes_one_from_the_budget_that_it_shares_with_retries() {
    let budget = Budget::percent(0).reserve(3);
    let (layer, server) = (hedge().budget(budget.clone()), slow());
    for _ in 0..2 {
        send(&layer, &server, get()).await.0.unwrap();
    }
    assert_eq!((budget.left(), server.times().len()), (Some(1), 4));
    // A retry was faster.
    assert!(budget.withdraw(1));
    send(&layer, &server, get()).await.0.unwrap();
    let seen = layer.handle().snapshot();
    assert_eq!((seen.sent, seen.no_budget), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_hedge_is_paid_from_the_budget_of_its_destination() {
    let budget = Budget::percent(0).reserve(2).per(key::header("x-model"));
    let (layer, server) = (hedge().budget(budget.clone()), slow());
    let to = |model: &'static str| {
        let mut request = get();
        let model = http::HeaderValue::from_static(model);
        request.headers_mut().insert("x-model", model);
        request
    };
    let left = |model| budget.withdraw_for(&RequestHead::from(&to(model)), 1);
    // Retries have used up that of one.
    assert!(left("large") && left("large"));
    send(&layer, &server, to("large")).await.0.unwrap();
    assert_eq!(server.times().len(), 1);
    for _ in 0..2 {
        send(&layer, &server, to("small")).await.0.unwrap();
    }
    assert_eq!(server.times().len(), 1 + 4);
    assert!(!left("small"));
}

#[tokio::test(start_paused = true)]
async fn what_the_budget_refuses_is_not_taken_from_the_share() {
    let budget = Budget::percent(0).reserve(0);
    let layer = HedgeLayer::new(100 * MILLI).budget(budget.clone());
    let server = slow();
    for _ in 0..20 {
        send(&layer, &server, get()).await.0.unwrap();
    }
    let seen = layer.handle().snapshot();
    assert_eq!((seen.sent, seen.no_budget), (0, 20));
    // Its floor is one in a second, which five requests take; had the share been lost, it would take fifteen more.
    for _ in 0..6 {
        send(&layer, &server, get()).await.0.unwrap();
    }
    assert_eq!(layer.handle().snapshot().sent, 1);
    assert_eq!(budget.left(), Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_large_request_costs_more() {
    let (layer, server) = (hedge().at_most(Ratio::HALF), slow());
    let sized = |cost| {
        let mut request = get();
        request.extensions_mut().insert(Cost::new(cost).unwrap());
        request
    };
    // Four small ones pay for two hedges, which the large one does not get: it pays four in and costs eight.
    layer.handle().set_at_most(Ratio::HALF);
    let fast = Server::new([answers(1, 200)]);
    for _ in 0..4 {
        send(&layer, &fast, sized(1.0)).await.0.unwrap();
    }
    send(&layer, &server, sized(8.0)).await.0.unwrap();
    assert_eq!(layer.handle().snapshot().sent, 0);
    for _ in 0..4 {
        send(&layer, &server, sized(1.0)).await.0.unwrap();
    }
    assert_eq!(layer.handle().snapshot().sent, 4);
}

#[tokio::test(start_paused = true)]
async fn in_a_storm_nothing_is_hedged() {
    let layer = hedge();
    let broken = Server::new([fails(1, "broken")]);
    for _ in 0..5 {
        assert!(!layer.handle().snapshot().failing);
        drop(send(&layer, &broken, get()).await);
    }
    assert!(layer.handle().snapshot().failing);
    let server = slow();
    send(&layer, &server, get()).await.0.unwrap();
    assert_eq!(server.times().len(), 1);
    // It had worked.
    send(&layer, &server, get()).await.0.unwrap();
    assert_eq!(server.times().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_storm_that_begins_before_the_delay_is_over_counts() {
    use tower::{Layer, ServiceExt};

    let (layer, server) = (hedge(), slow());
    let mut call = tokio_test::task::spawn(layer.layer(server.clone()).oneshot(get()));
    assert!(call.poll().is_pending());
    let broken = Server::new([fails(1, "broken")]);
    for _ in 0..5 {
        drop(send(&layer, &broken, get()).await);
    }
    call.await.unwrap();
    assert_eq!(server.times().len(), 1);
    assert_eq!(layer.handle().snapshot().held_back, 1);
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_weighs_requests_weighs_their_hedges() {
    let budget = Budget::percent(0)
        .reserve(10)
        .weighted(Cost::new(1000.0).unwrap());
    let (layer, server) = (hedge().budget(budget.clone()), slow());
    let mut request = get();
    request.extensions_mut().insert(Cost::new(6000.0).unwrap());
    send(&layer, &server, request.clone()).await.0.unwrap();
    assert_eq!((budget.left(), server.times().len()), (Some(4), 2));
    send(&layer, &server, request).await.0.unwrap();
    assert_eq!(layer.handle().snapshot().no_budget, 1);
}
