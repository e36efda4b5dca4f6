//! Refusing what can hardly be done in time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use palisade_core::{
    BoxError,
    deadline::Deadline,
    reject::{Reason, Rejected},
    time,
};
use palisade_deadline::{DeadlineLayer, Hopeless, Mode, Need};
use tokio::task::LocalSet;
use tower::{Layer, ServiceExt, service_fn};

use crate::support::{MILLI, SECOND};

/// A service whose head takes half of its time and whose body the other half.
#[derive(Clone)]
struct Service {
    millis: Arc<AtomicU64>,
    calls: Arc<AtomicU64>,
    layer: DeadlineLayer,
    status: StatusCode,
}

impl Service {
    fn new(layer: DeadlineLayer, millis: u64) -> Self {
        Self {
            millis: Arc::new(millis.into()),
            calls: Arc::default(),
            layer,
            status: StatusCode::OK,
        }
    }

    async fn send(&self, left: Duration) -> Result<(), BoxError> {
        let this = self.clone();
        let inner = service_fn(move |_: Request<()>| {
            let this = this.clone();
            async move {
                this.calls.fetch_add(1, Relaxed);
                let half = Duration::from_millis(this.millis.load(Relaxed) / 2);
                tokio::time::sleep(half).await;
                let (mut sender, body) = http_body_util::channel::Channel::new(2);
                tokio::spawn(async move {
                    let _ = sender.send_data(Bytes::from("x")).await;
                    tokio::time::sleep(half).await;
                    let _ = sender.send_data(Bytes::from("y")).await;
                });
                let response = Response::builder().status(this.status);
                let body: http_body_util::channel::Channel<Bytes, BoxError> = body;
                Ok::<_, BoxError>(response.body(body).unwrap())
            }
        });
        let mut request = Request::new(());
        let deadline = Deadline(time::now() + left);
        request.extensions_mut().insert(deadline);
        let response = self.layer.layer(inner).oneshot(request).await?;
        response.into_body().collect().await.map(drop)
    }

    /// Has so many requests answered, all at once.
    async fn learn(&self, many: usize) {
        let local = LocalSet::new();
        for _ in 0..many {
            let this = self.clone();
            local.spawn_local(async move {
                let _ = this.send(3600 * SECOND).await;
            });
        }
        local.await;
    }
}

fn layer(need: Need) -> DeadlineLayer {
    DeadlineLayer::new(3600 * SECOND).refuse_below_median(need)
}

#[track_caller]
fn hopeless(error: &BoxError) -> Hopeless {
    let rejected = Rejected::find(&**error).expect("refused");
    assert_eq!(rejected.reason(), Reason::DeadlineExceeded);
    let source = std::error::Error::source(rejected).unwrap();
    *source.downcast_ref().expect("hopeless")
}

#[tokio::test(start_paused = true)]
async fn too_little_time_is_refused_at_once_and_never_reaches_the_service() {
    let service = Service::new(layer(Need::Whole), 1000);
    service.learn(50).await;
    let (calls, start) = (service.calls.load(Relaxed), time::now());
    let error = service.send(900 * MILLI).await.unwrap_err();
    let hopeless = hopeless(&error);
    assert_eq!(hopeless.remaining, 900 * MILLI);
    assert!(hopeless.median >= SECOND && hopeless.median < 1070 * MILLI);
    assert_eq!(service.calls.load(Relaxed), calls);
    assert_eq!(time::now(), start);
    assert!(service.send(1100 * MILLI).await.is_ok());
    let seen = service.layer.handle().snapshot();
    assert_eq!((seen.ended.hopeless, seen.ended.deadline), (1, 0));
    assert_eq!(seen.median, Some(hopeless.median));
}

#[tokio::test(start_paused = true)]
async fn what_is_needed_is_the_first_data_or_all_by_choice() {
    let service = Service::new(layer(Need::FirstData), 1000);
    service.learn(50).await;
    let median = service.layer.handle().snapshot().median.unwrap();
    assert!(median >= SECOND / 2 && median < 540 * MILLI, "{median:?}");
    hopeless(&service.send(400 * MILLI).await.unwrap_err());
    // Enough for the beginning; what comes of it is cut at the deadline.
    let error = service.send(900 * MILLI).await.unwrap_err();
    assert_eq!(Rejected::find(&*error).unwrap().reason(), Reason::TimedOut);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_refused_before_enough_is_known() {
    let service = Service::new(layer(Need::Whole), 1000);
    service.learn(19).await;
    let error = service.send(MILLI).await.unwrap_err();
    assert_eq!(Rejected::find(&*error).unwrap().reason(), Reason::TimedOut);
    assert_eq!(service.layer.handle().snapshot().ended.hopeless, 0);
    hopeless(&service.send(MILLI).await.unwrap_err());
}

#[tokio::test(start_paused = true)]
async fn one_in_ten_passes_all_the_same() {
    let service = Service::new(layer(Need::Whole), 1000);
    service.learn(50).await;
    let calls = service.calls.load(Relaxed);
    for _ in 0..100 {
        assert!(service.send(100 * MILLI).await.is_err());
    }
    assert_eq!(service.calls.load(Relaxed) - calls, 10);
    let seen = service.layer.handle().snapshot();
    assert_eq!((seen.ended.hopeless, seen.let_through), (90, 10));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_has_become_fast_again_is_found() {
    let service = Service::new(layer(Need::Whole), 10_000);
    service.learn(100).await;
    hopeless(&service.send(SECOND).await.unwrap_err());
    service.millis.store(10, Relaxed);
    let start = time::now();
    // Twenty a second, all with too little time for what the service was.
    let mut in_a_row = 0;
    while in_a_row < 50 {
        let served = service.send(SECOND).await.is_ok();
        in_a_row = if served { in_a_row + 1 } else { 0 };
        tokio::time::sleep(50 * MILLI).await;
        assert!(start.elapsed() < 60 * SECOND, "not found within the window");
    }
    let seen = service.layer.handle().snapshot();
    assert!(seen.median.unwrap() < 12 * MILLI);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_answers_nobody_in_time_is_spared() {
    // All deadlines are shorter than the service: each that is cut off counts for twice its age.
    let service = Service::new(layer(Need::Whole), 10_000);
    for _ in 0..100 {
        assert!(service.send(SECOND).await.is_err());
    }
    let calls = service.calls.load(Relaxed);
    assert!(calls < 35, "{calls} calls");
}

#[tokio::test(start_paused = true)]
async fn failing_fast_is_not_being_fast() {
    let mut service = Service::new(layer(Need::Whole), 1000);
    service.learn(50).await;
    service.status = StatusCode::SERVICE_UNAVAILABLE;
    service.millis.store(2, Relaxed);
    service.learn(1000).await;
    let median = service.layer.handle().snapshot().median;
    assert!(median.unwrap() >= SECOND, "{median:?}");
}

#[tokio::test(start_paused = true)]
async fn a_shadow_refuses_nothing_and_says_what_it_would_have() {
    let service = Service::new(layer(Need::Whole).shadow(), 1000);
    service.learn(50).await;
    for left in [Duration::ZERO, 100 * MILLI] {
        assert!(service.send(left).await.is_ok());
    }
    let handle = service.layer.handle();
    let seen = handle.snapshot();
    assert_eq!((seen.shadowed.passed, seen.shadowed.hopeless), (1, 1));
    assert_eq!(seen.ended, Default::default());
    handle.set_mode(Mode::Enforce);
    assert!(service.send(100 * MILLI).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn it_can_be_turned_off_and_on_live() {
    let service = Service::new(layer(Need::Whole), 1000);
    let handle = service.layer.handle();
    service.learn(50).await;
    let mut deadlines = handle.get();
    deadlines.refuse_below_median = None;
    deadlines.at_most = Some(100 * MILLI);
    handle.set(deadlines);
    let error = service.send(SECOND).await.unwrap_err();
    assert_eq!(Rejected::find(&*error).unwrap().reason(), Reason::TimedOut);
    assert_eq!(handle.snapshot().median, None);
    deadlines.refuse_below_median = Some(Need::Whole);
    handle.set(deadlines);
    assert_eq!(handle.snapshot().median, None, "begins anew");
}
