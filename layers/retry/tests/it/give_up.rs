use std::time::Duration;

use palisade_core::{
    reject::{Reason, Rejected},
    testing::Steps,
};
use palisade_retry::{Backoff, Budget, RetryBody, RetryLayer};
use tower::{Layer, ServiceExt};

use crate::support::{Backend, fails, get, head, layer, rejects, send, status};

#[tokio::test(start_paused = true)]
async fn an_answer_says_when_attempts_or_budget_are_spent() {
    let spent = Budget::percent(0).reserve(0);
    for (layer, made) in [(layer(), 3), (layer().budget(spent), 1)] {
        let backend = Backend::new([status(503)]);
        let response = send(&layer, &backend, get()).await.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["x-should-retry"], "false");
        assert_eq!(backend.attempts(), made);
        assert_eq!(layer.handle().snapshot().exhausted, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_rejection_says_so_too() {
    let backend = Backend::new([rejects(Reason::TimedOut)]);
    let error = send(&layer(), &backend, get()).await.unwrap_err();
    let rejected = error.downcast_ref::<Rejected>().unwrap();
    assert!(rejected.is_final());
    assert_eq!(backend.attempts(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_asks_not_to_be_asked_again_is_the_callers() {
    for (name, value) in [
        ("x-should-retry", "false"),
        ("grpc-retry-pushback-ms", "-1"),
        ("grpc-retry-pushback-ms", "never"),
    ] {
        let backend = Backend::new([head(503, &[(name, value)])]);
        let layer = layer();
        let response = send(&layer, &backend, get()).await.unwrap();
        assert_eq!(backend.attempts(), 1, "{name}: {value}");
        assert_eq!(response.headers()[name], value);
        assert_eq!(layer.handle().snapshot().exhausted, 0, "not by this layer");
    }
    let gave_up = fails(|| {
        let mut rejected = Rejected::new(Reason::TimedOut, "late");
        rejected.give_up();
        rejected.into()
    });
    let backend = Backend::new([gave_up]);
    assert!(send(&layer(), &backend, get()).await.is_err());
    assert_eq!(backend.attempts(), 1);
}

#[tokio::test(start_paused = true)]
async fn three_layers_make_the_attempts_of_one() {
    for line in [status(503), rejects(Reason::TimedOut)] {
        let backend = Backend::new([line]);
        let service = layer().layer(layer().layer(layer().layer(backend.clone())));
        let answer = service.oneshot(get()).await;
        if let Ok(answer) = answer {
            let _: &RetryBody<RetryBody<RetryBody<Steps>>> = answer.body();
            assert_eq!(answer.headers()["x-should-retry"], "false");
        }
        assert_eq!(backend.attempts(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn three_layers_make_the_attempts_of_one_also_of_plain_errors() {
    let backend = Backend::new([fails(|| "connection reset".into())]);
    let service = layer().layer(layer().layer(layer().layer(backend.clone())));
    let error = service.oneshot(get()).await.unwrap_err();
    assert_eq!(error.to_string(), "connection reset");
    assert_eq!(backend.attempts(), 3);
}

#[tokio::test(start_paused = true)]
async fn three_layers_in_a_total_outage_send_a_fifth_more_and_no_more() {
    let backend = Backend::new([fails(|| "connection reset".into())]);
    let layer = || {
        let budget = Budget::percent(20).reserve(0);
        RetryLayer::new(Backoff::constant(Duration::ZERO)).budget(budget)
    };
    let (a, b, c) = (layer(), layer(), layer());
    for _ in 0..10_000 {
        let service = a.layer(b.layer(c.layer(backend.clone())));
        service.oneshot(get()).await.unwrap_err();
    }
    assert!(backend.attempts() <= 12_100, "{}", backend.attempts());
}
