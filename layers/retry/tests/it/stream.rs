use http_body::Body;
use http_body_util::BodyExt;
use palisade_core::{
    classify::{Http, Sse},
    respond::RespondLayer,
    testing::{Step, Steps},
};
use palisade_retry::{ReplayBody, RetryLayer};
use proptest::prelude::*;
use tokio_test::{assert_pending, task};
use tower::{Layer, ServiceExt};

use crate::support::{Backend, get, layer, send, status, streams, text};

const ONE: &str = "data: {\"n\":1}\n\n";
const BUSY: &str = "event: error\ndata: {\"error\":{\"message\":\"busy\"}}\n\n";

fn sse() -> RetryLayer<Sse> {
    layer().classify(Sse)
}

fn good() -> Vec<Step> {
    vec![Step::Data(ONE), Step::Data("data: [DONE]\n\n")]
}

#[tokio::test(start_paused = true)]
async fn an_error_event_before_any_data_is_retried() {
    for broken in [
        || vec![Step::Data(BUSY)],
        || {
            vec![
                Step::Data(": ping\n\n"),
                Step::Data("event: er"),
                Step::Data("ror\n\n"),
            ]
        },
        || vec![Step::Error("connection reset")],
        || vec![Step::Data(": ping\n\n"), Step::Error("connection reset")],
    ] {
        let backend = Backend::new([streams(broken), streams(good)]);
        let response = send(&sse(), &backend, get()).await.unwrap();
        let all = (format!("{ONE}data: [DONE]\n\n"), None);
        assert_eq!(text(response).await, all);
        assert_eq!(backend.attempts(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn from_its_first_data_on_a_stream_is_the_callers() {
    let backend = Backend::new([streams(|| vec![Step::Data(ONE), Step::Data(BUSY)])]);
    let response = send(&sse(), &backend, get()).await.unwrap();
    assert!(!response.body().is_end_stream());
    assert_eq!(text(response).await, (format!("{ONE}{BUSY}"), None));

    let cut = || vec![Step::Data(ONE), Step::Error("connection reset")];
    let response = send(&sse(), &Backend::new([streams(cut)]), get())
        .await
        .unwrap();
    assert_eq!(
        text(response).await,
        (ONE.into(), Some("connection reset".into()))
    );
    assert_eq!(backend.attempts(), 1);
}

#[tokio::test(start_paused = true)]
async fn comments_come_with_the_first_data() {
    let backend = Backend::new([streams(|| {
        vec![
            Step::Data(": ping\n\n"),
            Step::Hang,
            Step::Data(ONE),
            Step::Data(ONE),
        ]
    })]);
    let service = sse().layer(backend);
    let mut call = task::spawn(service.oneshot(get()));
    assert_pending!(call.poll());
    // The stream goes on when it is polled again.
    let std::task::Poll::Ready(Ok(response)) = call.poll() else {
        panic!("not passed on");
    };
    assert_eq!(
        text(response).await,
        (format!(": ping\n\n{ONE}{ONE}"), None)
    );
}

#[tokio::test(start_paused = true)]
async fn a_compressed_stream_is_passed_on_with_its_first_data() {
    let service = sse().layer(tower::service_fn(
        async |_: http::Request<ReplayBody<_>>| {
            let steps = [Step::Data("\u{1f}not to be read"), Step::Hang];
            http::Response::builder()
                .header("content-type", "text/event-stream")
                .header("content-encoding", "gzip")
                .body(Steps::new(steps))
        },
    ));
    let mut call = task::spawn(service.oneshot(get()));
    assert!(call.poll().is_ready());
}

#[tokio::test(start_paused = true)]
async fn too_many_comments_are_passed_on() {
    const COMMENT: &str = ": waiting for a place in the queue, please stay on the line ......\n\n";
    let many = || {
        (0..1000)
            .map(|_| Step::Data(COMMENT))
            .chain([Step::Data(BUSY)])
            .collect()
    };
    let backend = Backend::new([streams(many)]);
    let response = send(&sse(), &backend, get()).await.unwrap();
    assert!(response.body().size_hint().lower() > 16 * 1024);
    let (text, error) = text(response).await;
    assert_eq!(
        (text.len(), error),
        (1000 * COMMENT.len() + BUSY.len(), None)
    );
    assert_eq!(backend.attempts(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_last_stream_is_passed_on_as_it_broke() {
    let broken = || vec![Step::Data(": ping\n\n"), Step::Error("connection reset")];
    let backend = Backend::new([streams(broken)]);
    let response = send(&sse(), &backend, get()).await.unwrap();
    assert_eq!(response.headers()["x-should-retry"], "false");
    assert_eq!(
        response.headers()["content-type"],
        "text/event-stream; charset=utf-8"
    );
    assert!(!response.body().is_end_stream());
    let parts = (": ping\n\n".into(), Some("connection reset".into()));
    assert_eq!(text(response).await, parts);
    assert_eq!(backend.attempts(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_broke_in_every_attempt_ends_with_an_event_that_says_so() {
    for steps in [
        || vec![Step::Error("connection reset")],
        || vec![Step::Data(": ping\n\n"), Step::Error("connection reset")],
    ] {
        let backend = Backend::new([streams(steps)]);
        let service = RespondLayer::auto().layer(sse().layer(backend));
        let answer = service.oneshot(get()).await.unwrap();
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(text.to_vec()).unwrap();
        assert!(text.contains("\ndata: {"), "{text:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_stream_is_an_answer() {
    for steps in [Vec::new, || vec![Step::Data(": bye\n\n")]] {
        let backend = Backend::new([streams(steps)]);
        let response = send(&sse(), &backend, get()).await.unwrap();
        assert_eq!(text(response).await.1, None);
        assert_eq!(backend.attempts(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_judge_that_reads_no_data_takes_the_head_for_the_answer() {
    let backend = Backend::new([streams(|| vec![Step::Data(BUSY)])]);
    let response = send(&layer().classify(Http), &backend, get())
        .await
        .unwrap();
    assert_eq!(text(response).await, (BUSY.into(), None));
    assert_eq!(backend.attempts(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_status_of_a_stream_is_retried_like_any() {
    let backend = Backend::new([status(503), streams(good)]);
    let response = send(&sse(), &backend, get()).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(backend.attempts(), 2);
}

proptest! {
    /// However a stream is cut and ends: with its first data it is the caller's, and before them what fails is made again.
    #[test]
    fn nothing_is_made_again_after_the_first_data(
        pings in 0_usize..4,
        data in 0_usize..4,
        cut in any::<bool>(),
        end in 0_u8..3,
        tries in 1_u32..4,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let steps = move || {
                let mut steps: Vec<_> = (0..pings).map(|_| Step::Data(": ping\n\n")).collect();
                for _ in 0..data {
                    if cut {
                        steps.extend(["data: {\"n\"", ":1}\n", "\n"].map(Step::Data));
                    } else {
                        steps.push(Step::Data(ONE));
                    }
                }
                match end {
                    0 => {}
                    1 => steps.push(Step::Data(BUSY)),
                    _ => steps.push(Step::Error("connection reset")),
                }
                steps
            };
            let backend = Backend::new([streams(steps)]);
            let response = send(&sse().attempts(tries), &backend, get()).await.unwrap();
            let made = if data == 0 && end > 0 { tries as usize } else { 1 };
            prop_assert_eq!(backend.attempts(), made);
            // The caller gets all of the last one, to the byte.
            let mut whole = ": ping\n\n".repeat(pings) + &ONE.repeat(data);
            if end == 1 {
                whole += BUSY;
            }
            let error = (end == 2).then(|| "connection reset".to_string());
            prop_assert_eq!(text(response).await, (whole, error));
            Ok(())
        })?;
    }
}
