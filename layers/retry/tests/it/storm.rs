//! Outages of a server that has a capacity, second by second on a paused clock: the same in every run.
//!
//! 1 000 requests a second for a server that can do 1 400, with room for two seconds of them to wait; callers have the
//! patience of one. It does the work of callers that have left too, as servers do that hear of it late. So whoever lets
//! its queue fill up keeps it from ever answering in time: such a storm outlives what has caused it.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use palisade_core::{BoxError, attempt::Attempts, respond, time};
use palisade_retry::{Backoff, Budget, ReplayBody, RetryLayer};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tower::{Layer, Service, ServiceExt};

use crate::support::{SECOND, get};

type Body = Full<Bytes>;
type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

const RATE: u32 = 1_000;
const CAPACITY: u32 = 1_400;
/// How many seconds of work may wait.
const QUEUE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(1);

/// What is wrong with the server while the fault lasts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// 503, at once.
    Refuses,
    /// The connection breaks, at once.
    Resets,
    /// It takes requests and does nothing with them.
    Stalls,
    /// One in ten is refused.
    OneInTen,
}

#[derive(Clone)]
struct Server(Arc<Mutex<State>>);

struct State {
    start: Instant,
    fault: Fault,
    /// Seconds of the run.
    from: u32,
    to: u32,
    /// When all that waits is done.
    free_at: Instant,
    random: u64,
    /// Attempts of which a byte was sent, by second.
    attempts: Vec<u32>,
}

impl Server {
    fn new(fault: Fault, from: u32, to: u32) -> Self {
        let start = time::now();
        Self(Arc::new(Mutex::new(State {
            start,
            fault,
            from,
            to,
            free_at: start,
            random: 7,
            attempts: Vec::new(),
        })))
    }

    fn attempts(&self) -> Vec<u32> {
        self.0.lock().unwrap().attempts.clone()
    }
}

impl State {
    /// When it answers, or at once with what.
    fn take(&mut self) -> Result<Instant, Result<u16, &'static str>> {
        let now = time::now();
        let second = (now - self.start).as_secs() as usize;
        self.attempts.resize(self.attempts.len().max(second + 1), 0);
        self.attempts[second] += 1;
        let (from, to) = (
            self.start + self.from * SECOND,
            self.start + self.to * SECOND,
        );
        let mut begins = now;
        if (from..to).contains(&now) {
            let fault = self.fault;
            match fault {
                Fault::Refuses => return Err(Ok(503)),
                Fault::Resets => return Err(Err("connection reset")),
                Fault::OneInTen if self.one_in_ten() => return Err(Ok(503)),
                Fault::OneInTen => {}
                Fault::Stalls => begins = to,
            }
        }
        if self.free_at.saturating_duration_since(begins) >= QUEUE {
            return Err(Ok(503));
        }
        self.free_at = self.free_at.max(begins) + SECOND / CAPACITY;
        Ok(self.free_at)
    }

    fn one_in_ten(&mut self) -> bool {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.random >> 33).is_multiple_of(10)
    }
}

impl<B> Service<Request<B>> for Server {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Answer {
        let taken = self.0.lock().unwrap().take();
        Box::pin(async move {
            let status = match taken {
                Ok(done) => {
                    sleep_until(done).await;
                    200
                }
                Err(Ok(status)) => status,
                Err(Err(error)) => return Err(error.into()),
            };
            Ok(Response::builder().status(status).body(Full::default())?)
        })
    }
}

/// From one gateway to the next: of a request goes on what is on the wire, and errors become answers.
#[derive(Clone)]
struct Hop<S>(S);

impl<S, B> Service<Request<ReplayBody<Body>>> for Hop<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError> + Clone + Send + 'static,
    S::Future: Send,
    B: Send,
{
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<ReplayBody<Body>>) -> Answer {
        let mut head = request.map(drop);
        let attempts = Attempts::default();
        *head.extensions_mut() = http::Extensions::new();
        head.extensions_mut().insert(attempts.clone());
        let next = self
            .0
            .clone()
            .oneshot(head.clone().map(|()| Full::default()));
        Box::pin(async move {
            let error = match next.await {
                Ok(answer) => return Ok(answer.map(|_| Full::default())),
                Err(error) => error,
            };
            let mut answer = respond::answer(&(&head).into(), &*error);
            if attempts.gave_up() {
                let headers = answer.headers_mut();
                headers.insert("x-should-retry", HeaderValue::from_static("false"));
            }
            Ok(answer)
        })
    }
}

/// What became of the requests of each second.
struct Run {
    good: Vec<u32>,
}

impl Run {
    /// Sends so many seconds of requests, and waits for all of them.
    async fn new<S, B>(service: S, seconds: u32) -> Self
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Send,
        B: Send + 'static,
    {
        let start = time::now();
        let mut requests = JoinSet::new();
        let mut good = vec![0; seconds as usize];
        for number in 0..seconds * RATE {
            let at = start + number * (SECOND / RATE);
            sleep_until(at).await;
            let call = service.clone().oneshot(get());
            requests.spawn(async move {
                let second = (number / RATE) as usize;
                (
                    second,
                    call.await.is_ok_and(|answer| answer.status() == 200),
                )
            });
            while let Some(ended) = requests.try_join_next() {
                let (second, well) = ended.unwrap();
                good[second] += u32::from(well);
            }
        }
        while let Some(ended) = requests.join_next().await {
            let (second, well) = ended.unwrap();
            good[second] += u32::from(well);
        }
        Self { good }
    }

    /// The share of requests that went well, of those that came in these seconds.
    fn share(&self, seconds: std::ops::Range<usize>) -> f64 {
        let all = seconds.len() as f64 * f64::from(RATE);
        f64::from(self.good[seconds].iter().sum::<u32>()) / all
    }

    /// How long after this second at least 95 % are well again and stay so.
    fn recovered(&self, after: usize) -> Option<usize> {
        let well = |good: &u32| *good >= RATE * 95 / 100;
        let last_bad = self.good.iter().rposition(|good| !well(good))?;
        (last_bad + 1 < self.good.len()).then(|| (last_bad + 1).saturating_sub(after))
    }
}

fn sum(attempts: &[u32], seconds: std::ops::Range<usize>) -> u32 {
    attempts.iter().take(seconds.end).skip(seconds.start).sum()
}

fn retry(budget: Budget) -> RetryLayer {
    RetryLayer::new(Backoff::default().seed(1)).budget(budget)
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_all_endpoints_costs_a_fifth_more_and_the_floor() {
    for fault in [Fault::Refuses, Fault::Resets, Fault::Stalls] {
        for warm in [0, 10] {
            let server = Server::new(fault, warm, warm + 30);
            let layer = retry(Budget::default()).attempt_timeout(PATIENCE);
            Run::new(layer.layer(server.clone()), warm + 30).await;
            let attempts = server.attempts();
            let (warm, all) = (warm as usize, warm as usize + 30);
            let requests = all as u32 * RATE;
            let during = sum(&attempts, warm..all);
            let sent = sum(&attempts, 0..all + 10);
            println!(
                "{fault:?} after {warm} s: {during} attempts for 30000 requests ({:.3}x), {sent} for {requests} in all",
                f64::from(during) / 30_000.0
            );
            // The reserve that it begins with, and one a second.
            let floor = 100 + all as u32 + 2;
            assert!(sent <= requests * 6 / 5 + floor, "{sent}");
            // What ten good seconds have saved is spent in the first of the bad ones.
            let saved = if warm == 0 { 0 } else { 2_010 };
            assert!(during <= 36_000 + floor + saved, "{during}");
            assert!(
                fault == Fault::Stalls || during > 35_000,
                "it is used: {during}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_storm_ends_with_its_cause_and_without_a_budget_it_does_not() {
    const FROM: u32 = 10;
    const TO: u32 = 40;
    const END: u32 = 70;

    let run = async |name: &str, attempts, budget: Budget| {
        let server = Server::new(Fault::Stalls, FROM, TO);
        let layer = retry(budget).attempts(attempts).attempt_timeout(PATIENCE);
        let run = Run::new(layer.layer(server.clone()), END).await;
        let recovered = run.recovered(TO as usize);
        let after = sum(&server.attempts(), TO as usize..END as usize);
        println!(
            "{name}: well before {:.3}, from 10 s after {:.3}; recovered after {recovered:?} s; {:.2} attempts a request after",
            run.share(1..FROM as usize),
            run.share(TO as usize + 10..END as usize),
            f64::from(after) / f64::from((END - TO) * RATE),
        );
        assert!(run.share(1..FROM as usize) > 0.999);
        (recovered, run.share(TO as usize + 10..END as usize))
    };
    let (once, _) = run("once", 1, Budget::default()).await;
    let (with, share) = run("with a budget", 3, Budget::default()).await;
    let (without, broken) = run("without", 3, Budget::unlimited()).await;
    assert!(once.is_some_and(|seconds| seconds <= 10));
    assert!(with.is_some_and(|seconds| seconds <= 10), "{with:?}");
    assert!(share >= 0.95, "{share}");
    // The test can fail: nothing but the budget is different.
    assert_eq!(without, None, "half a minute on");
    assert!(broken < 0.05, "{broken}");
}

#[tokio::test(start_paused = true)]
async fn through_three_gateways_an_outage_costs_a_quarter_more_at_most() {
    for fault in [Fault::Refuses, Fault::Resets, Fault::Stalls] {
        let server = Server::new(fault, 0, 30);
        let gateway = || retry(Budget::default());
        let bottom = gateway().attempt_timeout(PATIENCE);
        let service = gateway().layer(Hop(gateway().layer(Hop(bottom.layer(server.clone())))));
        Run::new(service, 30).await;
        let sent = sum(&server.attempts(), 0..40);
        println!(
            "{fault:?} through three gateways: {sent} attempts for 30000 requests ({:.3}x)",
            f64::from(sent) / 30_000.0
        );
        assert!(f64::from(sent) <= 30_000.0 * 1.25, "{sent}");
        assert!(fault == Fault::Stalls || sent > 35_000, "{sent}");
    }
}

#[tokio::test(start_paused = true)]
async fn when_one_attempt_in_ten_fails_one_request_in_two_hundred_does_at_most() {
    let run = async |attempts| {
        let server = Server::new(Fault::OneInTen, 0, 30);
        let layer = retry(Budget::default()).attempts(attempts);
        let run = Run::new(layer.layer(server.clone()), 30).await;
        let sent = f64::from(sum(&server.attempts(), 0..40)) / 30_000.0;
        let share = run.share(0..30);
        println!("{attempts} attempts: {share:.4} well at {sent:.3} attempts a request");
        (share, sent)
    };
    let (without, _) = run(1).await;
    let (with, sent) = run(3).await;
    assert!((0.895..0.905).contains(&without), "{without}");
    assert!(with >= 0.995, "{with}");
    assert!(sent <= 1.12, "{sent}");
}
