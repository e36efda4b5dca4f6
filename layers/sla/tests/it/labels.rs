//! What is counted by route, by model and by endpoint.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use palisade_core::{
    classify::Verdict,
    gate::{Admit, Gate, GateLayer},
    head::RequestHead,
    settle::{End, Settle},
    testing::{Answers, CountingAllocator},
    time,
};
use palisade_sla::{Handle, Sla, SlaLayer};
use tokio::time::advance;
use tower::{Layer, Service};

use crate::{close, objective};

const MINUTE: Duration = Duration::from_secs(60);

fn layer() -> SlaLayer {
    let layer = SlaLayer::new(objective());
    let layer = layer.by("route", |head| Some(head.uri.path())).unwrap();
    layer
        .by("model", |head| head.headers.get("x-model")?.to_str().ok())
        .unwrap()
}

fn request(path: &str, model: Option<&str>) -> Request<()> {
    let request = Request::builder().uri(path);
    let request = match model {
        Some(model) => request.header("x-model", model),
        None => request,
    };
    request.body(()).unwrap()
}

/// One request that is answered after so long.
async fn ask(layer: &SlaLayer, request: Request<()>, status: StatusCode, taken: Duration) {
    let mut service = layer.layer(Answers(move || {
        let mut response = Response::new(Full::new(Bytes::from_static(b"hello")));
        *response.status_mut() = status;
        response
    }));
    let response = service.call(request).await.unwrap();
    advance(taken).await;
    response.into_body().collect().await.unwrap();
}

fn names(handle: &Handle, dimension: &str) -> Vec<(String, u64)> {
    let all = handle.labels(MINUTE);
    let found = all.iter().find(|found| *found.dimension == *dimension);
    let labels = found.expect("a dimension of this name").labels.iter();
    labels
        .map(|label| (label.label.to_string(), label.total_requests))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn each_label_of_each_dimension_has_a_summary_of_its_own() {
    let layer = layer();
    let handle = layer.handle();
    let millis = Duration::from_millis;
    for _ in 0..10 {
        let chat = request("/chat", Some("small"));
        ask(&layer, chat, StatusCode::OK, millis(100)).await;
        let chat = request("/chat", Some("large"));
        ask(&layer, chat, StatusCode::BAD_GATEWAY, millis(900)).await;
        ask(
            &layer,
            request("/embed", Some("small")),
            StatusCode::OK,
            millis(20),
        )
        .await;
        ask(&layer, request("/health", None), StatusCode::OK, millis(1)).await;
    }
    let counts = |pairs: &[(&str, u64)]| -> Vec<_> {
        pairs
            .iter()
            .map(|(name, count)| (name.to_string(), *count))
            .collect()
    };
    assert_eq!(
        names(&handle, "route"),
        counts(&[("/chat", 20), ("/embed", 10), ("/health", 10)])
    );
    assert_eq!(
        names(&handle, "model"),
        counts(&[("small", 20), ("large", 10)])
    );
    let chat = handle.label("route", "/chat", MINUTE).unwrap();
    assert_eq!(
        (chat.successful_requests, chat.error_count, chat.in_flight),
        (10, 10, 0)
    );
    assert_eq!(chat.error_metrics.error_rate_percent, 50.0);
    assert_eq!(chat.latency_metrics.max_seconds, 0.9);
    assert_eq!(chat.latency_metrics.avg_seconds, 0.5);
    let embed = handle.label("route", "/embed", MINUTE).unwrap();
    assert!(close(embed.latency_metrics.p50_seconds, 0.02), "{embed:?}");
    assert!(
        close(embed.first_data_metrics.p99_seconds, 0.02),
        "{embed:?}"
    );
    // The whole counts each once.
    assert_eq!(handle.summary(MINUTE).total_requests, 40);
    assert_eq!(handle.label("route", "/nowhere", MINUTE), None);
    assert_eq!(handle.label("nothing", "/chat", MINUTE), None);
    advance(Duration::from_secs(400)).await;
    let chat = handle.label("route", "/chat", MINUTE).unwrap();
    assert_eq!(
        chat.total_requests, 0,
        "it is known, and nothing has come of late"
    );
    handle.reset();
    assert_eq!(
        handle
            .label("route", "/chat", MINUTE)
            .unwrap()
            .verdicts
            .success,
        0
    );
}

#[tokio::test(start_paused = true)]
async fn labels_beyond_the_most_are_other_and_a_flood_of_them_takes_no_memory() {
    let layer = SlaLayer::new(objective()).most_labels(2);
    let layer = layer.by("route", |head| Some(head.uri.path())).unwrap();
    let handle = layer.handle();
    for path in ["/a", "/b", "/c", "/a", "/d", "/e", "/f"] {
        ask(&layer, request(path, None), StatusCode::OK, MINUTE / 100).await;
    }
    let found = names(&handle, "route");
    let found: Vec<_> = found
        .iter()
        .map(|(name, count)| (&name[..], *count))
        .collect();
    assert_eq!(found[..2], [("/a", 2), ("/b", 1)]);
    assert_eq!(found[2].0, "other");
    assert_eq!(found.iter().map(|(_, count)| count).sum::<u64>(), 7);
    let sla = layer.gate();
    let paths: Vec<_> = (0..1000)
        .map(|path| request(&format!("/{path}"), None))
        .collect();
    let before = CountingAllocator::count();
    for request in &paths {
        let admitted = sla.admit(&RequestHead::from(request), time::now());
        assert!(matches!(admitted, Admit::Now(Ok(_))));
    }
    assert_eq!(CountingAllocator::count() - before, 0);
    assert_eq!(handle.labels(MINUTE)[0].labels.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_known_label_allocates_nothing_also_in_a_new_bucket() {
    let layer = layer();
    let sla = layer.gate();
    let request = request("/chat", Some("small"));
    for at in 0..1000 {
        let before = CountingAllocator::count();
        let Admit::Now(Ok(mut guard)) = sla.admit(&RequestHead::from(&request), time::now()) else {
            panic!("lets all through");
        };
        guard.first_data(time::now());
        guard.finish(&End::new(Verdict::Success), time::now());
        drop(guard);
        let taken = CountingAllocator::count() - before;
        // The first of a label makes its place, and metrics are registered.
        assert!(at == 0 || taken == 0, "{taken} at {at}");
        advance(Duration::from_secs(1)).await;
    }
    let chat = layer.handle().label("route", "/chat", 5 * MINUTE).unwrap();
    // 5 min in buckets of 50 s, and the running one.
    assert!((300..=350).contains(&chat.total_requests), "{chat:?}");
}

/// A day of 1 M requests: what is never allocated never grows.
#[test]
fn a_million_requests_allocate_nothing() {
    const REQUESTS: u64 = 1_000_000;
    let layer = layer();
    let (sla, start) = (layer.gate(), time::now());
    let paths = ["/chat", "/embed", "/rerank"].map(|path| request(path, Some("small")));
    let serve = |at: u64| {
        let now = start + Duration::from_micros(86_400 * at);
        let head = RequestHead::from(&paths[at as usize % paths.len()]);
        let Admit::Now(Ok(mut guard)) = sla.admit(&head, now) else {
            panic!("lets all through");
        };
        guard.first_data(now + Duration::from_millis(at % 40));
        let verdict = match at % 97 {
            0 => Verdict::Failure,
            _ => Verdict::Success,
        };
        guard.finish(
            &End::new(verdict),
            now + Duration::from_millis(40 + at % 40),
        );
    };
    // Labels get their place, and metrics are registered.
    (0..3).for_each(serve);
    let before = CountingAllocator::count();
    (3..REQUESTS).for_each(serve);
    assert_eq!(CountingAllocator::count() - before, 0);
    let verdicts = layer.handle().snapshot().verdicts;
    assert_eq!(verdicts.good() + verdicts.bad(), REQUESTS);
}

#[test]
fn a_label_that_cannot_be_read_holds_nothing() {
    let layer = SlaLayer::new(objective());
    let layer = layer.by("route", |head| {
        assert_ne!(head.uri.path(), "/bad", "on purpose");
        Some(head.uri.path())
    });
    let layer = layer.unwrap();
    let bad = request("/bad", None);
    let admit = || drop(layer.gate().admit(&RequestHead::from(&bad), time::now()));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(admit)).is_err());
    assert_eq!(layer.handle().in_flight(), 0);
    assert_eq!(layer.handle().snapshot().verdicts.left_out(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_is_counted_by_a_gate_of_its_own_and_not_with_the_whole() {
    let sla = Sla::new(objective());
    let handle = sla.handle();
    let endpoint = |name| GateLayer::new(sla.labelled("endpoint", name).unwrap());
    let answers = || Answers(|| Response::new(Full::new(Bytes::from_static(b"hello"))));
    let mut one = endpoint("gpu-1").layer(answers());
    let mut two = endpoint("gpu-2").layer(answers());
    let running = one.call(Request::new(())).await.unwrap();
    for _ in 0..3 {
        let answer = two.call(Request::new(())).await.unwrap();
        answer.into_body().collect().await.unwrap();
    }
    let [one, two] = ["gpu-1", "gpu-2"].map(|name| handle.label("endpoint", name, MINUTE).unwrap());
    assert_eq!((one.total_requests, one.in_flight), (0, 1));
    assert_eq!((two.total_requests, two.in_flight), (3, 0));
    drop(running);
    let one = handle.label("endpoint", "gpu-1", MINUTE).unwrap();
    assert_eq!((one.verdicts.canceled, one.in_flight), (1, 0));
    assert_eq!(
        (handle.in_flight(), handle.summary(MINUTE).total_requests),
        (0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_known_further_in_is_counted_there_and_not_with_the_whole() {
    #[derive(Clone)]
    struct Model(&'static str);

    let sla = Sla::new(objective());
    let sla = sla.by("route", |head| Some(head.uri.path())).unwrap();
    let handle = sla.handle();
    let models = sla.further_in();
    let models = models.by("model", |head| Some(head.extensions.get::<Model>()?.0));
    let inner = GateLayer::new(models.unwrap()).layer(Answers(|| {
        Response::new(Full::new(Bytes::from_static(b"hello")))
    }));
    let named = tower::util::MapRequest::new(inner, |mut request: Request<()>| {
        if request.uri().path() == "/chat" {
            request.extensions_mut().insert(Model("small"));
        }
        request
    });
    let mut service = GateLayer::new(sla).layer(named);
    for path in ["/chat", "/chat", "/models"] {
        let answer = service.call(request(path, None)).await.unwrap();
        advance(MINUTE / 60).await;
        answer.into_body().collect().await.unwrap();
    }
    assert_eq!(handle.summary(MINUTE).total_requests, 3);
    assert_eq!(names(&handle, "model"), [("small".to_owned(), 2)]);
    assert_eq!(names(&handle, "route").len(), 2);
    assert_eq!(handle.in_flight(), 0);
}

#[test]
fn a_dimension_too_many_or_with_labels_already_is_an_error() {
    let sla = Sla::new(objective());
    let by = |sla: &Sla, name: &str| sla.clone().by(name, |head| Some(head.uri.path()));
    sla.labelled("1", "x").unwrap();
    by(&sla, "1").unwrap();
    let error = by(&sla, "1").unwrap_err();
    assert_eq!(error.to_string(), "dimension \"1\" has labels already");
    for name in ["2", "3", "4", "5", "6", "7", "8"] {
        by(&sla, name).unwrap();
    }
    let error = by(&sla, "9").unwrap_err();
    assert_eq!(error.to_string(), "dimension \"9\" is one more than 8");
    assert!(sla.labelled("9", "x").is_err());
    assert!(sla.labelled("8", "x").is_ok());
}

#[test]
fn threads_that_meet_a_label_for_the_first_time_lose_no_count_and_make_it_once() {
    const THREADS: usize = 8;
    const REQUESTS: usize = 4000;
    let sla = Sla::new(objective()).most_labels(20);
    let sla = sla.by("route", |head| Some(head.uri.path())).unwrap();
    let told = Arc::new(AtomicU64::new(0));
    thread::scope(|scope| {
        for worker in 0..THREADS {
            let (sla, told) = (sla.clone(), told.clone());
            scope.spawn(move || {
                for at in 0..REQUESTS {
                    // 40 labels for 20 places.
                    let path = format!("/{}", (at / 7 + worker) % 40);
                    let request = request(&path, None);
                    let now = time::now();
                    let Admit::Now(Ok(mut guard)) = sla.admit(&RequestHead::from(&request), now)
                    else {
                        panic!("lets all through");
                    };
                    guard.finish(&End::new(Verdict::Success), now);
                    told.fetch_add(1, Relaxed);
                }
            });
        }
    });
    let labels = sla.handle().labels(5 * MINUTE).remove(0).labels;
    assert_eq!(labels.len(), 21);
    let mut names: Vec<_> = labels.iter().map(|label| label.label.clone()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 21);
    assert!(labels.iter().all(|label| label.in_flight == 0));
    let sum: u64 = labels.iter().map(|label| label.total_requests).sum();
    assert_eq!((sum, told.load(Relaxed)), (32_000, 32_000));
}
