//! A service, its answers, a gate and a classifier that do anything at all, until they are told to behave.

use std::{
    error::Error,
    future::Future,
    io,
    panic::resume_unwind,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use palisade_core::{
    BoxError,
    classify::{Classify, Judge, Usage, Verdict},
    gate::{Admit, Gate, Outlook},
    head::{RequestHead, ResponseHead},
    reject::{Reason, Rejected},
    settle::{End, Settle},
};
use tokio::time::Instant;
use tower::Service;

/// The panics that the schedules ask for; others are failures.
pub(crate) struct OnPurpose;

/// What decides for all, and what they have done.
#[derive(Debug, Default)]
pub(crate) struct World {
    seed: AtomicU64,
    behaves: AtomicBool,
    pub(crate) never_breaks: AtomicBool,
    /// Of everything that waits.
    wakers: Mutex<Vec<Waker>>,
    /// Guards that were handed out, and those that have heard a verdict.
    pub(crate) admitted: AtomicUsize,
    pub(crate) told: AtomicUsize,
    pub(crate) told_twice: AtomicBool,
}

pub(crate) type Shared = Arc<World>;

impl World {
    pub(crate) fn new(seed: u64) -> Shared {
        let seed = AtomicU64::new(seed);
        Arc::new(Self {
            seed,
            ..Self::default()
        })
    }

    /// SplitMix64, by Steele, Lea and Flood.
    pub(crate) fn toss(&self) -> u64 {
        const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
        let mut z = self.seed.fetch_add(GOLDEN, Relaxed).wrapping_add(GOLDEN);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&self, bound: usize) -> usize {
        (self.toss() % bound as u64) as usize
    }

    pub(crate) fn one_of<T: Copy>(&self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// Once in so many times, as long as nobody has to behave.
    fn odd(&self, times: usize) -> bool {
        !self.behaves.load(Relaxed) && self.below(times) == 0
    }

    fn panic(&self, times: usize) {
        if self.odd(times) && !thread::panicking() {
            resume_unwind(Box::new(OnPurpose));
        }
    }

    fn waits(&self, times: usize, cx: &Context<'_>) -> bool {
        let waits = self.odd(times);
        if waits {
            self.wakers.lock().unwrap().push(cx.waker().clone());
        }
        waits
    }

    pub(crate) fn wake(&self) {
        let wakers = std::mem::take(&mut *self.wakers.lock().unwrap());
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn behave(&self) {
        self.behaves.store(true, Relaxed);
        self.wake();
    }

    fn verdict(&self) -> Verdict {
        let retry_after = self.one_of(&[None, Some(0), Some(1), Some(1000), Some(u64::MAX)]);
        let retry_after = retry_after.map(Duration::from_millis);
        self.one_of(&[
            Verdict::Success,
            Verdict::Success,
            Verdict::Failure,
            Verdict::Failure,
            Verdict::Overload { retry_after },
            Verdict::CallerFault,
            Verdict::TimedOut,
            Verdict::Unsent,
            Verdict::Refused(Reason::RateLimited),
            Verdict::Canceled,
        ])
    }

    fn error(&self) -> BoxError {
        match self.below(3) {
            0 => io::Error::from(io::ErrorKind::ConnectionRefused).into(),
            1 => Rejected::new(Reason::CircuitOpen, "further in").into(),
            _ => "broken".into(),
        }
    }
}

/// An endpoint.
#[derive(Debug)]
pub(crate) struct Wild(pub(crate) Shared);

impl Clone for Wild {
    fn clone(&self) -> Self {
        self.0.panic(80);
        Self(self.0.clone())
    }
}

impl Service<Request<()>> for Wild {
    type Response = Response<WildBody>;
    type Error = BoxError;
    type Future = WildCall;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.panic(40);
        if self.0.waits(4, cx) {
            return Poll::Pending;
        }
        if self.0.odd(12) && !self.0.never_breaks.load(Relaxed) {
            return Poll::Ready(Err(self.0.error()));
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> WildCall {
        self.0.panic(24);
        WildCall(self.0.clone())
    }
}

#[derive(Debug)]
pub(crate) struct WildCall(Shared);

impl Future for WildCall {
    type Output = Result<Response<WildBody>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.panic(24);
        if self.0.waits(3, cx) {
            return Poll::Pending;
        }
        if self.0.odd(6) {
            return Poll::Ready(Err(self.0.error()));
        }
        let over = self.0.below(4) == 0;
        let world = self.0.clone();
        Poll::Ready(Ok(Response::new(WildBody { world, over })))
    }
}

impl Drop for WildCall {
    fn drop(&mut self) {
        self.0.panic(80);
    }
}

#[derive(Debug)]
pub(crate) struct WildBody {
    world: Shared,
    over: bool,
}

impl Body for WildBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.world.panic(24);
        if self.over {
            return Poll::Ready(None);
        }
        if self.world.waits(4, cx) {
            return Poll::Pending;
        }
        self.over = self.world.below(3) == 0;
        Poll::Ready(match self.world.below(6) {
            0 if self.world.odd(2) => Some(Err(self.world.error())),
            1 => Some(Ok(Frame::data(Bytes::new()))),
            2 | 3 => Some(Ok(Frame::data(Bytes::from_static(b"x")))),
            4 => {
                self.over = true;
                Some(Ok(Frame::trailers(HeaderMap::new())))
            }
            _ => {
                self.over = true;
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }
}

impl Drop for WildBody {
    fn drop(&mut self) {
        self.world.panic(80);
    }
}

/// A gate that thinks anything of its endpoint.
#[derive(Clone, Debug)]
pub(crate) struct WildGate(pub(crate) Shared);

impl Gate for WildGate {
    type Guard = WildGuard;

    fn admit(&self, _: &RequestHead<'_>, _: Instant) -> Admit<WildGuard> {
        self.0.panic(40);
        if self.0.odd(3) {
            let thought = Thought(self.0.clone());
            return Admit::Later(Box::pin(thought));
        }
        Admit::Now(decide(&self.0))
    }

    fn outlook(&self, now: Instant) -> Outlook {
        self.0.panic(200);
        if !self.0.odd(3) {
            return Outlook::Admits;
        }
        let until = self.0.one_of(&[None, Some(0), Some(1), Some(100_000)]);
        let until = until.map(|millis| now + Duration::from_millis(millis));
        self.0.one_of(&[
            Outlook::Probes,
            Outlook::Refuses { until },
            Outlook::Refuses { until },
            Outlook::Held,
        ])
    }
}

fn decide(world: &Shared) -> Result<WildGuard, Rejected> {
    if world.odd(4) {
        let rejected = Rejected::new(Reason::RateLimited, "no");
        return Err(match world.below(3) {
            0 => rejected,
            1 => rejected.retry_after(Duration::ZERO),
            _ => rejected.retry_after(Duration::from_millis(50)),
        });
    }
    world.admitted.fetch_add(1, Relaxed);
    Ok(WildGuard {
        world: world.clone(),
        told: false,
    })
}

/// Of a gate that takes its time.
struct Thought(Shared);

impl Future for Thought {
    type Output = Result<WildGuard, Rejected>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.panic(24);
        if self.0.waits(2, cx) {
            return Poll::Pending;
        }
        Poll::Ready(decide(&self.0))
    }
}

pub(crate) struct WildGuard {
    world: Shared,
    told: bool,
}

impl Settle for WildGuard {
    const DECORATES: bool = true;
    const FOLLOWS: bool = true;

    fn decorate(&mut self, _: &mut HeaderMap) {
        self.world.panic(80);
    }

    fn first_data(&mut self, _: Instant) {
        self.world.panic(40);
    }

    fn progress(&mut self, _: u64, _: Instant) -> Result<(), Rejected> {
        self.world.panic(40);
        if self.world.odd(8) {
            return Err(Rejected::new(Reason::QuotaExhausted, "enough"));
        }
        Ok(())
    }

    fn settle(&mut self, _: &End, _: Instant) {
        self.world.told.fetch_add(1, Relaxed);
        if self.told {
            self.world.told_twice.store(true, Relaxed);
        }
        self.told = true;
        self.world.panic(40);
    }
}

/// A classifier with an opinion of its own.
#[derive(Clone, Debug)]
pub(crate) struct WildClassify(pub(crate) Shared);

pub(crate) struct WildJudge {
    world: Shared,
    streamed: u64,
}

impl Classify for WildClassify {
    type Judge = WildJudge;

    fn start(&self, _: &RequestHead<'_>) -> WildJudge {
        self.0.panic(80);
        WildJudge {
            world: self.0.clone(),
            streamed: 0,
        }
    }
}

impl WildJudge {
    /// Good as long as all behave.
    fn verdict(&self) -> Verdict {
        if self.world.odd(2) {
            self.world.verdict()
        } else {
            Verdict::Success
        }
    }
}

impl Judge for WildJudge {
    const READS_DATA: bool = true;

    fn head(&mut self, _: &ResponseHead<'_>) -> Option<Verdict> {
        self.world.panic(80);
        self.world.odd(4).then(|| self.world.verdict())
    }

    fn data(&mut self, data: &[u8]) -> Option<Verdict> {
        self.world.panic(80);
        self.streamed += data.len() as u64;
        self.world.odd(8).then(|| self.world.verdict())
    }

    fn end(&mut self, _: Option<&HeaderMap>) -> Verdict {
        self.world.panic(80);
        self.verdict()
    }

    fn error(&mut self, error: &(dyn Error + 'static)) -> Verdict {
        self.world.panic(80);
        Verdict::of(error)
    }

    fn streamed(&self) -> u64 {
        self.streamed
    }

    fn usage(&self) -> Option<Usage> {
        self.world.panic(80);
        None
    }
}
