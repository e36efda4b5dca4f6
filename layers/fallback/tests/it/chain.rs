use std::{io::ErrorKind, time::Duration};

use http::Response;
use palisade_core::{
    attempt::Attempts, classify::Verdict, deadline::Deadline, reject::Reason, time,
};
use palisade_fallback::{FallbackLayer, unserved};

use crate::support::{
    Backend, Line, SECOND, by, fails, get, io_error, ok, outcome, reason, rejects, request, says,
    secondary, send, status,
};

#[tokio::test(start_paused = true)]
async fn a_service_that_serves_is_not_replaced_or_marked() {
    let (first, other) = (Backend::new([ok("first")]), Backend::new([ok("other")]));
    let layer = secondary(&other).value("value", Response::new("value"));
    assert_eq!(outcome(&layer, &first).await, (200, None, "first".into()));
    assert_eq!((first.calls(), other.calls()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn an_alternative_serves_whenever_the_service_could_not() {
    let lines: [Line; 8] = [
        status(500),
        status(502),
        status(503),
        status(429),
        fails(|| "broken".into()),
        io_error(ErrorKind::ConnectionRefused),
        io_error(ErrorKind::TimedOut),
        io_error(ErrorKind::ConnectionReset),
    ];
    for (at, line) in lines.into_iter().enumerate() {
        let other = Backend::new([ok("other")]);
        let served = outcome(&secondary(&other), &Backend::new([line])).await;
        let wanted = (200, Some("secondary".into()), "other".into());
        assert_eq!(served, wanted, "line {at}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_fault_of_the_caller_stays_with_the_caller() {
    for code in [400, 401, 403, 404, 409, 422] {
        let other = Backend::new([ok("other")]);
        let (passed, by, _) = outcome(&secondary(&other), &Backend::new([status(code)])).await;
        assert_eq!((passed, by, other.calls()), (code, None, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn refusals_about_the_service_are_replaced_and_those_about_the_caller_are_not() {
    for (why, replaced) in [
        (Reason::CircuitOpen, true),
        (Reason::NoEndpoint, true),
        (Reason::Overloaded, true),
        (Reason::StoreUnavailable, true),
        (Reason::TimedOut, true),
        (Reason::DeadlineExceeded, true),
        (Reason::RateLimited, false),
        (Reason::QuotaExhausted, false),
        (Reason::CostExceedsQuota, false),
    ] {
        let other = Backend::new([ok("other")]);
        let answer = get(&secondary(&other), &Backend::new([rejects(why)])).await;
        assert_eq!(answer.is_ok(), replaced, "{why:?}");
        if let Err(error) = answer {
            assert_eq!(reason(&error), Some(why));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn alternatives_are_asked_in_their_order_until_one_serves() {
    let first = Backend::new([status(503)]);
    let second = Backend::new([status(500), ok("second")]);
    let third = Backend::new([fails(|| "broken".into())]);
    let layer = FallbackLayer::new()
        .service("second", second.clone())
        .service("third", third.clone())
        .value("value", Response::new("value"));
    let served = outcome(&layer, &first).await;
    assert_eq!(served, (200, Some("value".into()), "value".into()));
    let served = outcome(&layer, &first).await;
    assert_eq!(served, (200, Some("second".into()), "second".into()));
    assert_eq!([first.calls(), second.calls(), third.calls()], [2, 2, 1]);
    let snapshot = layer.handle().snapshot();
    let served: Vec<_> = snapshot
        .alternatives
        .iter()
        .map(|each| each.served)
        .collect();
    assert_eq!((served, snapshot.exhausted), (vec![1, 0, 1], 0));
}

#[tokio::test(start_paused = true)]
async fn the_service_is_asked_first_again_each_time() {
    let first = Backend::new([status(503), status(503), ok("first")]);
    let layer = secondary(&Backend::new([ok("other")]));
    let mut served = Vec::new();
    for _ in 0..3 {
        served.push(outcome(&layer, &first).await.2);
    }
    assert_eq!(
        (served.join(" "), first.calls()),
        ("other other first".into(), 3)
    );
}

#[tokio::test(start_paused = true)]
async fn when_all_fail_the_last_failure_is_the_answer() {
    let other = Backend::new([says(500, &[], "other is down")]);
    let layer = secondary(&other);
    let first = Backend::new([says(503, &[], "first is down")]);
    let last = outcome(&layer, &first).await;
    assert_eq!(last, (500, None, "other is down".into()));
    assert_eq!(layer.handle().snapshot().exhausted, 1);

    let layer = secondary(&Backend::new([rejects(Reason::CircuitOpen)]));
    let error = get(&layer, &first).await.unwrap_err();
    assert_eq!(reason(&error), Some(Reason::CircuitOpen));
}

#[tokio::test(start_paused = true)]
async fn without_alternatives_failures_pass() {
    let layer = FallbackLayer::new();
    assert_eq!(outcome(&layer, &Backend::new([status(503)])).await.0, 503);
    assert_eq!(layer.handle().snapshot().exhausted, 1);
}

#[tokio::test(start_paused = true)]
async fn an_alternative_that_finds_fault_with_the_caller_has_served() {
    let other = Backend::new([status(404)]);
    let layer = secondary(&other).value("value", Response::new("value"));
    let (status, by, _) = outcome(&layer, &Backend::new([status(503)])).await;
    assert_eq!((status, by.as_deref()), (404, Some("secondary")));
}

#[tokio::test(start_paused = true)]
async fn a_condition_sees_verdict_answer_and_error() {
    let layer = FallbackLayer::new()
        .value("value", Response::new("value"))
        .condition(|failure| match failure.verdict() {
            Verdict::CallerFault => failure.answer().unwrap().status == 404,
            Verdict::Failure => failure
                .error()
                .is_some_and(|error| error.to_string() == "odd"),
            _ => false,
        });
    for (line, replaced) in [
        (status(404), true),
        (status(400), false),
        (status(500), false),
        (status(503), false),
        (fails(|| "odd".into()), true),
        (fails(|| "other".into()), false),
    ] {
        let answer = get(&layer, &Backend::new([line])).await;
        let served = answer.is_ok_and(|response| by(&response).is_some());
        assert_eq!(served, replaced);
    }
}

#[tokio::test(start_paused = true)]
async fn a_condition_is_not_asked_about_a_success() {
    let layer = FallbackLayer::new()
        .value("value", Response::new("value"))
        .condition(|failure| unserved(failure) || panic!("asked about {failure:?}"));
    assert_eq!(
        outcome(&layer, &Backend::new([ok("first")])).await.2,
        "first"
    );
}

#[tokio::test(start_paused = true)]
async fn each_alternative_has_a_head_of_its_own() {
    let (second, third) = (Backend::new([status(503)]), Backend::new([ok("third")]));
    let layer = FallbackLayer::new()
        .rewritten(
            "small",
            |head| {
                head.uri = "/small".parse().unwrap();
                head.headers.insert("x-model", "small".parse().unwrap());
            },
            second.clone(),
        )
        .service("third", third.clone());
    let mut asked = request();
    *asked.uri_mut() = "/large".parse().unwrap();
    asked
        .headers_mut()
        .insert("x-model", "large".parse().unwrap());
    let first = Backend::new([status(503)]);
    send(&layer, &first, asked).await.unwrap();
    let seen = |backend: &Backend| {
        let seen = backend.seen().remove(0);
        (seen.uri.to_string(), seen.headers["x-model"].clone())
    };
    assert_eq!(seen(&first), ("/large".into(), "large".parse().unwrap()));
    assert_eq!(seen(&second), ("/small".into(), "small".parse().unwrap()));
    assert_eq!(seen(&third), ("/large".into(), "large".parse().unwrap()));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_begun_once_the_deadline_has_passed() {
    let other = Backend::new([ok("other")]);
    let layer = secondary(&other).value("value", Response::new("value"));
    for (left, status) in [(SECOND, 200), (SECOND / 1000, 200), (Duration::ZERO, 503)] {
        let first = Backend::new([says(503, &[], "down")]);
        let mut late = request();
        late.extensions_mut().insert(Deadline(time::now() + left));
        let answer = send(&layer, &first, late).await.unwrap();
        assert_eq!(answer.status(), status, "{left:?} left");
    }
    assert_eq!((other.calls(), layer.handle().snapshot().exhausted), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn what_the_service_gave_up_is_not_given_up_for_the_alternative() {
    // A retry inside the service spends its attempts, and says so to whatever is outside.
    let spent: Line = std::sync::Arc::new(|request| {
        request.extensions().get::<Attempts>().unwrap().give_up();
        status(503)(request)
    });
    let other = Backend::new([ok("other")]);
    let mut asked = request();
    let attempts = Attempts::default();
    asked.extensions_mut().insert(attempts.clone());
    let first = Backend::new([spent]);
    send(&secondary(&other), &first, asked).await.unwrap();
    let theirs = other.seen().remove(0);
    assert!(!theirs.extensions.get::<Attempts>().unwrap().gave_up());
    assert!(attempts.gave_up());
}

#[tokio::test(start_paused = true)]
async fn an_alternative_that_is_not_for_a_request_is_as_if_it_were_not_there() {
    for (applies, served) in [(true, (200, Some("secondary"))), (false, (503, None))] {
        let (first, other) = (Backend::new([status(503)]), Backend::new([ok("other")]));
        let layer = secondary(&other).only_for(move |head| applies && head.uri.path() == "/");
        let (code, by, _) = outcome(&layer, &first).await;
        assert_eq!((code, by.as_deref()), served);
        assert_eq!(other.calls(), usize::from(applies));
        assert_eq!(layer.handle().snapshot().exhausted, u64::from(!applies));
        // What comes after it is asked.
        let layer = layer.value("value", Response::new("value"));
        let (_, by, _) = outcome(&layer, &Backend::new([crate::support::status(503)])).await;
        assert_eq!(
            by.as_deref(),
            Some(if applies { "secondary" } else { "value" })
        );
    }
}
