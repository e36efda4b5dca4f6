//! Hedges that a signal pauses.

use palisade_core::signal::Signal;
use palisade_retry::hedge::Mode;

use crate::hedge_support::{Server, answers, get, hangs, hedge, send};

fn slow() -> Server {
    Server::new([answers(150, 200), answers(1, 200)])
}

#[tokio::test(start_paused = true)]
async fn no_hedge_is_sent_while_the_signal_is_set_and_each_that_was_due_is_counted() {
    let signal = Signal::new();
    let layer = hedge().paused_by(signal.clone());
    let handle = layer.handle();
    for (paused, sent, held) in [(false, 1, 0), (true, 1, 1), (true, 1, 2), (false, 2, 2)] {
        signal.set(paused);
        assert_eq!(handle.snapshot().paused, paused);
        send(&layer, &slow(), get()).await.0.unwrap();
        let snapshot = handle.snapshot();
        assert_eq!((snapshot.sent, snapshot.while_paused), (sent, held));
    }
    assert_eq!(handle.snapshot().won, 2);
    assert_eq!(handle.snapshot().held_back, 0, "that is for failures");
}

#[tokio::test(start_paused = true)]
async fn any_of_several_signals_pauses_hedges_and_a_shadow_shows_none() {
    let (burning, busy) = (Signal::new(), Signal::new());
    let layer = hedge().paused_by(burning).paused_by(busy.clone());
    busy.set(true);
    send(&layer, &slow(), get()).await.0.unwrap();
    layer.handle().set_mode(Mode::Shadow);
    send(&layer, &slow(), get()).await.0.unwrap();
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.sent, snapshot.while_paused), (0, 2));
    assert_eq!(snapshot.shadowed, 0);
}

#[tokio::test(start_paused = true)]
async fn a_hedge_that_runs_goes_on_when_the_signal_is_set() {
    let signal = Signal::new();
    let layer = hedge().paused_by(signal.clone());
    let server = Server::new([hangs(), answers(100, 200)]);
    let set = async {
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
        signal.set(true);
    };
    let (answer, ()) = tokio::join!(send(&layer, &server, get()), set);
    answer.0.unwrap();
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.won, snapshot.while_paused), (1, 0));
}
