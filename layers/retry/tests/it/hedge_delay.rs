use std::time::Duration;

use palisade_core::ratio::Ratio;
use palisade_retry::{
    HedgeLayer,
    hedge::{Delay, Mode},
};
use tokio::time::advance;
use tokio_test::{assert_pending, task};
use tower::{Layer, ServiceExt};

use crate::hedge_support::{MILLI, Server, all, answers, fails, get, hangs, hedge, send, with};

fn learns() -> HedgeLayer {
    HedgeLayer::default().at_most(all())
}

async fn warm(layer: &HedgeLayer, times: usize, millis: u64) {
    let server = Server::new([answers(millis, 200)]);
    for _ in 0..times {
        send(layer, &server, get()).await.0.unwrap();
    }
    assert_eq!(server.times().len(), times, "none is hedged");
}

fn delay(layer: &HedgeLayer) -> Option<Duration> {
    layer.handle().snapshot().delay
}

#[tokio::test(start_paused = true)]
async fn the_delay_is_learnt_from_a_hundred_answers() {
    let layer = learns();
    warm(&layer, 99, 10).await;
    assert_eq!(delay(&layer), None);
    warm(&layer, 1, 10).await;
    let learnt = delay(&layer).unwrap();
    assert!((10 * MILLI..=11 * MILLI).contains(&learnt), "{learnt:?}");
    let server = Server::new([hangs(), answers(10, 200)]);
    let (_, took) = send(&layer, &server, get()).await;
    assert!((20..=22).contains(&took), "{took}");
}

#[tokio::test(start_paused = true)]
async fn until_then_there_is_none_or_the_one_that_was_given() {
    let given = HedgeLayer::new(Delay::default().until_then(300 * MILLI)).at_most(all());
    for (layer, times) in [(learns(), vec![0]), (given, vec![0, 300])] {
        let server = Server::new([answers(500, 200)]);
        send(&layer, &server, get()).await.0.unwrap();
        assert_eq!(server.times(), times);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_canceled_counts_with_the_time_that_it_had_taken() {
    let layer = learns();
    warm(&layer, 200, 10).await;
    let learnt = delay(&layer).unwrap();
    // One in ten hangs. Were these left out, the percentile would be that of fast answers for ever.
    for at in 0..1000 {
        let first = if at % 10 == 0 {
            hangs()
        } else {
            answers(10, 200)
        };
        let server = Server::new([first, answers(10, 200)]);
        send(&layer, &server, get()).await.0.unwrap();
    }
    assert!(
        delay(&layer).unwrap() > learnt * 3 / 2,
        "{:?}",
        delay(&layer)
    );
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_early_says_nothing_and_one_that_waited_does() {
    let early = learns();
    warm(&early, 100, 10).await;
    let learnt = delay(&early).unwrap();
    let late = learns();
    warm(&late, 100, 10).await;
    for (layer, waits) in [(&early, 5), (&late, 60)] {
        layer.handle().set_mode(Mode::Off);
        for _ in 0..100 {
            let mut call = task::spawn(layer.layer(Server::new([hangs()])).oneshot(get()));
            assert_pending!(call.poll());
            advance(waits * MILLI).await;
        }
    }
    assert_eq!(delay(&early), Some(learnt));
    assert!(delay(&late).unwrap() >= 60 * MILLI);
}

#[tokio::test(start_paused = true)]
async fn fast_failures_and_requests_that_may_not_be_hedged_say_nothing() {
    let layer = learns();
    warm(&layer, 99, 10).await;
    for (act, request) in [
        (fails(1, "broken"), get()),
        (answers(1, 500), get()),
        (answers(1, 200), with(http::Method::POST, "")),
    ] {
        drop(send(&layer, &Server::new([act]), request).await);
    }
    assert_eq!(delay(&layer), None);
    warm(&layer, 1, 10).await;
    assert!(delay(&layer).is_some());
}

#[tokio::test(start_paused = true)]
async fn an_old_delay_is_forgotten() {
    let layer = HedgeLayer::new(
        Delay::quantile(Ratio::HALF)
            .samples(10)
            .window(Duration::from_secs(10)),
    );
    warm(&layer, 10, 10).await;
    assert!(delay(&layer).is_some());
    advance(Duration::from_secs(20)).await;
    warm(&layer, 1, 10).await;
    assert_eq!(delay(&layer), None);
}

#[tokio::test(start_paused = true)]
async fn shadow_mode_sends_nothing_and_counts_what_it_would_have() {
    let layer = hedge().mode(Mode::Shadow);
    let server = Server::new([answers(130, 200), answers(99, 200), answers(150, 200)]);
    for took in [130, 99, 150] {
        assert_eq!(send(&layer, &server, get()).await.1, took);
    }
    assert_eq!(server.times().len(), 3);
    let seen = layer.handle().snapshot();
    assert_eq!((seen.sent, seen.shadowed), (0, 2));
    assert_eq!(seen.shadowed_for, 80 * MILLI);
    // Those that fail, too, and those that are not waited for.
    drop(send(&layer, &Server::new([fails(120, "broken")]), get()).await);
    let mut call = task::spawn(layer.layer(Server::new([hangs()])).oneshot(get()));
    assert_pending!(call.poll());
    advance(150 * MILLI).await;
    drop(call);
    let seen = layer.handle().snapshot();
    assert_eq!((seen.shadowed, seen.shadowed_for), (4, 150 * MILLI));
    // Nor more than there is a share for.
    let layer = HedgeLayer::new(100 * MILLI).mode(Mode::Shadow);
    for _ in 0..40 {
        send(&layer, &Server::new([answers(130, 200)]), get())
            .await
            .0
            .unwrap();
    }
    assert_eq!(layer.handle().snapshot().shadowed, 2);
}

#[tokio::test(start_paused = true)]
async fn it_can_be_turned_off_and_on_while_requests_run() {
    let layer = hedge();
    let handle = layer.handle();
    let server = Server::new([answers(200, 200)]);
    let mut call = task::spawn(layer.layer(server.clone()).oneshot(get()));
    assert_pending!(call.poll());
    handle.set_mode(Mode::Off);
    advance(100 * MILLI).await;
    assert_pending!(call.poll());
    assert_eq!(server.times().len(), 1);
    assert_eq!(handle.snapshot().held_back, 1);
    drop(call);
    send(&layer, &server, get()).await.0.unwrap();
    assert_eq!(server.times().len(), 2);
    handle.set_mode(Mode::Enforce);
    send(&layer, &server, get()).await.0.unwrap();
    assert_eq!(server.times().len(), 4);
}
