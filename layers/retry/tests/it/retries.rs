use std::{
    io,
    time::{Duration, SystemTime},
};

use http::Method;
use palisade_core::{BoxError, classify::Verdict, deadline::Deadline, reject::Reason, time};
use palisade_retry::{Backoff, Jitter, Repeatable, RetryLayer};

use crate::support::{
    Backend, MILLI, SECOND, echoes, fails, get, head, layer, refused_connection, rejects, request,
    send, status, text,
};

#[tokio::test(start_paused = true)]
async fn an_attempt_that_failed_is_made_again() {
    let backend = Backend::new([status(502), status(503), echoes()]);
    let layer = layer();
    let response = send(&layer, &backend, request(Method::PUT)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(text(response).await, ("hello".into(), None));
    assert_eq!(backend.times(), [0, 100, 200]);
    let snapshot = layer.handle().snapshot();
    assert_eq!(
        (snapshot.requests, snapshot.retries, snapshot.exhausted),
        (1, 2, 0)
    );
    assert_eq!(snapshot.budget_left, Some(98));
}

#[tokio::test(start_paused = true)]
async fn each_attempt_but_the_first_says_which_one_it_is() {
    let backend = Backend::new([status(502)]);
    send(&layer(), &backend, get()).await.unwrap();
    let seen = backend.seen();
    let numbers: Vec<_> = seen
        .iter()
        .map(|seen| seen.headers.get("x-attempt"))
        .collect();
    assert_eq!(numbers[0], None);
    assert_eq!([numbers[1].unwrap(), numbers[2].unwrap()], ["2", "3"]);
}

#[tokio::test(start_paused = true)]
async fn attempts_are_as_many_as_asked_for() {
    for (attempts, made) in [(0, 1), (1, 1), (2, 2), (5, 5)] {
        let backend = Backend::new([status(502)]);
        let response = send(&layer().attempts(attempts), &backend, get()).await;
        assert_eq!(response.unwrap().status(), 502);
        assert_eq!(backend.attempts(), made, "{attempts}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_would_fail_again_is_not_made_again() {
    for code in [200, 204, 301, 400, 401, 404, 409, 429, 501, 505] {
        let backend = Backend::new([status(code)]);
        let layer = layer();
        let response = send(&layer, &backend, get()).await.unwrap();
        assert_eq!(response.status(), code);
        assert!(
            response.headers().is_empty(),
            "{code} is the caller's, unmarked"
        );
        assert_eq!(backend.attempts(), 1, "{code}");
        assert_eq!(layer.handle().snapshot().exhausted, 0);
    }
    for code in [500, 502, 503, 504] {
        let backend = Backend::new([status(code), status(200)]);
        let response = send(&layer(), &backend, get()).await.unwrap();
        assert_eq!(response.status(), 200, "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_condition_decides_instead() {
    let layer = layer().condition(|verdict, answer| {
        verdict == Verdict::CallerFault && answer.is_some_and(|head| head.status == 409)
    });
    let backend = Backend::new([status(409), status(200)]);
    assert_eq!(send(&layer, &backend, get()).await.unwrap().status(), 200);
    let backend = Backend::new([status(502), status(200)]);
    assert_eq!(send(&layer, &backend, get()).await.unwrap().status(), 502);

    let eager = layer.condition(|_, _| true);
    let backend = Backend::new([status(200)]);
    assert_eq!(send(&eager, &backend, get()).await.unwrap().status(), 200);
    assert_eq!(backend.attempts(), 1, "a success is never made again");
}

#[tokio::test(start_paused = true)]
async fn only_requests_that_may_be_repeated_are() {
    let with_key = || {
        let mut request = request(Method::POST);
        request
            .headers_mut()
            .insert("idempotency-key", "1".parse().unwrap());
        request
    };
    let searches = Repeatable::when(|head| head.uri.path() == "/search");
    let to = |path: &str| {
        let mut request = request(Method::POST);
        *request.uri_mut() = path.parse().unwrap();
        request
    };
    for (repeatable, request, made) in [
        (Repeatable::Idempotent, request(Method::HEAD), 2),
        (Repeatable::Idempotent, request(Method::DELETE), 2),
        (Repeatable::Idempotent, request(Method::POST), 1),
        (Repeatable::Idempotent, request(Method::PATCH), 1),
        (Repeatable::Idempotent, with_key(), 2),
        (Repeatable::IdempotentOrUnsent, request(Method::PUT), 2),
        (Repeatable::IdempotentOrUnsent, request(Method::POST), 1),
        (Repeatable::All, request(Method::POST), 2),
        (searches.clone(), to("/search"), 2),
        (searches, to("/order"), 1),
    ] {
        let backend = Backend::new([status(502), status(200)]);
        let context = format!("{repeatable:?} {}", request.method());
        send(&layer().repeat(repeatable), &backend, request)
            .await
            .unwrap();
        assert_eq!(backend.attempts(), made, "{context}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_not_sent_may_be_repeated_on_request_whatever_it_does() {
    for (repeatable, made) in [
        (Repeatable::Idempotent, 1),
        (Repeatable::IdempotentOrUnsent, 2),
    ] {
        let backend = Backend::new([refused_connection(), status(502)]);
        let answer = send(&layer().repeat(repeatable), &backend, request(Method::POST)).await;
        assert_eq!(answer.is_ok(), made == 2);
        assert_eq!(backend.attempts(), made);
        if let Ok(answer) = answer {
            assert!(
                answer.headers().is_empty(),
                "was sent, and is not repeated for that"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_was_not_sent_is_made_again_at_once_and_free_the_first_time() {
    let backend = Backend::new([refused_connection()]);
    let layer = layer();
    let error = send(&layer, &backend, get()).await.unwrap_err();
    let error = error.downcast_ref::<io::Error>().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(backend.times(), [0, 0, 100]);
    assert_eq!(layer.handle().snapshot().budget_left, Some(99));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_timed_out_costs_two() {
    for line in [
        fails(|| io::Error::from(io::ErrorKind::TimedOut).into()),
        rejects(Reason::TimedOut),
    ] {
        let backend = Backend::new([line, status(200)]);
        let layer = layer();
        assert_eq!(send(&layer, &backend, get()).await.unwrap().status(), 200);
        assert_eq!(layer.handle().snapshot().budget_left, Some(98));
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_layer_further_in_refuses_is_not_asked_again() {
    for reason in [
        Reason::RateLimited,
        Reason::Overloaded,
        Reason::CircuitOpen,
        Reason::NoEndpoint,
        Reason::DeadlineExceeded,
    ] {
        let backend = Backend::new([rejects(reason)]);
        let layer = layer().condition(|_, _| true);
        assert!(send(&layer, &backend, get()).await.is_err());
        assert_eq!(backend.attempts(), 1, "{reason:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_service_says_when_to_come_back() {
    let date = httpdate(time::wall_clock() + 7 * SECOND);
    for (code, name, value, millis) in [
        (429, "retry-after", "3", 3000),
        (503, "retry-after", "2", 2000),
        (502, "retry-after", "1", 1000),
        (429, "retry-after-ms", "1500", 1500),
        (503, "retry-after", "0", 0),
        (503, "grpc-retry-pushback-ms", "250", 250),
        (503, "retry-after", "soon", 100),
    ] {
        let backend = Backend::new([head(code, &[(name, value)]), status(200)]);
        assert_eq!(send(&layer(), &backend, get()).await.unwrap().status(), 200);
        assert_eq!(backend.times(), [0, millis], "{code} {name}: {value}");
    }
    let backend = Backend::new([head(429, &[("retry-after", &date)]), status(200)]);
    let asked = time::wall_clock();
    assert_eq!(send(&layer(), &backend, get()).await.unwrap().status(), 200);
    let came_back = httpdate(asked + backend.seen()[1].at);
    assert!(came_back >= date, "{came_back} is before {date}");
    assert!(backend.times()[1] <= 7000);
}

/// As HTTP writes it, to the second.
fn httpdate(date: SystemTime) -> String {
    let since = date.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let whole = SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs());
    ::httpdate::fmt_http_date(whole)
}

#[tokio::test(start_paused = true)]
async fn a_service_that_asks_for_too_much_time_is_not_waited_for() {
    let layer = layer().wait_up_to(5 * SECOND);
    for (delay, made) in [("5", 2), ("6", 1)] {
        let backend = Backend::new([head(429, &[("retry-after", delay)]), status(200)]);
        let response = send(&layer, &backend, get()).await.unwrap();
        assert_eq!(backend.attempts(), made);
        if made == 1 {
            assert_eq!(response.headers()["retry-after"], "6", "as it came");
            assert_eq!(response.headers().len(), 1, "the caller may have the time");
        }
    }
    assert_eq!(layer.handle().snapshot().retries, 1);
}

#[tokio::test(start_paused = true)]
async fn a_delay_beyond_all_clocks_is_not_waited_for_either() {
    let layer = layer().wait_up_to(Duration::MAX);
    let forever = u64::MAX.to_string();
    let backend = Backend::new([head(503, &[("retry-after", &forever)]), status(200)]);
    let response = send(&layer, &backend, get()).await.unwrap();
    assert_eq!((response.status().as_u16(), backend.attempts()), (503, 1));
}

#[tokio::test(start_paused = true)]
async fn a_delay_past_the_deadline_is_not_waited_for() {
    for (left, made) in [(100 * MILLI, 1), (101 * MILLI, 2)] {
        let backend = Backend::new([status(503), status(200)]);
        let layer = layer();
        let mut request = get();
        let start = time::now();
        request.extensions_mut().insert(Deadline(start + left));
        let response = send(&layer, &backend, request).await.unwrap();
        assert_eq!(backend.attempts(), made);
        if made == 1 {
            assert_eq!(response.status(), 503);
            assert!(response.headers().is_empty());
            assert_eq!(time::now(), start, "at once");
            assert_eq!(layer.handle().snapshot().budget_left, Some(100));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_backoff_of_one_request_grows_and_of_the_next_begins_anew() {
    let backoff = Backoff::exponential(100 * MILLI, SECOND).unwrap();
    let layer = RetryLayer::new(backoff.jitter(Jitter::None)).attempts(6);
    for _ in 0..2 {
        let backend = Backend::new([status(502)]);
        send(&layer, &backend, get()).await.unwrap();
        assert_eq!(backend.times(), [0, 100, 300, 700, 1500, 2500]);
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_delay_that_was_asked_for_the_backoff_begins_anew() {
    let backoff = Backoff::exponential(100 * MILLI, SECOND).unwrap();
    let layer = RetryLayer::new(backoff.jitter(Jitter::None)).attempts(6);
    let backend = Backend::new([
        status(502),
        status(502),
        head(503, &[("retry-after", "2")]),
        status(502),
    ]);
    send(&layer, &backend, get()).await.unwrap();
    assert_eq!(backend.times(), [0, 100, 300, 2300, 2400, 2600]);
}

#[tokio::test(start_paused = true)]
async fn the_last_error_is_returned_unchanged() {
    let backend = Backend::new([fails(|| "first".into()), fails(|| "last".into())]);
    let error: BoxError = send(&layer(), &backend, get()).await.unwrap_err();
    assert_eq!(error.to_string(), "last");
    assert_eq!(backend.attempts(), 3);
}

#[tokio::test(start_paused = true)]
async fn clones_of_a_layer_count_together() {
    let layer = layer();
    let backend = Backend::new([status(502), status(200)]);
    send(&layer.clone(), &backend, get()).await.unwrap();
    send(&layer, &backend, get()).await.unwrap();
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.requests, snapshot.retries), (2, 1));
}
