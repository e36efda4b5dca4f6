//! Endpoints that hang or are slow, behind a balancer with a deadline or a hedge around it.

use std::{
    convert::Infallible,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use palisade::{
    BoxError, Ratio,
    balance::{BalanceLayer, Endpoint, Endpoints, Strategy},
    deadline::{AttemptTimeoutLayer, DeadlineLayer},
    retry::HedgeLayer,
    time::now,
};
use tokio::time::sleep;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);

/// Answers after so long, or never; counts its calls.
fn backend<B: 'static>(
    latency: Option<Duration>,
    calls: Arc<AtomicU32>,
) -> impl Service<Request<B>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send> + Clone
{
    service_fn(move |_: Request<B>| {
        calls.fetch_add(1, Relaxed);
        async move {
            match latency {
                Some(latency) => sleep(latency).await,
                None => pending().await,
            }
            Ok(Response::new(Full::from("answer")))
        }
    })
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_accepts_and_never_answers_gets_hardly_a_request_though_no_timeout_finds_it()
 {
    dead_endpoint(true).await;
}

#[tokio::test(start_paused = true)]
async fn it_is_found_as_well_by_callers_who_never_read_a_body() {
    dead_endpoint(false).await;
}

async fn dead_endpoint(reads: bool) {
    let [dead, alive] = [(); 2].map(|()| Arc::new(AtomicU32::new(0)));
    let endpoints = Endpoints::default();
    let timeout = AttemptTimeoutLayer::first_byte(30 * SECOND);
    for (name, latency, calls) in [("dead", None, &dead), ("alive", Some(10 * MILLI), &alive)] {
        let service = ServiceBuilder::new()
            .layer(timeout.clone())
            .service(backend(latency, calls.clone()));
        endpoints.insert(Endpoint::new(name, service));
    }
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::new(2 * SECOND))
        .layer(BalanceLayer::adaptive())
        .service(endpoints.clone());

    let ask = async |requests: u32| {
        let mut running = Vec::new();
        for _ in 0..requests {
            let request = Request::new(Empty::<Bytes>::new());
            let answer = service.clone().oneshot(request);
            running.push(tokio::spawn(async move {
                let answer = answer.await?;
                if reads {
                    answer.into_body().collect().await?;
                }
                Ok::<_, BoxError>(())
            }));
            sleep(100 * MILLI).await;
        }
        let mut late = 0;
        for request in running {
            late += u32::from(request.await.unwrap().is_err());
        }
        late
    };
    ask(100).await;
    let (found, late) = (dead.load(Relaxed), ask(300).await);
    // In half a minute: a look or two whether it has come back.
    let looks = dead.load(Relaxed) - found;
    assert!(
        looks <= 3 && late == looks,
        "{looks} looks, {late} late, {found} at first"
    );
    let snapshot = endpoints.snapshot();
    assert!(
        snapshot.iter().all(|endpoint| endpoint.in_flight == 0),
        "{snapshot:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_hedge_goes_to_another_endpoint_and_leaves_nothing_behind_at_the_first() {
    let calls = Arc::new(AtomicU32::new(0));
    let endpoints = Endpoints::default();
    for (name, latency) in [("a", 10 * MILLI), ("b", SECOND), ("c", 10 * MILLI)] {
        endpoints.insert(Endpoint::new(name, backend(Some(latency), calls.clone())));
    }
    let hedge = HedgeLayer::new(50 * MILLI).at_most(Ratio::new(1.0).unwrap());
    let handle = hedge.handle();
    let service = ServiceBuilder::new()
        .layer(hedge)
        .layer(BalanceLayer::new(Strategy::RoundRobin))
        .service(endpoints.clone());
    for _ in 0..30 {
        let since = now();
        let request = Request::new(Empty::<Bytes>::new());
        let answer: Result<_, BoxError> = service.clone().oneshot(request).await;
        let body = answer.unwrap().into_body().collect().await.unwrap();
        assert_eq!(body.to_bytes(), "answer");
        let took = now() - since;
        assert!(took <= 120 * MILLI, "{took:?}");
    }
    let hedges = handle.snapshot();
    assert!(hedges.sent > 0 && hedges.won == hedges.sent, "{hedges:?}");
    assert_eq!(u64::from(calls.load(Relaxed)), 30 + hedges.sent);
    let snapshot = endpoints.snapshot();
    for endpoint in &snapshot {
        assert_eq!(
            (endpoint.in_flight, endpoint.failures),
            (0, 0),
            "{endpoint:?}"
        );
    }
}
