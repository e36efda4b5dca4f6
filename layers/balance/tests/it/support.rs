//! Endpoints that do as they are told, and gates.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, combinators::BoxBody};
use palisade_balance::{Balance, BalanceLayer, Endpoint, EndpointState, Endpoints, Snapshot};
use palisade_core::{
    BoxError,
    attempt::Attempts,
    classify::Verdict,
    gate::{Admit, Gate, Outlook},
    head::RequestHead,
    reject::{Reason, Rejected},
    settle::{End, Settle},
};
use tokio::time::{Instant, sleep};
use tower::{Layer, Service, ServiceExt};

pub(crate) type Body = BoxBody<Bytes, Infallible>;

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// An endpoint that answers after a while, and counts.
#[derive(Clone)]
pub(crate) struct Fake(Arc<State>);

struct State {
    takes: Mutex<Duration>,
    status: Mutex<Option<StatusCode>>,
    bodies: Mutex<VecDeque<Body>>,
    calls: AtomicUsize,
    ready: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
}

impl Fake {
    pub(crate) fn new(millis: u32) -> Self {
        Self(Arc::new(State {
            takes: Mutex::new(MS * millis),
            status: Mutex::new(Some(StatusCode::OK)),
            bodies: Mutex::default(),
            calls: AtomicUsize::new(0),
            ready: AtomicBool::new(true),
            wakers: Mutex::default(),
        }))
    }

    pub(crate) fn now(&self, millis: u32, status: StatusCode) {
        *self.0.takes.lock().unwrap() = MS * millis;
        *self.0.status.lock().unwrap() = Some(status);
    }

    /// Nobody listens on its port any more.
    pub(crate) fn kill(&self) {
        *self.0.status.lock().unwrap() = None;
    }

    pub(crate) fn calls(&self) -> usize {
        self.0.calls.load(SeqCst)
    }

    pub(crate) fn is_up(&self) -> bool {
        self.0.status.lock().unwrap().is_some()
    }

    pub(crate) fn next_body(&self, body: Body) {
        self.0.bodies.lock().unwrap().push_back(body);
    }

    pub(crate) fn set_ready(&self, ready: bool) {
        self.0.ready.store(ready, SeqCst);
        if ready {
            self.0
                .wakers
                .lock()
                .unwrap()
                .drain(..)
                .for_each(Waker::wake);
        }
    }
}

impl<R> Service<Request<R>> for Fake {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.0.ready.load(SeqCst) {
            return Poll::Ready(Ok(()));
        }
        self.0.wakers.lock().unwrap().push(cx.waker().clone());
        Poll::Pending
    }

    fn call(&mut self, _: Request<R>) -> Self::Future {
        self.0.calls.fetch_add(1, SeqCst);
        let takes = *self.0.takes.lock().unwrap();
        let status = *self.0.status.lock().unwrap();
        let body = self.0.bodies.lock().unwrap().pop_front();
        Box::pin(async move {
            let Some(status) = status else {
                return Err(io::Error::from(io::ErrorKind::ConnectionRefused).into());
            };
            sleep(takes).await;
            let mut response = Response::new(body.unwrap_or_else(|| Empty::new().boxed()));
            *response.status_mut() = status;
            Ok(response)
        })
    }
}

pub(crate) fn balance<S, G: Gate>(endpoints: &Endpoints<S, G>) -> Balance<S, G> {
    BalanceLayer::adaptive()
        .wait(PATIENCE)
        .layer(endpoints.clone())
}

/// Named 0, 1, 2, ... and answering after so many milliseconds.
pub(crate) fn fakes(endpoints: &Endpoints<Fake>, millis: &[u32]) -> Vec<Fake> {
    let fakes: Vec<_> = millis.iter().map(|&millis| Fake::new(millis)).collect();
    for (at, fake) in fakes.iter().enumerate() {
        endpoints.insert(Endpoint::new(at.to_string(), fake.clone()));
    }
    fakes
}

pub(crate) async fn send<S, B>(service: &S) -> Result<StatusCode, BoxError>
where
    S: Service<Request<()>, Response = Response<B>, Error = BoxError> + Clone,
    B: http_body::Body<Data = Bytes, Error = BoxError>,
{
    exchange(service.clone()).await
}

/// One request that would rather go to this endpoint than to another.
pub(crate) async fn send_to<S, G: Gate, T, B>(
    endpoints: &Endpoints<S, G>,
    service: &T,
    name: &str,
) -> Result<Response<B>, BoxError>
where
    T: Service<Request<()>, Response = Response<B>, Error = BoxError> + Clone,
{
    let attempts = Attempts::default();
    for endpoint in endpoints.snapshot() {
        if *endpoint.name != *name {
            attempts.note(endpoint.id);
        }
    }
    let mut request = Request::new(());
    request.extensions_mut().insert(attempts);
    service.clone().oneshot(request).await
}

async fn exchange<S, B>(service: S) -> Result<StatusCode, BoxError>
where
    S: Service<Request<()>, Response = Response<B>, Error = BoxError>,
    B: http_body::Body<Data = Bytes, Error = BoxError>,
{
    let response = service.oneshot(Request::new(())).await?;
    let status = response.status();
    response.into_body().collect().await?;
    Ok(status)
}

/// So many requests in this rhythm, without waiting for their answers; returns how many have failed.
pub(crate) async fn load<S, B>(service: &S, requests: usize, pause: Duration) -> usize
where
    S: Service<Request<()>, Response = Response<B>, Error = BoxError> + Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes, Error = BoxError> + Send,
{
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..requests {
        let service = service.clone();
        tasks.spawn(async move {
            exchange(service)
                .await
                .is_ok_and(|status| status.is_success())
        });
        sleep(pause).await;
    }
    tasks.join_all().await.into_iter().filter(|ok| !ok).count()
}

/// How many calls each has had since.
pub(crate) fn since(fakes: &[Fake], before: &[usize]) -> Vec<usize> {
    let calls = fakes.iter().map(Fake::calls);
    calls
        .zip(before)
        .map(|(calls, before)| calls - before)
        .collect()
}

pub(crate) fn calls(fakes: &[Fake]) -> Vec<usize> {
    fakes.iter().map(Fake::calls).collect()
}

pub(crate) fn in_flight<S, G: Gate>(endpoints: &Endpoints<S, G>) -> u32 {
    let all = endpoints.snapshot();
    all.iter().map(|endpoint| endpoint.in_flight).sum()
}

pub(crate) fn of<S, G: Gate>(endpoints: &Endpoints<S, G>, name: &str) -> Snapshot {
    let mut all = endpoints.snapshot().into_iter();
    all.find(|endpoint| &*endpoint.name == name).unwrap()
}

pub(crate) fn state<S, G: Gate>(endpoints: &Endpoints<S, G>, name: &str) -> EndpointState {
    of(endpoints, name).state
}

/// A small circuit breaker: so many failures in a row open it, one probe closes it.
#[derive(Clone)]
pub(crate) struct Circuit(Arc<Mutex<Machine>>);

struct Machine {
    threshold: u32,
    cooldown: Duration,
    row: u32,
    state: Phase,
    epoch: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Closed,
    Open { until: Instant },
    HalfOpen { probing: bool },
    Forced,
}

pub(crate) struct Permit {
    circuit: Circuit,
    epoch: u64,
    told: bool,
}

impl Circuit {
    pub(crate) fn new(threshold: u32, cooldown: Duration) -> Self {
        Self(Arc::new(Mutex::new(Machine {
            threshold,
            cooldown,
            row: 0,
            state: Phase::Closed,
            epoch: 0,
        })))
    }

    pub(crate) fn force_open(&self) {
        self.0.lock().unwrap().enter(Phase::Forced);
    }

    pub(crate) fn close(&self) {
        self.0.lock().unwrap().enter(Phase::Closed);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.lock().unwrap().state == Phase::Closed
    }
}

impl Machine {
    fn enter(&mut self, state: Phase) {
        self.state = state;
        self.row = 0;
        self.epoch += 1;
    }
}

impl Gate for Circuit {
    type Guard = Permit;

    fn admit(&self, _: &RequestHead<'_>, now: Instant) -> Admit<Permit> {
        let mut machine = self.0.lock().unwrap();
        let refuse = |delay: Option<Duration>| {
            let rejected = Rejected::new(Reason::CircuitOpen, "open");
            Admit::Now(Err(match delay {
                Some(delay) => rejected.retry_after(delay),
                None => rejected,
            }))
        };
        match machine.state {
            Phase::Closed => {}
            Phase::Open { until } if now < until => return refuse(Some(until - now)),
            Phase::HalfOpen { probing: true } | Phase::Forced => return refuse(None),
            Phase::Open { .. } | Phase::HalfOpen { .. } => {
                machine.enter(Phase::HalfOpen { probing: true });
            }
        }
        let epoch = machine.epoch;
        Admit::Now(Ok(Permit {
            circuit: self.clone(),
            epoch,
            told: false,
        }))
    }

    fn outlook(&self, now: Instant) -> Outlook {
        match self.0.lock().unwrap().state {
            Phase::Closed => Outlook::Admits,
            Phase::Open { until } if now < until => Outlook::Refuses { until: Some(until) },
            Phase::HalfOpen { probing: true } => Outlook::Refuses { until: None },
            Phase::Open { .. } | Phase::HalfOpen { .. } => Outlook::Probes,
            Phase::Forced => Outlook::Held,
        }
    }
}

impl Settle for Permit {
    fn settle(&mut self, end: &End, now: Instant) {
        assert!(!std::mem::replace(&mut self.told, true), "told once");
        let mut machine = self.circuit.0.lock().unwrap();
        if machine.epoch != self.epoch {
            return;
        }
        match (machine.state, end.verdict) {
            (_, Verdict::Failure | Verdict::Unsent | Verdict::TimedOut) => {
                machine.row += 1;
                if machine.row >= machine.threshold || machine.state != Phase::Closed {
                    let until = now + machine.cooldown;
                    machine.enter(Phase::Open { until });
                }
            }
            (Phase::HalfOpen { .. }, Verdict::Success) => machine.enter(Phase::Closed),
            (Phase::HalfOpen { .. }, _) => machine.state = Phase::HalfOpen { probing: false },
            _ => machine.row = 0,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        // A guard that is dropped untold would hold its probe for ever.
        assert!(self.told || std::thread::panicking());
    }
}
