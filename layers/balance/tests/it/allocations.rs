use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

use http::{Request, Response};
use http_body_util::Empty;
use palisade_balance::{Affinity, BalanceLayer, Endpoint, Endpoints, LoadReport, Strategy};
use palisade_core::{
    cost::Cost,
    gate::Gate,
    testing::{Answers, CountingAllocator},
};
use tower::{Layer, Service};

use crate::support::Circuit;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

type Answer = fn() -> Response<Empty<bytes::Bytes>>;

fn answer() -> Response<Empty<bytes::Bytes>> {
    Response::new(Empty::new())
}

/// What a hundred requests allocate, once each endpoint that is near has seen some.
fn allocations<G: Gate>(endpoints: Endpoints<Answers<Answer>, G>) -> u64 {
    allocations_of(endpoints, Strategy::Adaptive, Request::new(()))
}

/// What a hundred such requests allocate.
fn allocations_of<G: Gate>(
    endpoints: Endpoints<Answers<Answer>, G>,
    strategy: Strategy,
    request: Request<()>,
) -> u64 {
    let mut service = BalanceLayer::round_robin().layer(endpoints.clone());
    let mut cx = Context::from_waker(Waker::noop());
    let mut hundred = || {
        let requests = vec![request.clone(); 100];
        let before = CountingAllocator::count();
        for request in requests {
            assert!(matches!(
                Service::<Request<()>>::poll_ready(&mut service, &mut cx),
                Poll::Ready(Ok(()))
            ));
            let response = pin!(service.call(request));
            let Poll::Ready(Ok(response)) = response.poll(&mut cx) else {
                panic!("answers at once");
            };
            drop(response);
        }
        CountingAllocator::count() - before
    };
    for _ in 0..endpoints.len().div_ceil(30) {
        hundred();
    }
    endpoints.set_strategy(strategy);
    hundred();
    hundred()
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
fn no_strategy_allocates_for_a_choice_whatever_is_known_of_the_request_and_the_endpoints() {
    for strategy in Strategy::ALL {
        for number in [10, 100] {
            let endpoints = Endpoints::default();
            (0..number).for_each(|at| {
                endpoints.insert(endpoint(at));
                let mut report = LoadReport::default();
                report.in_flight = Some(at as u32);
                endpoints.report(&at.to_string(), &report);
            });
            let mut request = Request::new(());
            request.extensions_mut().insert(Affinity::of("session 7"));
            request.extensions_mut().insert(Cost::new(1200.0).unwrap());
            assert_eq!(
                allocations_of(endpoints, strategy, request),
                0,
                "{strategy}"
            );
        }
    }
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

#[test]
fn a_choice_among_levels_of_which_one_spills_allocates_nothing() {
    let endpoints = Endpoints::default();
    endpoints.set_zone("a");
    (0..10).for_each(|at| {
        let zone = if at % 2 == 0 { "a" } else { "b" };
        endpoints.insert(endpoint(at).zone(zone).priority(at as u32 / 5));
    });
    endpoints.set_health("0", palisade_balance::Health::Unhealthy);
    assert_eq!(allocations(endpoints), 0);
}

#[test]
fn a_choice_among_hundreds_on_levels_allocates_nothing() {
    let endpoints = Endpoints::default();
    (0..300).for_each(|at| {
        endpoints.insert(endpoint(at).priority(at as u32 % 2));
    });
    endpoints.set_ejection(palisade_balance::Ejection::default().shadow());
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
