//! A service that does as it is told and knows what of it is still alive.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body, Frame};
use palisade::BoxError;
use tower::Service;

/// What happens to a call.
#[derive(Clone, Debug)]
pub(crate) enum Plan {
    Answer(StatusCode, Vec<Step>),
    Error(&'static str),
    PanicInCall,
    PanicInPoll,
    /// Pending until [`Inner::wake`].
    Hang,
}

/// One poll of the body.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Data(&'static str),
    Trailers(HeaderMap),
    Error(&'static str),
    Panic,
    Hang,
}

impl Plan {
    pub(crate) fn ok(steps: impl Into<Vec<Step>>) -> Self {
        Self::Answer(StatusCode::OK, steps.into())
    }
}

#[derive(Debug)]
struct Shared {
    plan: Mutex<Plan>,
    ready: AtomicBool,
    dead: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
    calls: AtomicUsize,
    polls: AtomicUsize,
    called_unready: AtomicUsize,
}

/// Clones are instances: each must have said that it is ready before it is called.
#[derive(Debug)]
pub(crate) struct Inner {
    shared: Arc<Shared>,
    was_ready: bool,
    /// Futures and bodies hold one too: what is alive can be counted.
    alive: Arc<()>,
}

impl Clone for Inner {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            was_ready: false,
            alive: self.alive.clone(),
        }
    }
}

impl Inner {
    pub(crate) fn new(plan: Plan) -> Self {
        Self {
            shared: Arc::new(Shared {
                plan: Mutex::new(plan),
                ready: AtomicBool::new(true),
                dead: AtomicBool::new(false),
                wakers: Mutex::default(),
                calls: AtomicUsize::new(0),
                polls: AtomicUsize::new(0),
                called_unready: AtomicUsize::new(0),
            }),
            was_ready: false,
            alive: Arc::new(()),
        }
    }

    /// A remote control: it looks on and is no instance.
    pub(crate) fn remote(&self) -> Remote {
        Remote {
            shared: self.shared.clone(),
            alive: Arc::downgrade(&self.alive),
        }
    }
}

pub(crate) struct Remote {
    shared: Arc<Shared>,
    alive: std::sync::Weak<()>,
}

impl Remote {
    pub(crate) fn plan(&self, plan: Plan) {
        *self.shared.plan.lock().unwrap() = plan;
    }

    pub(crate) fn set_ready(&self, ready: bool) {
        self.shared.ready.store(ready, SeqCst);
        self.wake();
    }

    pub(crate) fn die(&self) {
        self.shared.dead.store(true, SeqCst);
        self.wake();
    }

    pub(crate) fn wake(&self) {
        for waker in self.shared.wakers.lock().unwrap().drain(..) {
            waker.wake();
        }
    }

    /// Instances, futures and bodies that are still held by anybody.
    pub(crate) fn alive(&self) -> usize {
        self.alive.strong_count()
    }

    pub(crate) fn calls(&self) -> usize {
        self.shared.calls.load(SeqCst)
    }

    /// Polls of futures and bodies.
    pub(crate) fn polls(&self) -> usize {
        self.shared.polls.load(SeqCst)
    }

    pub(crate) fn called_unready(&self) -> usize {
        self.shared.called_unready.load(SeqCst)
    }
}

impl Shared {
    fn wait(&self, cx: &Context<'_>) {
        self.wakers.lock().unwrap().push(cx.waker().clone());
    }
}

impl<R> Service<Request<R>> for Inner {
    type Response = Response<InnerBody>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.shared.dead.load(SeqCst) {
            return Poll::Ready(Err("dead".into()));
        }
        if self.shared.ready.load(SeqCst) {
            self.was_ready = true;
            return Poll::Ready(Ok(()));
        }
        self.shared.wait(cx);
        Poll::Pending
    }

    fn call(&mut self, _: Request<R>) -> Self::Future {
        let unready = !std::mem::take(&mut self.was_ready);
        self.shared
            .called_unready
            .fetch_add(usize::from(unready), SeqCst);
        self.shared.calls.fetch_add(1, SeqCst);
        let plan = self.shared.plan.lock().unwrap().clone();
        assert!(!matches!(plan, Plan::PanicInCall), "on purpose");
        let (shared, alive) = (self.shared.clone(), self.alive.clone());
        Box::pin(async move {
            shared.polls.fetch_add(1, SeqCst);
            match plan {
                Plan::Answer(status, mut steps) => {
                    steps.reverse();
                    let body = InnerBody {
                        steps,
                        shared,
                        _alive: alive,
                    };
                    let mut response = Response::new(body);
                    *response.status_mut() = status;
                    Ok(response)
                }
                Plan::Error(error) => Err(error.into()),
                Plan::PanicInCall | Plan::PanicInPoll => panic!("on purpose"),
                Plan::Hang => {
                    let _alive = alive;
                    poll_fn(|cx| {
                        shared.wait(cx);
                        Poll::Pending
                    })
                    .await
                }
            }
        })
    }
}

#[derive(Debug)]
pub(crate) struct InnerBody {
    steps: Vec<Step>,
    shared: Arc<Shared>,
    _alive: Arc<()>,
}

impl Body for InnerBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.shared.polls.fetch_add(1, SeqCst);
        Poll::Ready(match self.steps.last().cloned() {
            Some(Step::Hang) => {
                self.shared.wait(cx);
                return Poll::Pending;
            }
            Some(Step::Panic) => panic!("on purpose"),
            Some(Step::Data(data)) => {
                self.steps.pop();
                Some(Ok(Frame::data(Bytes::from_static(data.as_bytes()))))
            }
            Some(Step::Trailers(trailers)) => {
                self.steps.pop();
                Some(Ok(Frame::trailers(trailers)))
            }
            Some(Step::Error(error)) => {
                self.steps.pop();
                Some(Err(error.into()))
            }
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.steps.is_empty()
    }
}
