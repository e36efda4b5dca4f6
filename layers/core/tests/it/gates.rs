//! Two gates behind one future and one body.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use palisade_core::{
    gate::{Admit, Gate, GateLayer, Outlook, gates},
    head::RequestHead,
    reject::{Reason, Rejected},
    testing::{Answers, Log, Slow, exchange},
};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt, service_fn};

const SECOND: Duration = Duration::from_secs(1);

/// A gate that refuses all.
#[derive(Clone)]
struct Refuses;

impl Gate for Refuses {
    type Guard = ();

    fn admit(&self, _: &RequestHead<'_>, _: Instant) -> Admit<()> {
        Admit::Now(Err(Rejected::new(Reason::CircuitOpen, "no")))
    }
}

fn hello() -> Response<Full<Bytes>> {
    Response::new(Full::from("hello"))
}

#[tokio::test(start_paused = true)]
async fn gates_admit_left_to_right_and_settle_right_to_left() {
    let log = Log::default();
    let layer = GateLayer::new(log.gate("a")).and(log.gate("b"));
    exchange(layer.layer(Answers(hello))).await.unwrap();
    assert_eq!(log.take()[..2], ["a admitted", "b admitted"]);
}

#[tokio::test(start_paused = true)]
async fn every_gate_hears_the_same_end() {
    let log = Log::default();
    let layer = GateLayer::new(log.gate("a")).and(log.gate("b"));
    exchange(layer.layer(Answers(hello))).await.unwrap();
    assert_eq!(
        log.take()[2..],
        [
            "b data",
            "a data",
            "b Success after 0s",
            "a Success after 0s",
            "a released",
            "b released"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn when_the_second_gate_refuses_the_first_hears_why() {
    let log = Log::default();
    let layer = GateLayer::new(log.gate("a")).and(Refuses);
    exchange(layer.layer(Answers(hello))).await.unwrap_err();
    assert_eq!(
        log.take(),
        [
            "a admitted",
            "a Refused(CircuitOpen) after 0s",
            "a released"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn gates_that_decide_later_are_asked_one_after_the_other() {
    let log = Log::default();
    let layer = GateLayer::new(Slow(log.gate("a"), SECOND))
        .and(Slow(log.gate("b"), SECOND))
        .and(log.gate("c"));
    let mut service = layer.layer(Answers(hello));
    let mut call = tokio_test::task::spawn(service.call(Request::new(())));

    assert!(call.poll().is_pending());
    assert_eq!(log.take(), [""; 0]);
    tokio::time::advance(SECOND).await;
    assert!(call.is_woken());
    assert!(call.poll().is_pending());
    assert_eq!(log.take(), ["a admitted"]);
    tokio::time::advance(SECOND).await;
    assert!(call.poll().is_ready());
    assert_eq!(log.take()[..2], ["b admitted", "c admitted"]);
}

#[tokio::test(start_paused = true)]
async fn leaving_while_a_later_gate_decides_cancels_the_earlier_one() {
    let log = Log::default();
    let layer = GateLayer::new(log.gate("a")).and(Slow(log.gate("b"), SECOND));
    let mut service = layer.layer(Answers(hello));
    let mut call = tokio_test::task::spawn(service.call(Request::new(())));
    assert!(call.poll().is_pending());
    drop(call);
    assert_eq!(
        log.take(),
        ["a admitted", "a Canceled after 0s", "a released"]
    );
}

#[tokio::test(start_paused = true)]
async fn the_instance_that_was_ready_is_called_also_after_a_wait() {
    let log = Log::default();
    let (inner, mut backend) = tower_test::mock::pair::<Request<()>, Response<Full<Bytes>>>();
    let mut service = GateLayer::new(Slow(log.gate("a"), SECOND)).layer(inner);
    backend.allow(1);
    let call = service.ready().await.unwrap().call(Request::new(()));
    let answered = async {
        let (_, reply) = backend.next_request().await.unwrap();
        reply.send_response(hello());
    };
    let (response, ()) = tokio::join!(call, answered);
    response.unwrap().into_body().collect().await.unwrap();
    assert_eq!(log.take()[2], "a Success after 1s");
}

#[tokio::test(start_paused = true)]
async fn the_time_a_handler_computes_inside_one_poll_is_part_of_the_age() {
    let log = Log::default();
    let inner = service_fn(async |_: Request<()>| {
        tokio::time::advance(SECOND).await;
        Ok::<_, Infallible>(hello())
    });
    exchange(GateLayer::new(log.gate("a")).layer(inner))
        .await
        .unwrap();
    assert!(log.take().contains(&"a Success after 1s".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_tuple_of_gates_is_asked_in_its_order() {
    let log = Log::default();
    let layer = gates((log.gate("a"), log.gate("b"), log.gate("c"), log.gate("d")));
    exchange(layer.layer(Answers(hello))).await.unwrap();
    let heard = log.take();
    assert_eq!(
        heard[..4],
        ["a admitted", "b admitted", "c admitted", "d admitted"]
    );
    assert_eq!(heard[4..8], ["d data", "c data", "b data", "a data"]);
}

#[tokio::test(start_paused = true)]
async fn the_outlook_of_two_gates_is_the_worse_one() {
    #[derive(Clone)]
    struct Says(Outlook);

    impl Gate for Says {
        type Guard = ();

        fn admit(&self, _: &RequestHead<'_>, _: Instant) -> Admit<()> {
            Admit::Now(Ok(()))
        }

        fn outlook(&self, _: Instant) -> Outlook {
            self.0
        }
    }

    let now = palisade_core::time::now();
    let (soon, late) = (Some(now + SECOND), Some(now + 2 * SECOND));
    let refuses = |until| Outlook::Refuses { until };
    for (a, b, both) in [
        (Outlook::Admits, Outlook::Admits, Outlook::Admits),
        (Outlook::Admits, Outlook::Probes, Outlook::Probes),
        (Outlook::Probes, refuses(soon), refuses(soon)),
        (refuses(soon), refuses(late), refuses(late)),
        (refuses(None), refuses(late), refuses(None)),
        (refuses(None), Outlook::Held, Outlook::Held),
    ] {
        assert_eq!((Says(a), Says(b)).outlook(now), both);
        assert_eq!((Says(b), Says(a)).outlook(now), both);
    }
}
