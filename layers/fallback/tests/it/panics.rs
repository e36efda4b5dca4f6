use std::sync::Arc;

use http::Response;
use palisade_core::classify::Sse;
use palisade_core::testing::{Step, Steps};
use palisade_fallback::{Answer, FallbackLayer};
use tower::{Layer, ServiceExt};

use crate::support::{Backend, Line, Sent, ok, outcome, request, status};

/// Panics as it is called.
fn panics_in_call() -> Line {
    Arc::new(|_| panic!("on purpose"))
}

fn panics_in_poll() -> Line {
    Arc::new(|_| Box::pin(async { panic!("on purpose") }))
}

fn panics_in_body() -> Line {
    Arc::new(|_| {
        let response = Response::builder().header("content-type", "text/event-stream");
        let response = response.body(Steps::new([Step::Panic])).unwrap();
        Box::pin(async { Ok(response) })
    })
}

/// One request that panics, and one after it.
async fn panics(layer: FallbackLayer<Sent>, first: Line) {
    let (layer, first) = (layer.classify(Sse), Backend::new([first, ok("first")]));
    let call = layer.layer(first.clone()).oneshot(request());
    let error = tokio::spawn(call).await.unwrap_err();
    assert!(error.is_panic());
    assert_eq!(outcome(&layer, &first).await.2, "first", "it serves on");
    let snapshot = layer.handle().snapshot();
    assert!(snapshot.alternatives.iter().all(|each| each.served == 0));
}

#[tokio::test(start_paused = true)]
async fn a_panic_anywhere_ends_one_request_and_no_other() {
    let value = || FallbackLayer::new().value("value", Response::new("value"));
    for first in [panics_in_call(), panics_in_poll(), panics_in_body()] {
        panics(value(), first).await;
    }
    for second in [panics_in_call(), panics_in_poll(), panics_in_body()] {
        let layer = FallbackLayer::new().service("second", Backend::new([second]));
        panics(layer, status(503)).await;
    }
    panics(value().condition(|_| panic!("on purpose")), status(503)).await;
    let holds = value().hold_back(|head| match head.status.as_u16() {
        201 => panic!("on purpose"),
        _ => false,
    });
    panics(holds, status(201)).await;
    let function = FallbackLayer::new();
    let function = function.function("f", |_, _| -> Option<Answer> { panic!("on purpose") });
    panics(function, status(503)).await;
    let other = Backend::new([ok("other")]);
    let rewritten = FallbackLayer::new();
    let rewritten = rewritten.rewritten("r", |_| panic!("on purpose"), other);
    panics(rewritten, status(503)).await;
}
