//! Whatever numbers go in, every price stays a number: each endpoint can be picked, and none wins by an absurdity.

use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::BodyExt;
use palisade_balance::{Affinity, Balance, Endpoint, Endpoints, Health, LoadReport, Strategy};
use palisade_core::{attempt::Attempts, cost::Cost, time};
use proptest::{prelude::*, strategy::Strategy as Generator};
use tokio::{task::unconstrained, time::advance};
use tokio_test::{assert_pending, assert_ready_ok, task};
use tower::ServiceExt;

use crate::support::{Fake, MS, balance};

const NAMES: [&str; 4] = ["0", "1", "2", "3"];
/// As long as anything keeps an endpoint out, and longer than anything is remembered.
const LONG: Duration = Duration::from_secs(1000);
/// 19 years, in nanoseconds more than a float tells apart.
const AGES: Duration = Duration::from_secs(600_000_000);

#[derive(Clone, Debug)]
enum Event {
    /// Answered after so many milliseconds.
    Request {
        takes: u32,
        status: StatusCode,
        cost: Option<f64>,
        affinity: Option<u8>,
        gives_up: bool,
    },
    Weight(usize, f64),
    Report(usize, LoadReport),
    Strategy(usize),
    Health(usize, bool),
    Time(Duration),
}

fn numbers() -> impl Generator<Value = f64> {
    prop_oneof![
        Just(0.0),
        Just(-0.0),
        Just(1.0),
        Just(-1.0),
        Just(f64::MIN_POSITIVE),
        Just(5e-324),
        Just(f64::EPSILON),
        Just(f64::MAX),
        Just(f64::MIN),
        Just(f64::INFINITY),
        Just(f64::NEG_INFINITY),
        Just(f64::NAN),
        any::<f64>(),
    ]
}

fn times() -> impl Generator<Value = Duration> {
    prop_oneof![
        Just(Duration::ZERO),
        Just(Duration::from_nanos(1)),
        Just(Duration::from_millis(1)),
        Just(Duration::from_secs(10)),
        Just(LONG),
        Just(AGES),
    ]
}

fn reports() -> impl Generator<Value = LoadReport> {
    let latency = prop_oneof![times(), Just(Duration::MAX)];
    let in_flight = prop_oneof![Just(0), Just(1), Just(u32::MAX)];
    let all = (
        proptest::option::of(in_flight),
        proptest::option::of(numbers()),
        proptest::option::of(latency),
    );
    all.prop_map(|(in_flight, utilization, latency)| {
        let mut report = LoadReport::default();
        report.in_flight = in_flight;
        report.utilization = utilization;
        report.latency = latency;
        report
    })
}

fn events() -> impl Generator<Value = Event> {
    let statuses = prop_oneof![
        3 => Just(StatusCode::OK),
        1 => Just(StatusCode::BAD_GATEWAY),
        1 => Just(StatusCode::TOO_MANY_REQUESTS),
    ];
    let takes = prop_oneof![Just(0), Just(1), Just(60_000), Just(u32::MAX)];
    let request = (
        takes,
        statuses,
        proptest::option::of(numbers()),
        proptest::option::of(any::<u8>()),
        any::<bool>(),
    );
    prop_oneof![
        6 => request.prop_map(|(takes, status, cost, affinity, gives_up)| Event::Request {
            takes, status, cost, affinity, gives_up,
        }),
        1 => (0..NAMES.len(), numbers()).prop_map(|(at, weight)| Event::Weight(at, weight)),
        2 => (0..NAMES.len(), reports()).prop_map(|(at, report)| Event::Report(at, report)),
        1 => (0..Strategy::ALL.len()).prop_map(Event::Strategy),
        1 => (0..NAMES.len(), any::<bool>()).prop_map(|(at, up)| Event::Health(at, up)),
        2 => times().prop_map(Event::Time),
    ]
}

struct Set {
    endpoints: Endpoints<Fake>,
    fakes: Vec<Fake>,
    service: Balance<Fake>,
}

impl Set {
    fn new(weights: &[f64]) -> Self {
        let endpoints = Endpoints::default();
        let fakes: Vec<_> = NAMES.iter().map(|_| Fake::new(0)).collect();
        for ((name, fake), weight) in NAMES.iter().zip(&fakes).zip(weights) {
            endpoints.insert(Endpoint::new(*name, fake.clone()).weight(*weight));
        }
        let service = balance(&endpoints);
        Self {
            endpoints,
            fakes,
            service,
        }
    }

    async fn hear(&self, event: Event) {
        match event {
            Event::Request {
                takes,
                status,
                cost,
                affinity,
                gives_up,
            } => {
                for fake in &self.fakes {
                    fake.now(takes, status);
                }
                let mut request = Request::new(());
                let extensions = request.extensions_mut();
                cost.and_then(Cost::new).map(|cost| extensions.insert(cost));
                affinity.map(|affinity| extensions.insert(Affinity::of([affinity])));
                let sent = self.service.clone().oneshot(request);
                let patience = if gives_up {
                    Duration::from_secs(7)
                } else {
                    AGES
                };
                if let Ok(Ok(response)) = tokio::time::timeout(patience, sent).await {
                    drop(response.into_body().collect().await);
                }
            }
            Event::Weight(at, weight) => {
                self.endpoints.set_weight(NAMES[at], weight);
            }
            Event::Report(at, report) => {
                self.endpoints.report(NAMES[at], &report);
            }
            Event::Strategy(at) => self.endpoints.set_strategy(Strategy::ALL[at]),
            Event::Health(at, true) => {
                self.endpoints.set_health(NAMES[at], Health::Healthy);
            }
            Event::Health(at, false) => {
                self.endpoints.set_health(NAMES[at], Health::Unhealthy);
            }
            Event::Time(time) => advance(time).await,
        }
    }

    /// Of a price that is no number an endpoint is never cheaper than another: it would not be picked at all.
    async fn assert_each_can_be_picked(&self, takes: Duration) {
        let all = self.endpoints.snapshot();
        for wanted in &all {
            assert!(wanted.weight > 0.0 && wanted.weight.is_finite());
            let attempts = Attempts::default();
            let others = all.iter().filter(|other| other.id != wanted.id);
            others.for_each(|other| attempts.note(other.id));
            let mut request = Request::new(());
            request.extensions_mut().insert(attempts.clone());
            let started = time::now();
            let response = self.service.clone().oneshot(request).await.unwrap();
            assert!(response.status().is_success());
            assert_eq!(attempts.last(), Some(wanted.id), "{wanted:?}");
            // Timers count whole milliseconds; who waits for an endpoint waits for seconds.
            assert!(started.elapsed() <= takes + MS, "waited");
        }
    }

    /// What is no number would stay so, whatever comes after it; as a time it would be 0, or as long as can be.
    async fn assert_latencies_are_numbers(&self) {
        for (name, fake) in NAMES.iter().zip(&self.fakes) {
            self.endpoints.set_weight(name, 1.0);
            fake.now(1000, StatusCode::OK);
        }
        for _ in 0..30 {
            advance(LONG).await;
            self.assert_each_can_be_picked(MS * 1000).await;
        }
        for endpoint in self.endpoints.snapshot() {
            let latency = endpoint.latency.unwrap();
            assert!((MS * 100..AGES * 2).contains(&latency), "{endpoint:?}");
        }
    }

    /// Two strategies look at no latency: for them all are alike now.
    async fn assert_all_share(&self) {
        for strategy in [Strategy::LeastConnections, Strategy::RoundRobin] {
            self.endpoints.set_strategy(strategy);
            let one = |_| task::spawn(self.service.clone().oneshot(Request::new(())));
            let mut sent: Vec<_> = (0..40).map(one).collect();
            sent.iter_mut()
                .for_each(|sent| assert_pending!(sent.poll()));
            for endpoint in self.endpoints.snapshot() {
                assert!(
                    (9..=11).contains(&endpoint.in_flight),
                    "{strategy}: {endpoint:?}"
                );
            }
            advance(MS * 1001).await;
            sent.iter_mut()
                .for_each(|sent| drop(assert_ready_ok!(sent.poll())));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn each_endpoint_can_be_picked_whatever_was_measured_and_said(
        weights in proptest::array::uniform4(numbers()),
        events in proptest::collection::vec(events(), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(unconstrained(async {
            let set = Set::new(&weights);
            for event in events {
                set.hear(event).await;
            }
            for name in NAMES {
                set.endpoints.set_health(name, Health::Healthy);
            }
            for fake in &set.fakes {
                fake.now(0, StatusCode::OK);
            }
            advance(LONG).await;
            for strategy in Strategy::ALL {
                set.endpoints.set_strategy(strategy);
                set.assert_each_can_be_picked(Duration::ZERO).await;
            }
            set.assert_latencies_are_numbers().await;
            set.assert_all_share().await;
        }));
    }
}
