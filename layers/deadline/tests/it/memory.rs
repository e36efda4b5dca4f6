//! What requests leave to the next is memory, and nothing of themselves.

use std::{
    convert::Infallible,
    future::{Pending, pending},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use palisade_deadline::{Awaited, DeadlineLayer};
use tokio::{runtime, time::timeout};
use tokio_test::{assert_pending, task};
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::support::{MILLI, SECOND, assert_elapsed};

type Never = Pending<Result<Response<Full<Bytes>>, Infallible>>;

/// A service that never answers.
fn silent()
-> impl Service<Request<()>, Response = Response<Full<Bytes>>, Error = Infallible, Future = Never> {
    service_fn(|_: Request<()>| pending())
}

#[tokio::test(start_paused = true)]
async fn a_request_ends_by_its_own_layer_whoever_has_left_the_memory() {
    let (one, other) = (
        DeadlineLayer::new(SECOND),
        DeadlineLayer::new(SECOND).shadow(),
    );
    for times in 1..=2 {
        // The two take turns with one piece of memory.
        let call = other.layer(silent()).oneshot(Request::new(()));
        assert!(timeout(2 * SECOND, call).await.is_err(), "only counted");
        let call = one.layer(silent()).oneshot(Request::new(()));
        let ended = timeout(SECOND + MILLI, call).await.expect("in time");
        assert_elapsed(&ended.unwrap_err(), SECOND, Awaited::Head);

        let (one, other) = (one.handle().snapshot(), other.handle().snapshot());
        assert_eq!((one.ended.deadline, one.shadowed.deadline), (times, 0));
        assert_eq!((other.ended.deadline, other.shadowed.deadline), (0, times));
    }
}

#[test]
fn a_timer_is_of_the_runtime_that_its_request_runs_in() {
    let layer = DeadlineLayer::new(SECOND);
    let call = || task::spawn(layer.layer(silent()).oneshot(Request::new(())));
    for _ in 0..2 {
        let runtime = runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let mut outlives = call();
        runtime.block_on(async {
            // One is left while it waits, one has waited to the end, one is there still when its runtime is gone.
            let mut left = call();
            assert_pending!(left.poll());
            drop(left);
            let error = call().await.unwrap_err();
            assert_elapsed(&error, SECOND, Awaited::Head);
            assert_pending!(outlives.poll());
        });
        drop(runtime);
        drop(outlives);
    }
}
