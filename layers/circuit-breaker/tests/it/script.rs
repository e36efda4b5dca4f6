//! A service, its answers, a judge and a caller that all do what one request is told to.

use std::{
    any::Any,
    collections::BTreeMap,
    future::{Future, pending, poll_fn},
    io, mem,
    panic::resume_unwind,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header::RETRY_AFTER};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use palisade_circuit_breaker::{CircuitBreaker, CircuitState, Handle};
use palisade_core::{
    BoxError,
    classify::{Classify, Http, Judge, Usage, Verdict},
    gate::{GateLayer, Gated},
    head::{RequestHead, ResponseHead},
    reject::{Reason, Rejected},
};
use tokio::time::{Sleep, sleep, timeout};
use tower::{Layer, Service};

/// What goes wrong with one request; where a body is concerned, after its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Trouble {
    Nothing,
    BadGateway,
    /// 503, with a `Retry-After` of as many seconds.
    Busy(u64),
    NotFound,
    NotReached,
    ErrorOfService,
    ErrorOfBody,
    RefusedInside,
    HangsInHead,
    HangsInBody,
    PanicInStart,
    PanicInCall,
    PanicInPoll,
    PanicInHead,
    PanicInFrame,
    PanicInData,
    PanicInEnd,
    PanicInUsage,
    CallerLeavesBeforePoll,
    CallerLeavesBeforeHead,
    CallerLeavesBeforeHeadLate,
    CallerLeavesAfterHead,
    CallerLeavesInBody,
    LeakBeforePoll,
    LeakBeforeHead,
    LeakInBody,
}

impl Trouble {
    pub(crate) const ALL: [Self; 26] = [
        Self::Nothing,
        Self::BadGateway,
        Self::Busy(2),
        Self::NotFound,
        Self::NotReached,
        Self::ErrorOfService,
        Self::ErrorOfBody,
        Self::RefusedInside,
        Self::HangsInHead,
        Self::HangsInBody,
        Self::PanicInStart,
        Self::PanicInCall,
        Self::PanicInPoll,
        Self::PanicInHead,
        Self::PanicInFrame,
        Self::PanicInData,
        Self::PanicInEnd,
        Self::PanicInUsage,
        Self::CallerLeavesBeforePoll,
        Self::CallerLeavesBeforeHead,
        Self::CallerLeavesBeforeHeadLate,
        Self::CallerLeavesAfterHead,
        Self::CallerLeavesInBody,
        Self::LeakBeforePoll,
        Self::LeakBeforeHead,
        Self::LeakInBody,
    ];
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Act {
    pub(crate) trouble: Trouble,
    /// Before the head, and before each frame.
    pub(crate) latency: Duration,
    /// Frames of data.
    pub(crate) frames: u32,
}

impl Act {
    pub(crate) fn new(trouble: Trouble) -> Self {
        Self {
            trouble,
            latency: Duration::from_millis(10),
            frames: 0,
        }
    }

    fn panics(self, here: Trouble) {
        if self.trouble == here {
            // Says nothing on standard error, where a thousand of them would.
            resume_unwind(Box::new(OnPurpose));
        }
    }
}

/// What a panic that belongs to the test carries.
struct OnPurpose;

pub(crate) fn is_on_purpose(panic: &(dyn Any + Send)) -> bool {
    panic.is::<OnPurpose>()
}

/// The service behind the breaker, which also looks whether it may be called.
#[derive(Clone)]
pub(crate) struct Backend {
    circuit: Handle,
    calls: Arc<AtomicU32>,
    calls_while_open: Arc<AtomicU32>,
    probes: Arc<Mutex<BTreeMap<Trouble, u32>>>,
}

impl Backend {
    pub(crate) fn behind(breaker: &CircuitBreaker) -> Self {
        Self {
            circuit: breaker.handle(),
            calls: Arc::default(),
            calls_while_open: Arc::default(),
            probes: Arc::default(),
        }
    }

    pub(crate) fn service(&self, breaker: &CircuitBreaker) -> Gated<Self, CircuitBreaker, Script> {
        let layer = GateLayer::new(breaker.clone()).classify(Script);
        layer.layer(self.clone())
    }

    pub(crate) fn calls(&self) -> u32 {
        self.calls.load(Ordering::SeqCst)
    }

    pub(crate) fn calls_while_open(&self) -> u32 {
        self.calls_while_open.load(Ordering::SeqCst)
    }

    /// What has gone wrong with probes, and how often.
    pub(crate) fn probes(&self) -> BTreeMap<Trouble, u32> {
        self.probes.lock().unwrap().clone()
    }
}

impl Service<Request<()>> for Backend {
    type Response = Response<Answer>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answer>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        let act: Act = *request.extensions().get().expect("an act");
        self.calls.fetch_add(1, Ordering::SeqCst);
        match self.circuit.snapshot().state {
            CircuitState::Open => {
                self.calls_while_open.fetch_add(1, Ordering::SeqCst);
            }
            CircuitState::HalfOpen => {
                let mut probes = self.probes.lock().unwrap();
                *probes.entry(act.trouble).or_default() += 1;
            }
            CircuitState::Closed => {}
        }
        act.panics(Trouble::PanicInCall);
        Box::pin(async move {
            sleep(act.latency).await;
            act.panics(Trouble::PanicInPoll);
            let mut response = Response::new(Answer {
                act,
                left: act.frames,
                pause: None,
            });
            match act.trouble {
                Trouble::BadGateway => *response.status_mut() = StatusCode::BAD_GATEWAY,
                Trouble::NotFound => *response.status_mut() = StatusCode::NOT_FOUND,
                Trouble::Busy(seconds) => {
                    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                    response.headers_mut().insert(RETRY_AFTER, seconds.into());
                }
                Trouble::NotReached => {
                    return Err(io::Error::from(io::ErrorKind::ConnectionRefused).into());
                }
                Trouble::ErrorOfService => return Err("broken".into()),
                Trouble::RefusedInside => {
                    return Err(Rejected::new(Reason::Overloaded, "full").into());
                }
                Trouble::HangsInHead
                | Trouble::CallerLeavesBeforeHead
                | Trouble::CallerLeavesBeforeHeadLate
                | Trouble::LeakBeforeHead => pending().await,
                _ => {}
            }
            Ok(response)
        })
    }
}

/// The body of an answer.
pub(crate) struct Answer {
    act: Act,
    left: u32,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let latency = self.act.latency;
        let pause = self.pause.get_or_insert_with(|| Box::pin(sleep(latency)));
        ready!(pause.as_mut().poll(cx));
        self.pause = None;
        if self.left > 0 {
            self.left -= 1;
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"data")))));
        }
        self.act.panics(Trouble::PanicInFrame);
        match self.act.trouble {
            Trouble::ErrorOfBody => Poll::Ready(Some(Err("reset".into()))),
            Trouble::HangsInBody | Trouble::CallerLeavesInBody | Trouble::LeakInBody => {
                Poll::Pending
            }
            _ => Poll::Ready(None),
        }
    }
}

/// Judges as plain HTTP does, or panics.
#[derive(Clone, Copy)]
pub(crate) struct Script;

impl Classify for Script {
    type Judge = ScriptJudge;

    fn start(&self, head: &RequestHead<'_>) -> ScriptJudge {
        let act: Act = *head.extensions.get().expect("an act");
        act.panics(Trouble::PanicInStart);
        ScriptJudge(act)
    }
}

pub(crate) struct ScriptJudge(Act);

impl Judge for ScriptJudge {
    const READS_DATA: bool = true;

    fn head(&mut self, head: &ResponseHead<'_>) -> Option<Verdict> {
        self.0.panics(Trouble::PanicInHead);
        Http.head(head)
    }

    fn data(&mut self, _: &[u8]) -> Option<Verdict> {
        self.0.panics(Trouble::PanicInData);
        None
    }

    fn end(&mut self, trailers: Option<&HeaderMap>) -> Verdict {
        self.0.panics(Trouble::PanicInEnd);
        Http.end(trailers)
    }

    fn usage(&self) -> Option<Usage> {
        self.0.panics(Trouble::PanicInUsage);
        None
    }
}

/// Sends one request and does with it what its caller does.
pub(crate) async fn perform(
    mut service: Gated<Backend, CircuitBreaker, Script>,
    act: Act,
) -> Result<(), BoxError> {
    poll_fn(|cx| service.poll_ready(cx)).await?;
    let mut request = Request::new(());
    request.extensions_mut().insert(act);
    let mut response = Box::pin(service.call(request));
    let patience = match act.trouble {
        Trouble::CallerLeavesBeforePoll => return Ok(()),
        Trouble::LeakBeforePoll => {
            mem::forget(response);
            return Ok(());
        }
        Trouble::CallerLeavesBeforeHead | Trouble::LeakBeforeHead => act.latency * 2,
        Trouble::CallerLeavesBeforeHeadLate => Duration::from_secs(6),
        _ => Duration::MAX,
    };
    let Ok(response) = timeout(patience, &mut response).await else {
        if act.trouble == Trouble::LeakBeforeHead {
            mem::forget(response);
        }
        return Ok(());
    };
    let mut body = Box::pin(response?.into_body());
    if act.trouble == Trouble::CallerLeavesAfterHead {
        return Ok(());
    }
    let patience = match act.trouble {
        Trouble::CallerLeavesInBody | Trouble::LeakInBody => act.latency * 2,
        _ => Duration::MAX,
    };
    while let Ok(frame) = timeout(patience, body.frame()).await {
        match frame {
            Some(frame) => drop(frame?),
            None => return Ok(()),
        }
    }
    if act.trouble == Trouble::LeakInBody {
        mem::forget(body);
    }
    Ok(())
}
