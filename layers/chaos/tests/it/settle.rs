use http::{Response, StatusCode};
use http_body_util::Full;
use palisade_chaos::{After, Delay, Fault};
use palisade_core::{
    gate::GateLayer,
    testing::{Answers, Log, exchange},
};
use tokio::time::timeout;
use tower::Layer;

use crate::support::{SECOND, chaos};

/// What a gate outside hears of one request.
async fn heard(fault: Fault) -> Vec<String> {
    let log = Log::default();
    let hello = || Response::new(Full::<bytes::Bytes>::from("hello"));
    let inner = chaos([fault]).layer(Answers(hello));
    let service = GateLayer::new(log.gate("gate")).layer(inner);
    drop(timeout(10 * SECOND, exchange(service)).await);
    let mut heard = log.take();
    assert_eq!(heard.remove(0), "gate admitted");
    assert_eq!(heard.pop().unwrap(), "gate released");
    heard
}

#[tokio::test(start_paused = true)]
async fn guards_outside_are_settled_when_and_as_the_fault_says() {
    let bad = Fault::status(StatusCode::BAD_GATEWAY);
    assert_eq!(heard(bad).await, ["gate Failure after 0s"]);
    assert_eq!(heard(Fault::refuse()).await, ["gate Unsent after 0s"]);
    assert_eq!(heard(Fault::hang()).await, ["gate Canceled after 10s"]);
    let slow = Fault::latency(Delay::constant(3 * SECOND));
    assert_eq!(heard(slow).await, ["gate data", "gate Success after 3s"]);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_is_a_failure_to_guards_outside() {
    let abort = |after| heard(Fault::abort(After::Bytes(after)));
    assert_eq!(abort(0).await, ["gate Failure after 0s"]);
    assert_eq!(abort(2).await, ["gate data", "gate Failure after 0s"]);
    // Also when all of the data came.
    assert_eq!(abort(5).await, ["gate data", "gate Failure after 0s"]);
    assert_eq!(abort(6).await, ["gate data", "gate Success after 0s"]);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_in_flight_until_the_caller_leaves() {
    let stall = heard(Fault::stall(After::Bytes(2))).await;
    assert_eq!(stall, ["gate data", "gate Canceled after 10s"]);
    let pause = heard(Fault::pause(After::Bytes(2), 4 * SECOND)).await;
    assert_eq!(pause, ["gate data", "gate Success after 4s"]);
}
