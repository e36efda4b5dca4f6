use bytes::Bytes;
use http::HeaderMap;
use http_body::Body;
use http_body_util::BodyExt;
use palisade_chaos::{After, ChaosLayer, Fault, Injected};
use palisade_core::{classify::Verdict, testing::Step, time};
use proptest::prelude::*;
use tokio::time::advance;
use tokio_test::{assert_pending, assert_ready, task};

use crate::support::{MILLI, SECOND, answer, chaos, text};

fn pieces() -> [Step; 3] {
    [Step::Data("one "), Step::Data("two "), Step::Data("three")]
}

#[tokio::test(start_paused = true)]
async fn a_body_breaks_off_after_exactly_so_much() {
    for (after, wanted) in [
        (After::Bytes(0), Some("")),
        (After::Bytes(1), Some("o")),
        (After::Bytes(4), Some("one ")),
        (After::Bytes(6), Some("one tw")),
        (After::Bytes(13), Some("one two three")),
        (After::Bytes(14), None),
        (After::Frames(0), Some("")),
        (After::Frames(2), Some("one two ")),
        (After::Frames(3), Some("one two three")),
        (After::Frames(4), None),
    ] {
        let layer = chaos([Fault::abort(after)]);
        let (text, error) = text(answer(&layer, pieces()).await).await;
        assert_eq!(text, wanted.unwrap_or("one two three"), "{after:?}");
        assert_eq!(error.is_some(), wanted.is_some(), "{after:?}");
        let struck = layer.handle().snapshot().faults[0].struck;
        assert_eq!(
            struck,
            u64::from(wanted.is_some()),
            "only what was reached is counted"
        );
        if let Some(error) = error {
            assert_eq!(Injected::find(&*error).unwrap().fault(), "abort");
            assert_eq!(Verdict::of(&*error), Verdict::Failure);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_will_break_off_does_not_say_that_it_is_over() {
    let layer = chaos([Fault::abort(After::Bytes(5))]);
    let response = crate::support::send(&layer, crate::support::request())
        .await
        .unwrap();
    let mut body = Box::pin(response.into_body());
    assert!(body.frame().await.unwrap().is_ok());
    // The service has said its end: a server that asks would close the answer well.
    assert!(!body.is_end_stream());
    assert!(body.frame().await.unwrap().is_err());
    assert!(body.is_end_stream() && body.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn trailers_and_errors_of_the_service_pass() {
    let layer = chaos([Fault::abort(After::Bytes(100)), Fault::drip(2, MILLI)]);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let steps = [Step::Data("one"), Step::Trailers(trailers.clone())];
    let body = answer(&layer, steps).await.collect().await.unwrap();
    assert_eq!(body.trailers(), Some(&trailers));
    assert_eq!(body.to_bytes(), "one");
    let (passed, error) = text(answer(&layer, [Step::Data("one"), Step::Error("cut")]).await).await;
    assert_eq!(
        (&*passed, error.unwrap().to_string()),
        ("one", "cut".into())
    );
}

#[tokio::test(start_paused = true)]
async fn a_body_stalls_after_exactly_so_much() {
    let layer = chaos([Fault::stall(After::Bytes(6))]);
    let mut body = Box::pin(answer(&layer, pieces()).await);
    assert_eq!(
        body.frame().await.unwrap().unwrap().into_data().unwrap(),
        "one "
    );
    assert_eq!(
        body.frame().await.unwrap().unwrap().into_data().unwrap(),
        "tw"
    );
    let mut rest = task::spawn(body.frame());
    assert_pending!(rest.poll());
    advance(1000 * SECOND).await;
    assert!(!rest.is_woken());
    assert_pending!(rest.poll());
    drop(rest);
    assert!(!body.is_end_stream());
    assert_eq!(layer.handle().snapshot().faults[0].struck, 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_pauses_and_goes_on() {
    let layer = chaos([Fault::pause(After::Frames(1), SECOND)]);
    let mut body = Box::pin(answer(&layer, pieces()).await);
    body.frame().await.unwrap().unwrap();
    let mut next = task::spawn(body.frame());
    assert_pending!(next.poll());
    advance(SECOND - MILLI).await;
    assert_pending!(next.poll());
    advance(MILLI).await;
    assert!(next.is_woken());
    let frame = assert_ready!(next.poll()).unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "two ");
    drop(next);
    assert_eq!(body.collect().await.unwrap().to_bytes(), "three");
}

#[tokio::test(start_paused = true)]
async fn a_body_drips() {
    let layer = chaos([Fault::drip(3, 10 * MILLI)]);
    let since = time::now();
    let mut body = Box::pin(answer(&layer, pieces()).await);
    let mut seen = Vec::new();
    while let Some(frame) = body.frame().await {
        let data = frame.unwrap().into_data().unwrap();
        let text = String::from_utf8(data.to_vec()).unwrap();
        seen.push((since.elapsed().as_millis(), text));
    }
    let wanted = [
        (0, "one"),
        (10, " "),
        (20, "two"),
        (30, " "),
        (40, "thr"),
        (50, "ee"),
    ];
    assert_eq!(seen, wanted.map(|(at, text)| (at, text.to_owned())));
    assert_eq!(layer.handle().snapshot().faults[0].struck, 1);
}

#[tokio::test(start_paused = true)]
async fn faults_of_bodies_compose() {
    let faults = [
        Fault::pause(After::Bytes(2), SECOND),
        Fault::abort(After::Bytes(9)),
        Fault::drip(4, 10 * MILLI),
    ];
    let since = time::now();
    let (text, error) = text(answer(&chaos(faults), pieces()).await).await;
    assert_eq!(text, "one two t");
    assert!(error.is_some());
    // "on", "e ", "two ", "t": a drop apart each, and the pause.
    assert_eq!(since.elapsed(), SECOND + 4 * 10 * MILLI);
}

async fn through(layer: ChaosLayer, frames: Vec<String>) -> (Vec<usize>, String, bool) {
    let steps = frames.into_iter().map(|frame| Step::Data(frame.leak()));
    let mut body = Box::pin(answer(&layer, steps).await);
    let (mut sizes, mut text) = (Vec::new(), String::new());
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return (sizes, text, true);
        };
        let data: Bytes = frame.into_data().unwrap();
        sizes.push(data.len());
        text.push_str(std::str::from_utf8(&data).unwrap());
    }
    (sizes, text, false)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_passes_is_a_prefix_of_the_body_of_just_the_right_length(
        frames in prop::collection::vec("[a-z]{0,12}", 0..8),
        abort in 0u64..60,
        pause in 0u64..60,
        drip in 1usize..20,
    ) {
        let whole = frames.concat();
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_time().start_paused(true).build().unwrap();
        let layer = chaos([
            Fault::pause(After::Bytes(pause), SECOND),
            Fault::abort(After::Bytes(abort)),
            Fault::drip(drip, MILLI),
        ]);
        let (sizes, text, broken) = runtime.block_on(through(layer, frames));
        let length = whole.len().min(abort as usize);
        prop_assert_eq!(text, &whole[..length]);
        prop_assert_eq!(broken, abort as usize <= whole.len());
        prop_assert!(sizes.iter().all(|&size| size <= drip), "{:?}", sizes);
    }
}
