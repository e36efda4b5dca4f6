//! Gates, services and bodies that write down what happens to them.

#![allow(unsafe_code, reason = "the allocator that counts")]

#[cfg(feature = "tonic")]
mod raw;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::time::Instant;
use tower_service::Service;

use crate::{
    BoxError,
    gate::{Admit, Gate},
    head::RequestHead,
    settle::{End, Settle},
};

#[cfg(feature = "tonic")]
pub use self::raw::Raw;

thread_local!(static ALLOCATIONS: Cell<u64> = const { Cell::new(0) });

/// The system's allocator, which counts what each thread asks of it. For `#[global_allocator]` in a test.
#[derive(Clone, Copy, Debug, Default)]
pub struct CountingAllocator;

impl CountingAllocator {
    /// How often this thread has allocated or grown an allocation.
    pub fn count() -> u64 {
        ALLOCATIONS.get()
    }
}

// SAFETY: hands every call on to the system's allocator.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What spies have heard, in order.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    /// A gate that admits all and writes down what it hears.
    pub fn gate(&self, name: &'static str) -> Spy {
        let log = self.clone();
        Spy { log, name }
    }

    /// What was heard since the last look.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().expect("no test panics while it writes"))
    }

    fn push(&self, name: &str, event: impl std::fmt::Display) {
        let mut events = self.0.lock().expect("no test panics while it writes");
        events.push(format!("{name} {event}"));
    }
}

/// A gate that admits all and writes down what it hears.
#[derive(Clone, Debug)]
pub struct Spy {
    log: Log,
    name: &'static str,
}

/// The guard of a [`Spy`].
#[derive(Debug)]
pub struct SpyGuard(Spy);

impl Gate for Spy {
    type Guard = SpyGuard;

    fn admit(&self, _: &RequestHead<'_>, _: Instant) -> Admit<SpyGuard> {
        self.log.push(self.name, "admitted");
        Admit::Now(Ok(SpyGuard(self.clone())))
    }
}

impl Settle for SpyGuard {
    fn first_data(&mut self, _: Instant) {
        self.0.log.push(self.0.name, "data");
    }

    fn settle(&mut self, end: &End, _: Instant) {
        let age = end.age.as_secs();
        let event = format!("{:?} after {age}s", end.verdict);
        self.0.log.push(self.0.name, event);
    }
}

impl Drop for SpyGuard {
    fn drop(&mut self) {
        self.0.log.push(self.0.name, "released");
    }
}

/// A gate that makes its mind up after a while.
#[derive(Clone, Debug)]
pub struct Slow<G>(pub G, pub Duration);

impl<G: Gate<Guard: Send>> Gate for Slow<G> {
    type Guard = G::Guard;

    fn admit(&self, head: &RequestHead<'_>, _: Instant) -> Admit<G::Guard> {
        let (gate, request) = (self.clone(), head.to_request());
        Admit::Later(Box::pin(async move {
            tokio::time::sleep(gate.1).await;
            match gate
                .0
                .admit(&RequestHead::from(&request), crate::time::now())
            {
                Admit::Now(decided) => decided,
                Admit::Later(admission) => admission.await,
            }
        }))
    }
}

/// A body made of steps.
#[derive(Debug)]
pub struct Steps {
    steps: Vec<Step>,
    says_end: bool,
}

/// One poll of [`Steps`].
#[derive(Debug)]
pub enum Step {
    /// A frame of data.
    Data(&'static str),
    /// The trailers.
    Trailers(HeaderMap),
    /// An error.
    Error(&'static str),
    /// Pending, and never woken.
    Hang,
    /// A panic.
    Panic,
}

impl Steps {
    /// These, then the end.
    pub fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        let mut steps: Vec<_> = steps.into_iter().collect();
        steps.reverse();
        Self {
            steps,
            says_end: false,
        }
    }

    /// Says that it is over as soon as the last frame is out, as a body of known length does.
    #[must_use]
    pub fn saying_its_end(mut self) -> Self {
        self.says_end = true;
        self
    }
}

impl Body for Steps {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(match self.steps.pop() {
            None => None,
            Some(Step::Data(data)) => Some(Ok(Frame::data(Bytes::from_static(data.as_bytes())))),
            Some(Step::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Some(Step::Error(error)) => Some(Err(error.into())),
            Some(Step::Hang) => return Poll::Pending,
            Some(Step::Panic) => panic!("on purpose"),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.says_end && self.steps.is_empty()
    }
}

/// A service that answers with what a function makes.
#[derive(Clone, Debug)]
pub struct Answers<F>(pub F);

impl<F, R, B> Service<Request<R>> for Answers<F>
where
    F: Fn() -> Response<B>,
{
    type Response = Response<B>;
    type Error = Infallible;
    type Future = Ready<Result<Response<B>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<R>) -> Self::Future {
        ready(Ok((self.0)()))
    }
}

/// One request, and its whole answer.
pub async fn exchange<S, B>(mut service: S) -> Result<Bytes, BoxError>
where
    S: Service<Request<()>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    std::future::poll_fn(|cx| service.poll_ready(cx))
        .await
        .map_err(Into::into)?;
    let response = service.call(Request::new(())).await.map_err(Into::into)?;
    let body = response.into_body().collect().await.map_err(Into::into)?;
    Ok(body.to_bytes())
}
