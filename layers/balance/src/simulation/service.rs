//! The same workloads through the real service, on tokio's paused clock.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use palisade_core::{classify::Verdict, time};
use tokio::{task::JoinSet, time::Instant};
use tower::ServiceExt;
use tower_service::Service;

use super::{
    Policy, Scenario, TUNING_SEEDS, Workload, jobs::Job, run, server::Server, world::World,
};
use crate::{Balance, Endpoint, Endpoints};

/// An endpoint that answers when the model says so.
#[derive(Clone)]
struct Simulated {
    server: Arc<Mutex<Server>>,
    born: Instant,
}

type Answer = Result<Response<Empty<Bytes>>, Infallible>;

impl Service<Request<Job>> for Simulated {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Job>) -> Self::Future {
        let now = (time::now() - self.born).as_nanos() as u64;
        let served = self
            .server
            .lock()
            .unwrap()
            .serve(request.body(), f64::INFINITY, now);
        let end = self.born + Duration::from_nanos(served.end);
        Box::pin(async move {
            tokio::time::sleep_until(end).await;
            let mut response = Response::new(Empty::new());
            if served.verdict == Verdict::Failure {
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            }
            Ok(response)
        })
    }
}

/// p99 in seconds, and the part that failed.
async fn serve(world: World) -> (f64, f64) {
    let born = time::now();
    let endpoints = Endpoints::default();
    for (at, server) in world.servers.into_iter().enumerate() {
        let server = Arc::new(Mutex::new(server));
        endpoints.insert(Endpoint::new(at.to_string(), Simulated { server, born }));
    }
    let service = Balance::adaptive(endpoints.clone());
    let mut tasks = JoinSet::new();
    let warm_up = world.jobs.len() / 10;
    for (number, job) in world.jobs.into_iter().enumerate() {
        let arrives = born + Duration::from_nanos(job.arrives);
        tokio::time::sleep_until(arrives).await;
        let service = service.clone();
        tasks.spawn(async move {
            let response = service.oneshot(Request::new(job)).await.unwrap();
            (number, time::now() - arrives, response.status())
        });
    }
    let mut counted = tasks.join_all().await;
    counted.retain(|&(number, _, _)| number >= warm_up);
    let failed = counted.iter().filter(|one| one.2 != StatusCode::OK).count();
    let mut latencies: Vec<_> = counted.iter().map(|one| one.1).collect();
    latencies.sort_unstable();
    let snapshot = endpoints.snapshot();
    assert!(snapshot.iter().all(|endpoint| endpoint.in_flight == 0));
    let p99 = latencies[latencies.len() * 99 / 100].as_secs_f64();
    (p99, failed as f64 / counted.len() as f64)
}

#[test]
fn the_whole_service_stays_near_the_oracle_too() {
    for name in ["slow1", "hetero", "blackhole"] {
        let workload = Workload::named(name).unwrap();
        let (mut oracles, mut served, mut errors) = (0.0, 0.0, 0.0);
        for seed in TUNING_SEEDS {
            let scenario = Scenario::of(workload.clone()).seed(seed).requests(10_000);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            let (p99, failed) = runtime.block_on(serve(World::new(&scenario)));
            oracles += run(&scenario, Policy::Queues).unwrap().latency.p99;
            served += p99;
            errors += failed / TUNING_SEEDS.len() as f64;
        }
        let ratio = served / oracles;
        println!("{name} through the service: {ratio:.3} of the oracle's p99, {errors:.5} errors");
        assert!(ratio <= 1.15, "{name}: {ratio}");
        assert!(errors < 0.001, "{name}: {errors}");
    }
}
