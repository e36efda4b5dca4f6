use std::{
    io,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Channel, Full};
use palisade_core::{
    BoxError,
    testing::{Step, Steps},
};
use palisade_fallback::{FallbackLayer, ReplayBody};
use proptest::prelude::*;
use tower::{Layer, ServiceExt, service_fn};

use crate::support::{Backend, Line, Sent, by, request, send, status, text};

type Body = Channel<Bytes, io::Error>;

/// Reads so many frames, then fails.
fn reads(frames: usize) -> Line<Body> {
    Arc::new(move |request| {
        Box::pin(async move {
            let mut body = request.into_body();
            for _ in 0..frames {
                drop(body.frame().await);
            }
            let response = Response::builder().status(503);
            Ok(response.body(Steps::new([]))?)
        })
    })
}

/// Answers with all that it reads: the data, a bar, and the names of trailers.
fn echoes() -> Line<Body> {
    Arc::new(|request| {
        Box::pin(async {
            let body = request.into_body().collect().await?;
            let trailers = body.trailers().cloned().unwrap_or_default();
            let names: Vec<_> = trailers.keys().map(|name| name.to_string()).collect();
            let data = String::from_utf8(body.to_bytes().to_vec())?;
            let text = format!("{data}|{}", names.join(","));
            // Tests may leak.
            Ok(Response::new(Steps::new([Step::Data(text.leak())])))
        })
    })
}

/// What the second service reads after the first has read some.
async fn second_reads(
    frames: Vec<String>,
    trailers: bool,
    read: usize,
    cap: usize,
) -> Option<String> {
    let (mut sender, body) = Body::new(frames.len() + 1);
    for frame in frames {
        sender.send_data(frame.into()).await.unwrap();
    }
    if trailers {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-trailer", "a".parse().unwrap());
        sender.send(Frame::trailers(trailers)).await.unwrap();
    }
    drop(sender);
    let layer = FallbackLayer::new()
        .service("secondary", Backend::new([echoes()]))
        .value("value", Response::new("value"))
        .replay_up_to(cap);
    let service = layer.layer(Backend::new([reads(read)]));
    let response = service.oneshot(Request::new(body)).await.unwrap();
    let is_value = by(&response) == Some("value");
    let text = text(response).await.0;
    assert_eq!(is_value, text == "value");
    (!is_value).then_some(text)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn an_alternative_reads_what_the_service_was_sent(
        frames in prop::collection::vec("[a-z]{1,40}", 0..8),
        trailers: bool,
        read in 0usize..10,
        cap in 0usize..400,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let second = runtime.block_on(second_reads(frames.clone(), trailers, read, cap));
        // A frame is charged as much as its place in a list takes.
        let place = size_of::<Bytes>();
        let sizes = frames.iter().map(|frame| frame.len().max(place));
        let sizes = sizes.chain(trailers.then_some(place));
        let kept: usize = sizes.take(read).sum();
        let whole = format!("{}|{}", frames.concat(), if trailers { "x-trailer" } else { "" });
        let wanted = (kept <= cap).then_some(whole);
        prop_assert_eq!(second, wanted);
    }
}

#[tokio::test(start_paused = true)]
async fn over_the_cap_the_service_goes_on() {
    let (mut sender, body) = Body::new(8);
    let layer = FallbackLayer::new()
        .service("secondary", Backend::new([echoes()]))
        .replay_up_to(10);
    let service = layer.layer(Backend::new([echoes()]));
    for _ in 0..3 {
        sender.send_data("0123456789".into()).await.unwrap();
    }
    drop(sender);
    let response = service.oneshot(Request::new(body)).await.unwrap();
    assert_eq!(text(response).await.0, "012345678901234567890123456789|");
}

#[tokio::test(start_paused = true)]
async fn an_answer_may_come_before_all_of_the_request_is_sent() {
    // The body stays with whoever serves: first the service, then an alternative.
    for first_fails in [false, true] {
        let kept = Arc::new(Mutex::new(None));
        let keep = kept.clone();
        let answers_early: Line<Body> = Arc::new(move |request| {
            *keep.lock().unwrap() = Some(request.into_body());
            Box::pin(async { Ok(Response::new(Steps::new([]))) })
        });
        let lines = if first_fails {
            [status(503), answers_early]
        } else {
            [answers_early, status(503)]
        };
        let [first, second] = lines.map(|line| Backend::new([line]));
        let service = FallbackLayer::new()
            .service("secondary", second)
            .layer(first);
        let (mut sender, body) = Body::new(1);
        let response = service.oneshot(Request::new(body)).await.unwrap();
        assert_eq!(response.status(), 200);
        sender.send_data("late".into()).await.unwrap();
        drop(sender);
        let body = kept.lock().unwrap().take().unwrap();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "late");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_more_is_sent_of_a_request_that_nobody_has_answered() {
    // As the task of an HTTP/2 connection, which reads the body apart from the call.
    let kept = Arc::new(Mutex::new(Vec::new()));
    let breaks = || -> Line<Sent> {
        let keep = kept.clone();
        Arc::new(move |request| {
            keep.lock().unwrap().push(request.into_body());
            Box::pin(async { Err("connection reset".into()) })
        })
    };
    let [first, second] = [breaks(), breaks()].map(|line| Backend::new([line]));
    let service = FallbackLayer::new()
        .service("secondary", second)
        .layer(first);
    assert!(
        service
            .oneshot(Request::new(Full::from("hello")))
            .await
            .is_err()
    );
    let bodies = std::mem::take(&mut *kept.lock().unwrap());
    assert_eq!(bodies.len(), 2);
    for body in bodies {
        assert!(body.collect().await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn another_model_is_a_service_that_writes_another_body() {
    // What a gateway to language models does: the model is a field of the JSON.
    let heard = Arc::new(Mutex::new(String::new()));
    let writes = heard.clone();
    let other_model = service_fn(move |request: Request<ReplayBody<Sent>>| {
        let writes = writes.clone();
        async move {
            let json = request.into_body().collect().await?.to_bytes();
            let json = String::from_utf8(json.to_vec())?;
            *writes.lock().unwrap() = json.replace(r#""large""#, r#""small""#);
            Ok::<_, BoxError>(Response::new(Full::<Bytes>::from("hello")))
        }
    });
    let layer = FallbackLayer::new().service("small", other_model);
    let asked = request().map(|_| r#"{"model":"large"}"#.into());
    let response = send(&layer, &Backend::new([status(503)]), asked)
        .await
        .unwrap();
    assert_eq!(by(&response), Some("small"));
    assert_eq!(*heard.lock().unwrap(), r#"{"model":"small"}"#);
}
