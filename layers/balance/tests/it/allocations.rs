use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

use http::{Request, Response};
use http_body_util::Empty;
use palisade_balance::{Balance, Endpoint, Endpoints};
use palisade_core::{
    gate::Gate,
    testing::{Answers, CountingAllocator},
};
use tower::Service;

use crate::support::Circuit;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

type Answer = fn() -> Response<Empty<bytes::Bytes>>;

fn answer() -> Response<Empty<bytes::Bytes>> {
    Response::new(Empty::new())
}

/// What a hundred requests allocate, once the set has seen some.
fn allocations<G: Gate>(endpoints: Endpoints<Answers<Answer>, G>) -> u64 {
    let mut service = Balance::adaptive(endpoints);
    let mut cx = Context::from_waker(Waker::noop());
    let mut hundred = || {
        for _ in 0..100 {
            assert!(matches!(
                Service::<Request<()>>::poll_ready(&mut service, &mut cx),
                Poll::Ready(Ok(()))
            ));
            let response = pin!(service.call(Request::new(())));
            let Poll::Ready(Ok(response)) = response.poll(&mut cx) else {
                panic!("answers at once");
            };
            drop(response);
        }
    };
    hundred();
    let before = CountingAllocator::count();
    hundred();
    CountingAllocator::count() - before
}

fn endpoint(at: usize) -> Endpoint<Answers<Answer>> {
    Endpoint::new(at.to_string(), Answers(answer as Answer))
}

#[test]
fn a_choice_among_ten_allocates_nothing() {
    let endpoints = Endpoints::default();
    (0..10).for_each(|at| {
        endpoints.insert(endpoint(at));
    });
    assert_eq!(allocations(endpoints), 0);
}

#[test]
fn a_choice_among_ten_with_gates_allocates_nothing() {
    let endpoints = Endpoints::default();
    (0..10).for_each(|at| {
        let gate = Circuit::new(5, std::time::Duration::from_secs(1));
        endpoints.insert(endpoint(at).gate(gate));
    });
    assert_eq!(allocations(endpoints), 0);
}

#[cfg(feature = "metrics")]
#[test]
fn a_choice_with_metrics_allocates_nothing() {
    let recorder = metrics_util::debugging::DebuggingRecorder::new();
    let endpoints = Endpoints::default();
    metrics::with_local_recorder(&recorder, || {
        (0..10).for_each(|at| {
            endpoints.insert(endpoint(at));
        });
    });
    assert_eq!(allocations(endpoints), 0);
}
