//! The same workloads through the real service, on tokio's paused clock.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use palisade_core::{attempt::Attempts, classify::Verdict, time};
use tokio::{task::JoinSet, time::Instant};
use tower::ServiceExt;
use tower_service::Service;

use super::world::{self, Job, Outcome, Server, Workload};
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
        let (end, verdict) = self.server.lock().unwrap().serve(request.body(), now);
        let end = self.born + world::nanos(end);
        Box::pin(async move {
            tokio::time::sleep_until(end).await;
            let mut response = Response::new(Empty::new());
            if verdict == Verdict::Failure {
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            }
            Ok(response)
        })
    }
}

pub(super) async fn run(workload: Arc<Workload>, jobs: Vec<Job>) -> Outcome {
    let born = time::now();
    let endpoints = Endpoints::default();
    let mut ids = Vec::new();
    for (at, kind) in workload.endpoints.iter().enumerate() {
        let server = Arc::new(Mutex::new(Server::new(*kind)));
        ids.push(endpoints.insert(Endpoint::new(at.to_string(), Simulated { server, born })));
    }
    let service = Balance::adaptive(endpoints.clone());
    let ids = Arc::new(ids);
    let mut outcome = Outcome::new(jobs.len());
    let mut tasks = JoinSet::new();
    for (number, job) in jobs.into_iter().enumerate() {
        let arrives = born + world::nanos(job.arrives);
        tokio::time::sleep_until(arrives).await;
        let (service, ids) = (service.clone(), ids.clone());
        tasks.spawn(async move {
            let attempts = Attempts::default();
            let mut request = Request::new(job);
            request.extensions_mut().insert(attempts.clone());
            let response = service.oneshot(request).await.unwrap();
            let latency = time::now() - arrives;
            let at = ids.iter().position(|id| Some(*id) == attempts.last());
            (number, at.unwrap(), latency, response.status())
        });
        while let Some(done) = tasks.try_join_next() {
            note(&mut outcome, done.unwrap());
        }
    }
    while let Some(done) = tasks.join_next().await {
        note(&mut outcome, done.unwrap());
    }
    let in_flight: u32 = endpoints
        .snapshot()
        .iter()
        .map(|endpoint| endpoint.in_flight)
        .sum();
    assert_eq!(in_flight, 0);
    outcome
}

fn note(outcome: &mut Outcome, done: (usize, usize, std::time::Duration, StatusCode)) {
    let (number, at, latency, status) = done;
    let verdict = match status {
        StatusCode::OK => Verdict::Success,
        _ => Verdict::Failure,
    };
    outcome.note(number, at, latency.as_nanos() as u64, verdict);
}
