//! A timeout that follows the service.

use std::{
    future::{pending, ready},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full, channel::Channel};
use palisade_core::{
    BoxError,
    ratio::Ratio,
    testing::{Step, Steps},
};
use palisade_deadline::{Adaptive, AttemptTimeoutLayer, DeadlineBody, Handle, Timeouts};
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneService};

use crate::support::{MILLI, SECOND};

type Client = BoxCloneService<Request<()>, Response<DeadlineBody<Full<Bytes>>>, BoxError>;

/// A service whose speed and status the test sets; hangs when it is to take for ever.
#[derive(Clone, Default)]
struct Service {
    millis: Arc<AtomicU64>,
    status: Arc<AtomicU16>,
}

const FOREVER: u64 = u64::MAX;

impl Service {
    fn takes(&self, millis: u64) {
        self.millis.store(millis, Relaxed);
        self.status.store(200, Relaxed);
    }

    fn behind(&self, layer: &AttemptTimeoutLayer) -> Client {
        let this = self.clone();
        let inner = service_fn(move |_: Request<()>| {
            let this = this.clone();
            async move {
                match this.millis.load(Relaxed) {
                    FOREVER => pending().await,
                    millis => tokio::time::sleep(Duration::from_millis(millis)).await,
                }
                let response = Response::builder().status(this.status.load(Relaxed));
                Ok::<_, BoxError>(response.body(Full::from("x")).unwrap())
            }
        });
        Client::new(layer.layer(inner))
    }
}

async fn send(service: &Client, many: usize) -> usize {
    let mut served = 0;
    for _ in 0..many {
        let Ok(answer) = service.clone().oneshot(Request::new(())).await else {
            continue;
        };
        served += usize::from(answer.into_body().collect().await.is_ok());
    }
    served
}

fn setup(adaptive: Adaptive) -> (Service, AttemptTimeoutLayer, Handle<Timeouts>) {
    let layer = AttemptTimeoutLayer::first_byte(adaptive);
    let handle = layer.handle();
    (Service::default(), layer, handle)
}

/// Over a window that forgets nothing while a test runs.
fn adaptive() -> Adaptive {
    Adaptive::between(20 * MILLI, 10 * SECOND).window(24 * 3600 * SECOND)
}

fn timeout(handle: &Handle<Timeouts>) -> Duration {
    handle.snapshot().first_byte.unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_longest_holds_until_enough_is_known() {
    let (service, layer, handle) = setup(adaptive());
    let client = service.behind(&layer);
    service.takes(100);
    assert_eq!(send(&client, 99).await, 99);
    assert_eq!(timeout(&handle), 10 * SECOND);
    assert_eq!(send(&client, 1).await, 1);
    let timeout = timeout(&handle);
    assert!(
        timeout >= 200 * MILLI && timeout <= 215 * MILLI,
        "{timeout:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn it_follows_a_service_that_slows_down() {
    // At times 1 the most likely to choke itself.
    for times in [1.0, 2.0] {
        let (service, layer, handle) = setup(adaptive().times(times));
        let client = service.behind(&layer);
        service.takes(100);
        send(&client, 500).await;
        let before = timeout(&handle);
        service.takes(1000);
        let served = send(&client, 600).await;
        assert!(served >= 550, "{served} of 600 with times {times}");
        assert_eq!(send(&client, 100).await, 100);
        assert!(timeout(&handle) > SECOND && timeout(&handle) > before);
    }
}

#[tokio::test(start_paused = true)]
async fn it_comes_down_again_when_the_service_has_become_fast() {
    let (service, layer, handle) = setup(adaptive().window(80 * SECOND));
    let client = service.behind(&layer);
    service.takes(300);
    send(&client, 200).await;
    let slow = timeout(&handle);
    assert!(slow >= 600 * MILLI && slow < SECOND, "{slow:?}");
    service.takes(100);
    send(&client, 1000).await;
    assert!(timeout(&handle) <= 215 * MILLI, "{:?}", timeout(&handle));
}

#[tokio::test(start_paused = true)]
async fn in_a_total_outage_it_does_not_collapse_however_the_service_fails() {
    let (service, layer, handle) = setup(adaptive());
    let client = service.behind(&layer);
    service.takes(100);
    send(&client, 500).await;
    let before = timeout(&handle);

    // Failing fast is not being fast.
    for status in [500, 503, 429] {
        service.takes(1);
        service.status.store(status, Relaxed);
        send(&client, 1000).await;
        assert!(timeout(&handle) >= before, "{:?}", timeout(&handle));
    }
    // Silence.
    service.takes(FOREVER);
    assert_eq!(send(&client, 100).await, 0);
    assert_eq!(timeout(&handle), 10 * SECOND);
    service.takes(100);
    assert_eq!(send(&client, 10).await, 10);
}

#[tokio::test(start_paused = true)]
async fn it_does_not_ratchet_down_by_what_it_cuts_off() {
    // One in fifty takes longer than the quantile that is asked for leaves room for.
    let ninetieth = adaptive().quantile(Ratio::new(0.9).unwrap()).times(1.0);
    let (service, layer, handle) = setup(ninetieth);
    let client = service.behind(&layer);
    let mut served = 0;
    for index in 0..5000 {
        // From 100 to 200 ms, evenly: whatever is cut off below 190 ms would lower the next timeout.
        service.takes(100 + index * 37 % 100);
        served += send(&client, 1).await;
    }
    let timeout = timeout(&handle);
    assert!(timeout >= 185 * MILLI, "{timeout:?}");
    assert!(served >= 4400, "{served}");
}

#[tokio::test(start_paused = true)]
async fn it_looks_at_whole_answers_where_it_limits_whole_answers() {
    let layer = AttemptTimeoutLayer::new(Timeouts::none().total(adaptive()));
    let handle = layer.handle();
    let service = Service::default();
    let client = service.behind(&layer);
    service.takes(100);
    send(&client, 200).await;
    let seen = handle.snapshot();
    assert!(seen.total.unwrap() <= 215 * MILLI);
    assert_eq!(seen.first_byte, None);
}

#[tokio::test(start_paused = true)]
async fn new_bounds_keep_what_was_learnt() {
    let (service, layer, handle) = setup(adaptive());
    let client = service.behind(&layer);
    service.takes(100);
    send(&client, 200).await;
    let bounds = Adaptive::between(SECOND / 2, 10 * SECOND).window(24 * 3600 * SECOND);
    handle.set(Timeouts::none().first_byte(bounds));
    assert_eq!(timeout(&handle), SECOND / 2);
    handle.set(Timeouts::none().first_byte(bounds.window(SECOND)));
    assert_eq!(
        timeout(&handle),
        10 * SECOND,
        "another window knows nothing"
    );
}

#[tokio::test(start_paused = true)]
async fn a_silence_that_is_cut_off_does_not_make_whole_answers_look_short() {
    let median = adaptive().quantile(Ratio::HALF);
    let timeouts = Timeouts::none().first_byte(SECOND / 2).total(median);
    let layer = AttemptTimeoutLayer::new(timeouts);
    let handle = layer.handle();
    let hangs = Arc::new(AtomicBool::new(false));
    let service = {
        let hangs = hangs.clone();
        layer.layer(service_fn(move |_: Request<()>| {
            let (mut sender, body) = Channel::<Bytes, BoxError>::new(1);
            let hangs = hangs.load(Relaxed);
            tokio::spawn(async move {
                if hangs {
                    tokio::time::sleep(SECOND).await;
                }
                let _ = sender.send_data(Bytes::from("x")).await;
                tokio::time::sleep(3 * SECOND).await;
            });
            ready(Ok::<_, BoxError>(Response::new(body)))
        }))
    };
    let send = async |many: usize| {
        let mut served = 0;
        for _ in 0..many {
            let answer = service.clone().oneshot(Request::new(())).await.unwrap();
            served += usize::from(answer.into_body().collect().await.is_ok());
        }
        served
    };
    assert_eq!(send(200).await, 200);
    let before = handle.snapshot().total.unwrap();
    assert!(before >= 6 * SECOND, "{before:?}");
    hangs.store(true, Relaxed);
    assert_eq!(send(1000).await, 0);
    assert_eq!(handle.snapshot().ended.first_byte, 1000);
    assert_eq!(handle.snapshot().total, Some(before));
    hangs.store(false, Relaxed);
    assert_eq!(send(10).await, 10);
}

#[tokio::test(start_paused = true)]
async fn a_grpc_service_that_fails_fast_in_trailers_does_not_look_fast() {
    let layer = AttemptTimeoutLayer::new(Timeouts::none().total(adaptive()));
    let handle = layer.handle();
    let send = async |status: &'static str, millis: u64, many: usize| {
        let service = layer.layer(service_fn(move |_: Request<()>| async move {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", status.parse().unwrap());
            let body = Steps::new([Step::Trailers(trailers)]);
            Ok::<_, BoxError>(Response::new(body))
        }));
        for _ in 0..many {
            let answer = service.clone().oneshot(Request::new(())).await.unwrap();
            answer.into_body().collect().await.unwrap();
        }
    };
    send("0", 100, 100).await;
    let before = handle.snapshot().total.unwrap();
    assert!(before >= 200 * MILLI && before < 300 * MILLI, "{before:?}");
    send("14", 1, 20_000).await;
    assert_eq!(handle.snapshot().total, Some(before));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_does_not_count_also_if_its_reader_goes_on() {
    let layer = AttemptTimeoutLayer::new(Timeouts::none().total(adaptive()));
    let breaks = layer.layer(service_fn(|_: Request<()>| {
        let body = Steps::new([Step::Error("reset")]);
        ready(Ok::<_, BoxError>(Response::new(body)))
    }));
    for _ in 0..200 {
        let answer = breaks.clone().oneshot(Request::new(())).await.unwrap();
        let mut body = Box::pin(answer.into_body());
        assert!(body.frame().await.unwrap().is_err());
        assert!(body.frame().await.is_none());
    }
    assert_eq!(layer.handle().snapshot().total, Some(10 * SECOND));
}
