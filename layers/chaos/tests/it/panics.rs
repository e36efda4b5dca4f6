use palisade_chaos::{ChaosLayer, Delay, Fault};
use palisade_core::BoxError;

use crate::support::{MILLI, chaos, request, send, strikes};

async fn panics(layer: &ChaosLayer) {
    let clone = layer.clone();
    let call = tokio::spawn(async move { send(&clone, request()).await.map(drop) });
    assert!(call.await.unwrap_err().is_panic());
    layer.handle().set([Fault::reset()]);
    assert!(strikes(layer, request()).await, "it goes on");
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_users_code_ends_one_request_and_no_other() {
    panics(&chaos([Fault::reset().when(|_| panic!("on purpose"))])).await;
    let error = || Fault::error(|_| -> BoxError { panic!("on purpose") });
    panics(&chaos([error()])).await;
    let slow = Fault::latency(Delay::constant(MILLI));
    panics(&chaos([slow, error()])).await;
}
