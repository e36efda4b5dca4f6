//! Takes the time of stacks in turns, and counts what they allocate.
//!
//! The best of many short rounds is taken, and all stacks take turns, so that a slow second hits each of them.

use std::{
    convert::Infallible,
    fmt,
    future::{Ready, ready},
    hint::black_box,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{Empty, Full};
use palisade_core::testing::CountingAllocator;
use tokio::runtime::Runtime;
use tower::{Service, ServiceExt};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const CALLS: u32 = 10_000;
/// For what takes very long, or is not the same after many.
const FEW: u32 = 50;
const ROUNDS: u32 = 60;

/// Answers at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Noop;

impl<B> Service<Request<B>> for Noop {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        ready(Ok(Response::new(Empty::new())))
    }
}

/// A stack under measurement.
pub(crate) struct Contender<'a> {
    name: &'static str,
    /// One call after the other, so many of them.
    round: Box<dyn FnMut(u32) + 'a>,
    before: u32,
    calls: u32,
    nanos: f64,
    allocations: f64,
}

impl<'a> Contender<'a> {
    /// A service that answers a POST, which a retry layer has to let pass.
    pub(crate) fn new<S, B>(name: &'static str, runtime: &'a Runtime, service: S) -> Self
    where
        S: Service<Request<Full<Bytes>>, Response = Response<B>> + 'a,
        S::Error: fmt::Debug,
    {
        Self::asked(name, runtime, service, Method::POST, |answer| {
            drop(black_box(answer.unwrap()));
        })
    }

    /// A service that answers a GET, which may be sent more than once.
    pub(crate) fn get<S, B>(name: &'static str, runtime: &'a Runtime, service: S) -> Self
    where
        S: Service<Request<Full<Bytes>>, Response = Response<B>> + 'a,
        S::Error: fmt::Debug,
    {
        Self::asked(name, runtime, service, Method::GET, |answer| {
            drop(black_box(answer.unwrap()));
        })
    }

    /// A service that fails a POST.
    pub(crate) fn failing<S, B>(name: &'static str, runtime: &'a Runtime, service: S) -> Self
    where
        S: Service<Request<Full<Bytes>>, Response = Response<B>> + 'a,
    {
        Self::asked(name, runtime, service, Method::POST, |answer| {
            assert!(black_box(answer).is_err());
        })
    }

    /// A service that fails a POST once it has answered one.
    pub(crate) fn over<S, B>(name: &'static str, runtime: &'a Runtime, mut service: S) -> Self
    where
        S: Service<Request<Full<Bytes>>, Response = Response<B>> + 'a,
    {
        runtime.block_on(async {
            let ready = service.ready().await.ok().unwrap();
            drop(ready.call(Request::default()).await);
        });
        Self::failing(name, runtime, service)
    }

    fn asked<S>(
        name: &'static str,
        runtime: &'a Runtime,
        mut service: S,
        method: Method,
        heard: impl Fn(Result<S::Response, S::Error>) + 'a,
    ) -> Self
    where
        S: Service<Request<Full<Bytes>>> + 'a,
    {
        let request = move || {
            let mut request = Request::new(Full::<Bytes>::default());
            *request.method_mut() = method.clone();
            request
        };
        let round = move |calls| {
            runtime.block_on(async {
                for _ in 0..calls {
                    let answer = match service.ready().await {
                        Ok(service) => service.call(black_box(request())).await,
                        Err(error) => Err(error),
                    };
                    heard(answer);
                }
            });
        };
        Self {
            name,
            round: Box::new(round),
            before: 0,
            calls: CALLS,
            nanos: f64::MAX,
            allocations: 0.0,
        }
    }

    /// After so many calls.
    pub(crate) fn after(mut self, calls: u32) -> Self {
        self.before = calls;
        self
    }

    /// In shorter rounds.
    pub(crate) fn few(mut self) -> Self {
        self.calls = FEW;
        self
    }

    fn run(&mut self) {
        let before = CountingAllocator::count();
        let start = Instant::now();
        (self.round)(self.calls);
        let nanos = start.elapsed().as_nanos() as f64 / f64::from(self.calls);
        self.nanos = self.nanos.min(nanos);
        let counted = CountingAllocator::count() - before;
        self.allocations = counted as f64 / f64::from(self.calls);
    }
}

/// `--only 'five layers: tower' 10000` only makes so many calls of that one, for a tool that counts instructions.
fn only() -> Option<(String, u32)> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--only");
    Some((arguments.nth(1)?, arguments.next()?.parse().ok()?))
}

/// Prints a table: the first contender is the bare call, the second what the others are held against.
pub(crate) fn table(title: &str, mut contenders: Vec<Contender<'_>>) {
    if let Some((name, calls)) = only() {
        let mut names = contenders.iter().map(|it| format!("{title}: {}", it.name));
        if let Some(at) = names.position(|it| it == name) {
            (contenders[at].round)(calls);
        }
        return;
    }
    for contender in &mut contenders {
        (contender.round)(contender.before);
    }
    for _ in 0..ROUNDS {
        for contender in &mut contenders {
            contender.run();
        }
    }
    let bare = contenders[0].nanos;
    let peer = contenders[1].nanos - bare;
    let peer_name = contenders[1].name;
    println!(
        "\n{title:44} {:>8} {:>10} {:>10}  allocations",
        "ns", "over bare", "ratio"
    );
    for (at, contender) in contenders.iter().enumerate() {
        let Contender {
            name,
            nanos,
            allocations,
            ..
        } = contender;
        let over = nanos - bare;
        let ratio = if at == 0 {
            String::new()
        } else {
            format!("{:.2}", over / peer)
        };
        println!("{name:44} {nanos:8.1} {over:10.1} {ratio:>10}  {allocations:.2}");
    }
    println!("ratio: to {peer_name}");
}
