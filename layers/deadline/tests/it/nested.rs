//! No deadline further in is later than one further out.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{HeaderName, HeaderValue, Request, Response};
use palisade_core::{BoxError, deadline::Deadline, testing::Steps};
use palisade_deadline::{DeadlineLayer, Elapsed, Propagate, TimeoutHeader};
use proptest::prelude::*;
use tokio::{runtime::Builder, time::Instant};
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneService};

/// By hop: the deadline that it was told, and whether it tells the next.
type Told = Arc<Mutex<Vec<(Option<Instant>, bool)>>>;
type Client = BoxCloneService<Request<()>, (), BoxError>;

#[derive(Clone, Debug)]
struct Hop {
    /// What the layer allows by itself.
    or: Option<Duration>,
    at_most: Option<Duration>,
    kind: usize,
    propagates: bool,
    /// The work before the next hop.
    works: Duration,
    /// The next hop is another process: it gets the headers only.
    is_remote: bool,
}

fn header(kind: usize) -> TimeoutHeader {
    let names = [
        "grpc-timeout",
        "x-request-timeout",
        "x-envoy-expected-rq-timeout-ms",
    ];
    TimeoutHeader::from(names[kind])
}

fn name(kind: usize) -> HeaderName {
    HeaderName::from_static(
        [
            "grpc-timeout",
            "x-request-timeout",
            "x-envoy-expected-rq-timeout-ms",
        ][kind],
    )
}

fn durations() -> impl Strategy<Value = Duration> {
    prop_oneof![
        Just(Duration::ZERO),
        (0_u64..5_000_000_000).prop_map(Duration::from_nanos),
        Just(Duration::MAX),
    ]
}

prop_compose! {
    fn hops()(
        or in prop::option::of(durations()),
        at_most in prop::option::of(durations()),
        kind in 0_usize..3,
        propagates in prop::bool::weighted(0.8),
        works in (0_u64..300_000_000).prop_map(Duration::from_nanos),
        is_remote in any::<bool>(),
    ) -> Hop {
        Hop { or, at_most, kind, propagates, works, is_remote }
    }
}

/// A chain of hops, which writes down the deadline that each of them is told.
fn chain(hops: &[Hop], told: &Told) -> Client {
    let Some((hop, rest)) = hops.split_first() else {
        return Client::new(service_fn(async |_| Ok(())));
    };
    let next = chain(rest, told);
    let mut layer = DeadlineLayer::from_header(header(hop.kind));
    if let Some(or) = hop.or {
        layer = layer.or(or);
    }
    if let Some(at_most) = hop.at_most {
        layer = layer.at_most(at_most);
    }
    if hop.propagates {
        layer = layer.propagate(Propagate::Header(header(hop.kind)));
    }
    let (hop, told) = (hop.clone(), told.clone());
    let send = service_fn(move |mut request: Request<()>| {
        if hop.is_remote {
            request.extensions_mut().clear();
        }
        let next = next.clone();
        async move {
            let sent = next.oneshot(request).await;
            sent.map(|()| Response::new(Steps::new([])))
        }
    });
    // Right before it is sent, in the words of the next.
    let forward = DeadlineLayer::forward(header(rest.first().map_or(0, |next| next.kind)));
    let send = BoxCloneService::new(forward.layer(send));
    let inner = service_fn(move |request: Request<()>| {
        let deadline = request.extensions().get::<Deadline>();
        let told_here = (deadline.map(|deadline| deadline.0), hop.propagates);
        told.lock().unwrap().push(told_here);
        let (send, works) = (send.clone(), hop.works);
        async move {
            tokio::time::sleep(works).await;
            send.oneshot(request).await
        }
    });
    Client::new(layer.layer(inner).map_response(drop))
}

proptest! {
    #[test]
    fn no_child_has_longer_than_its_parent(
        hops in prop::collection::vec(hops(), 1..6),
        asked in prop::option::of("[0-9]{1,9}[HMSmun]?|-1|nonsense|0\\.[0-9]{1,9}|"),
    ) {
        let told = Told::default();
        let client = chain(&hops, &told);
        let mut request = Request::new(());
        if let Some(asked) = &asked {
            let value = HeaderValue::from_str(asked).unwrap();
            request.headers_mut().insert(name(hops[0].kind), value);
        }
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(async {
            // A clock that is not at a round number.
            tokio::time::advance(Duration::from_nanos(123_456_789)).await;
            let answer = client.oneshot(request).await;
            if let Err(error) = answer {
                assert!(Elapsed::find(&*error).is_some(), "{error}");
            }
        });
        let told = told.lock().unwrap();
        let mut parent: Option<Instant> = None;
        for &(deadline, propagates) in told.iter() {
            if !propagates {
                // Nobody further in was told by this one; what the one before has told may have ended with it.
                parent = None;
                continue;
            }
            if let Some(parent) = parent {
                let child = deadline.expect("told by the parent");
                prop_assert!(child <= parent, "{child:?} > {parent:?}");
            }
            parent = deadline.or(parent);
        }
    }
}
