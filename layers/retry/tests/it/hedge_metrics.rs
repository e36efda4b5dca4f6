use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    set_default_local_recorder,
};
use palisade_core::signal::Signal;
use palisade_retry::{
    HedgeLayer,
    hedge::{Delay, Mode},
};

use crate::hedge_support::{MILLI, Server, all, answers, fails, get, hangs, hedge, send};

/// Every handle that was registered.
#[derive(Default)]
struct Registered(Mutex<Vec<(String, Arc<AtomicU64>)>>);

impl Registered {
    fn register(&self, key: &Key) -> Arc<AtomicU64> {
        let labels: Vec<_> = key
            .labels()
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        let value = Arc::new(AtomicU64::new(0));
        let name = format!("{}{{{}}}", key.name(), labels.join(","));
        self.0.lock().unwrap().push((name, value.clone()));
        value
    }

    /// Those that are not zero.
    fn all(&self) -> Vec<(String, u64)> {
        let all = self.0.lock().unwrap();
        let mut all: Vec<_> = all
            .iter()
            .map(|(name, value)| (name.clone(), value.load(Relaxed)))
            .filter(|(_, value)| *value > 0)
            .collect();
        all.sort();
        all
    }
}

impl Recorder for Registered {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.register(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.register(key))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[tokio::test(start_paused = true)]
async fn hedges_are_counted_by_how_they_end_and_by_why_they_are_not_sent() {
    let registered = Registered::default();
    let _recorder = set_default_local_recorder(&registered);
    let layer = hedge().named(String::from("models"));
    for acts in [
        vec![hangs(), answers(1, 200)],
        vec![answers(150, 200), hangs()],
        vec![answers(150, 200), fails(1, "broken")],
    ] {
        send(&layer, &Server::new(acts), get()).await.0.unwrap();
    }
    let slow = || Server::new([answers(150, 200)]);
    layer.handle().set_mode(Mode::Shadow);
    send(&layer, &slow(), get()).await.0.unwrap();
    layer.handle().set_mode(Mode::Enforce);
    send(
        &layer.clone().keep_up_to(0),
        &slow(),
        crate::hedge_support::with(http::Method::PUT, "x"),
    )
    .await
    .0
    .unwrap();
    let spent = layer.clone().at_most(palisade_core::ratio::Ratio::HALF);
    send(&spent, &slow(), get()).await.0.unwrap();
    let signal = Signal::new();
    signal.set(true);
    let paused = layer.clone().paused_by(signal);
    send(&paused, &slow(), get()).await.0.unwrap();

    let reason = |reason| format!("palisade_hedge_held_back_total{{layer=models,reason={reason}}}");
    let result = |result| format!("palisade_hedge_settled_total{{layer=models,result={result}}}");
    assert_eq!(
        registered.all(),
        [
            (reason("body"), 1),
            (reason("budget"), 1),
            (reason("paused"), 1),
            (reason("shadow"), 1),
            ("palisade_hedge_sent_total{layer=models}".into(), 3),
            (result("lost"), 2),
            (result("won"), 1),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn the_delay_that_is_learnt_is_a_gauge() {
    let registered = Registered::default();
    let _recorder = set_default_local_recorder(&registered);
    let layer = HedgeLayer::new(Delay::default().samples(1)).at_most(all());
    let server = Server::new([answers(64, 200)]);
    send(&layer, &server, get()).await.0.unwrap();
    let [(name, bits)] = &registered.all()[..] else {
        panic!("one gauge");
    };
    assert_eq!(name, "palisade_hedge_delay_seconds{layer=hedge}");
    let delay = layer.handle().snapshot().delay.unwrap();
    assert_eq!(f64::from_bits(*bits), delay.as_secs_f64());
    assert!(delay >= 64 * MILLI);
}
