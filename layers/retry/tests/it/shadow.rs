use http::Method;
use palisade_core::classify::Sse;
use palisade_retry::{Mode, Repeatable, RetryLayer};
use tower::{Layer, ServiceExt};

use crate::support::{Backend, MILLI, SECOND, get, hangs, layer, request, send, status};

#[tokio::test(start_paused = true)]
async fn in_shadow_the_first_answer_is_the_callers_and_counted() {
    let layer = layer().mode(Mode::Shadow);
    for _ in 0..4 {
        let backend = Backend::new([status(503), status(200)]);
        let answer = send(&layer, &backend, get()).await.unwrap();
        assert_eq!((answer.status().as_u16(), backend.attempts()), (503, 1));
        assert!(answer.headers().is_empty(), "unmarked");
    }
    send(&layer, &Backend::new([status(200)]), get())
        .await
        .unwrap();
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.shadowed, snapshot.retries), (4, 0));
    // As much as would have been made of them.
    assert_eq!(snapshot.budget_left, Some(96));
}

#[tokio::test(start_paused = true)]
async fn in_shadow_what_could_not_be_retried_is_counted_and_unmarked() {
    let spent = palisade_retry::Budget::percent(0).reserve(0);
    let layer = layer().budget(spent).mode(Mode::Shadow);
    let answer = send(&layer, &Backend::new([status(503)]), get())
        .await
        .unwrap();
    assert!(answer.headers().is_empty());
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.shadowed, snapshot.exhausted), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn in_shadow_no_time_is_up() {
    let layer = layer()
        .attempt_timeout(MILLI)
        .within(MILLI)
        .mode(Mode::Shadow);
    for method in [Method::GET, Method::POST] {
        let backend = Backend::new([hangs()]);
        let service = layer.layer(backend);
        let mut call = tokio_test::task::spawn(service.oneshot(request(method)));
        assert!(call.poll().is_pending());
        tokio::time::advance(SECOND).await;
        assert!(!call.is_woken());
    }
}

#[tokio::test(start_paused = true)]
async fn a_layer_is_switched_off_and_on_while_it_runs() {
    let layer = layer();
    let handle = layer.handle();
    assert_eq!(handle.mode(), Mode::Enforce);
    for (mode, made) in [
        (Mode::Off, 1),
        (Mode::Enforce, 3),
        (Mode::Shadow, 1),
        (Mode::Enforce, 3),
    ] {
        handle.set_mode(mode);
        assert_eq!(layer.handle().mode(), mode);
        let backend = Backend::new([status(503)]);
        send(&layer, &backend, get()).await.unwrap();
        assert_eq!(backend.attempts(), made, "{mode:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_when_retries_are_switched_off_makes_its_next_attempt_its_last() {
    let layer = layer().attempts(10);
    let backend = Backend::new([status(503)]);
    let service = layer.layer(backend.clone());
    let mut call = tokio_test::task::spawn(service.oneshot(get()));
    assert!(call.poll().is_pending());
    layer.handle().set_mode(Mode::Off);
    call.await.unwrap();
    assert_eq!(backend.attempts(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_mode_that_one_clone_is_given_is_not_that_of_the_others() {
    let one = layer();
    let two = one.clone().mode(Mode::Off);
    assert_eq!(one.handle().mode(), Mode::Enforce);
    assert_eq!(two.handle().mode(), Mode::Off);
    one.handle().set_mode(Mode::Shadow);
    assert_eq!(two.handle().mode(), Mode::Off);
}

#[tokio::test(start_paused = true)]
async fn completions_are_asked_for_again_and_other_posts_are_not() {
    let layer: RetryLayer<Sse> = RetryLayer::completions();
    for (path, made) in [
        ("/v1/chat/completions", 3),
        ("/v1/completions", 3),
        ("/openai/v1/embeddings", 3),
        ("/anthropic/v1/messages", 3),
        ("/v1/responses", 3),
        ("/v1beta/models/gemini-pro:streamGenerateContent?alt=sse", 3),
        ("/v1/files", 1),
        ("/v1/fine_tuning/jobs", 1),
        ("/v1/messages/batches", 1),
        // Says something in a conversation that is kept.
        ("/v1/threads/thread_1/messages", 1),
    ] {
        let backend = Backend::new([status(503)]);
        let mut post = request(Method::POST);
        *post.uri_mut() = path.parse().unwrap();
        send(&layer, &backend, post).await.unwrap();
        assert_eq!(backend.attempts(), made, "{path}");
    }
    let delete = || {
        let mut delete = request(Method::DELETE);
        *delete.uri_mut() = "/v1/files/1".parse().unwrap();
        delete
    };
    let backend = Backend::new([status(503)]);
    send(
        &layer.clone().repeat(Repeatable::completions()),
        &backend,
        delete(),
    )
    .await
    .unwrap();
    assert_eq!(backend.attempts(), 3);
    let times = backend.times();
    assert!((250..=500).contains(&times[1]), "half a second at first");
}
