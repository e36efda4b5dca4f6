//! Clones over two threads beside one, and tower's balancer behind the buffer that it needs to be cloned.

use std::{future::poll_fn, time::Duration};

use http::Request;
use palisade_core::time;
use tokio::runtime::{Builder, Runtime};
use tower::{BoxError, Service, buffer::Buffer};

const TURNS: usize = 30;
const REQUESTS: u32 = 20_000;

fn runtime(threads: usize) -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(threads)
        .build()
        .expect("threads")
}

/// Requests in a second, as many at a time as there are threads.
fn rate<S>(runtime: &Runtime, threads: u32, service: &S) -> f64
where
    S: Service<Request<()>, Error: Send> + Clone + Send + 'static,
    S::Future: Send,
{
    let one = |mut service: S| async move {
        for _ in 0..REQUESTS {
            let ready = poll_fn(|cx| service.poll_ready(cx)).await;
            assert!(ready.is_ok());
            assert!(service.call(Request::new(())).await.is_ok());
        }
    };
    let start = time::now();
    let all: Vec<_> = (0..threads)
        .map(|_| runtime.spawn(one(service.clone())))
        .collect();
    for one in all {
        runtime.block_on(one).expect("no panic");
    }
    f64::from(threads * REQUESTS) / start.elapsed().as_secs_f64()
}

pub(crate) fn compare<S, T>(ours: S, theirs: impl Fn() -> T)
where
    S: Service<Request<()>, Error: Send> + Clone + Send + 'static,
    S::Future: Send,
    T: Service<Request<()>, Error = BoxError> + Send + 'static,
    T::Future: Send,
    T::Response: Send,
{
    let runtimes = [runtime(1), runtime(2)];
    let theirs = [0, 1].map(|at: usize| {
        let _entered = runtimes[at].enter();
        Buffer::new(theirs(), 1024)
    });
    let mut best = [[0.0f64; 2]; 2];
    for _ in 0..TURNS {
        for (at, runtime) in runtimes.iter().enumerate() {
            let threads = at as u32 + 1;
            best[0][at] = best[0][at].max(rate(runtime, threads, &ours));
            best[1][at] = best[1][at].max(rate(runtime, threads, &theirs[at]));
        }
    }
    for (name, [one, two]) in ["adaptive, 10", "tower p2c PeakEwma, 10, Buffer"]
        .iter()
        .zip(best)
    {
        let ratio = two / one;
        println!("{name:32} {one:9.0}/s on one thread, {two:9.0}/s on two: {ratio:.2}");
    }
    let ratio = best[0][1] / best[1][1];
    println!("on two threads, ours / theirs: {ratio:.1}");
    for runtime in runtimes {
        runtime.shutdown_timeout(Duration::from_secs(1));
    }
}
