use http::HeaderName;
use palisade_chaos::{After, ChaosLayer, Delay, Fault, Mode, NoSuchFault, Ratio};

use crate::support::{MILLI, chaos, request, send, strikes};

#[tokio::test(start_paused = true)]
async fn nothing_strikes_while_off() {
    let layer = chaos([Fault::reset()]);
    let handle = layer.handle();
    assert!(strikes(&layer, request()).await);
    handle.disable();
    assert!(!strikes(&layer, request()).await);
    let snapshot = handle.snapshot();
    assert_eq!((snapshot.mode, snapshot.requests), (Mode::Off, 1));
    handle.enable();
    assert!(strikes(&layer, request()).await);
    assert_eq!(handle.snapshot().faults[0].struck, 2);
}

#[tokio::test(start_paused = true)]
async fn a_layer_without_faults_is_off() {
    let layer = ChaosLayer::off(7);
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.mode, snapshot.seed), (Mode::Off, 7));
    layer.handle().set([Fault::reset()]);
    assert!(!strikes(&layer, request()).await, "off stays off");
    layer.handle().enable();
    assert!(strikes(&layer, request()).await);
}

#[tokio::test(start_paused = true)]
async fn a_shadow_counts_and_strikes_nothing() {
    let slow = Fault::latency(Delay::constant(MILLI));
    let layer = chaos([slow, Fault::reset(), Fault::abort(After::Bytes(0))]);
    layer.handle().shadow();
    assert!(!strikes(&layer, request()).await);
    let faults = layer.handle().snapshot().faults;
    let counts: Vec<_> = faults
        .iter()
        .map(|each| (each.struck, each.shadowed))
        .collect();
    assert_eq!(counts, [(0, 1), (0, 1), (0, 1)]);
}

#[tokio::test(start_paused = true)]
async fn one_fault_is_disarmed_and_armed_again() {
    let layer = chaos([Fault::reset(), Fault::hang()]);
    let handle = layer.handle();
    handle.disarm("hang").unwrap();
    handle.disarm("reset").unwrap();
    assert!(!strikes(&layer, request()).await);
    handle.arm("reset").unwrap();
    assert!(strikes(&layer, request()).await);
    let armed: Vec<_> = handle
        .snapshot()
        .faults
        .iter()
        .map(|each| each.armed)
        .collect();
    assert_eq!(armed, [true, false]);
    let error: NoSuchFault = handle.arm("other").unwrap_err();
    assert_eq!(error.to_string(), "no fault is named \"other\"");
}

#[tokio::test(start_paused = true)]
async fn faults_are_replaced_while_requests_come_in() {
    let layer = chaos([Fault::reset()]);
    let clone = layer.clone();
    layer.handle().set([Fault::refuse(), Fault::reset()]);
    let error = send(&clone, request()).await.unwrap_err();
    assert_eq!(
        palisade_chaos::Injected::find(&*error).unwrap().fault(),
        "refuse"
    );
    let names: Vec<_> = clone
        .handle()
        .snapshot()
        .faults
        .iter()
        .map(|each| each.name.to_string())
        .collect();
    assert_eq!(names, ["refuse", "reset"]);
}

#[tokio::test(start_paused = true)]
async fn a_new_seed_begins_a_new_sequence() {
    let layer = chaos([Fault::reset().share(Ratio::HALF)]);
    let run = async || {
        let mut struck = Vec::new();
        for _ in 0..100 {
            struck.push(strikes(&layer, request()).await);
        }
        struck
    };
    let first = run().await;
    layer.handle().reseed(43);
    assert_ne!(run().await, first);
    layer.handle().reseed(42);
    assert_eq!(run().await, first);
}

#[test]
fn of_two_hands_on_one_layer_neither_undoes_what_the_other_does() {
    for _ in 0..200 {
        let layer = chaos([Fault::reset()]);
        let (one, other) = (layer.handle(), layer.handle());
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for seed in 0..50 {
                    one.reseed(seed);
                }
            });
            scope.spawn(move || other.set([Fault::refuse()]));
        });
        let snapshot = layer.handle().snapshot();
        let name = &*snapshot.faults[0].name;
        assert_eq!((name, snapshot.seed), ("refuse", 49));
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_says_what_was_done_to_it() {
    let slow = Fault::latency(Delay::constant(MILLI)).named("slow");
    let layer = chaos([slow, Fault::drip(1, MILLI)]).mark(HeaderName::from_static("x-chaos"));
    let response = send(&layer, request()).await.unwrap();
    assert_eq!(response.headers()["x-chaos"], "slow, drip");
    layer.handle().disable();
    let response = send(&layer, request()).await.unwrap();
    assert!(response.headers().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_layer_with_another_name_has_faults_of_its_own() {
    let layer = chaos([Fault::reset()]);
    layer.handle().disable();
    let named = layer.clone().named("other");
    assert_eq!(named.handle().snapshot().mode, Mode::Off);
    named.handle().enable();
    assert_eq!(layer.handle().snapshot().mode, Mode::Off);
    assert_eq!(named.handle().snapshot().seed, 42);
}
