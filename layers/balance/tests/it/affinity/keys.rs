use std::{
    pin::pin,
    task::{Context, Waker},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::{Empty, Full};
use palisade_balance::{Affinity, AffinityLayer, PromptAffinityLayer};
use palisade_core::{
    key::{self, ExtractKey, Key},
    testing::{Answers, CountingAllocator},
};
use tower::{Layer, Service, ServiceExt};

use super::{CHAT, Keeper};

#[tokio::test]
async fn requests_of_one_key_have_one_affinity_and_those_without_have_none() {
    async fn of<K: ExtractKey + Clone>(key: K, header: Option<&'static str>) -> Option<Affinity> {
        let keeper = Keeper::new();
        let remote = keeper.remote();
        let mut request = Request::new(());
        if let Some(value) = header {
            request
                .headers_mut()
                .insert("x-session-id", HeaderValue::from_static(value));
        }
        AffinityLayer::new(key)
            .layer(keeper)
            .oneshot(request)
            .await
            .unwrap();
        remote.affinity()
    }
    let session = || key::header("x-session-id");
    assert_eq!(of(session(), Some("7")).await, Some(Affinity::of("7")));
    assert_eq!(of(session(), Some("8")).await, Some(Affinity::of("8")));
    assert_eq!(of(session(), None).await, None);
    fn address<'a>(_: &palisade_core::head::RequestHead<'a>) -> Option<Key<'a>> {
        Some(std::net::IpAddr::from([192, 0, 2, 1]).into())
    }
    assert_eq!(of(address, None).await, Some(Affinity::of([192, 0, 2, 1])));
}

#[tokio::test]
async fn the_outermost_affinity_stands() {
    let keeper = Keeper::new();
    let remote = keeper.remote();
    let service = AffinityLayer::new(key::path()).layer(keeper);
    let service = AffinityLayer::new(key::header("x-user")).layer(service);
    let request = |user: Option<&'static str>| {
        let mut request = Request::new(());
        if let Some(user) = user {
            request
                .headers_mut()
                .insert("x-user", HeaderValue::from_static(user));
        }
        request
    };
    service.clone().oneshot(request(Some("ann"))).await.unwrap();
    assert_eq!(remote.affinity(), Some(Affinity::of("ann")));
    service.clone().oneshot(request(None)).await.unwrap();
    assert_eq!(remote.affinity(), Some(Affinity::of("/")));
}

#[tokio::test]
async fn an_affinity_costs_the_room_for_extensions_and_reading_a_frame_ahead_nothing() {
    fn allocations(request: Request<Full<Bytes>>, layer: PromptAffinityLayer) -> u64 {
        let client = Answers(|| Response::new(Empty::<Bytes>::new()));
        let key = AffinityLayer::new(key::header("x-session-id"));
        let mut service = key.layer(layer.layer(client));
        let before = CountingAllocator::count();
        let mut response = pin!(service.call(request));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(response.as_mut().poll(&mut cx).is_ready());
        CountingAllocator::count() - before
    }
    let request = || Request::new(Full::from(CHAT));
    let layer = PromptAffinityLayer::new();
    assert_eq!(allocations(request(), layer.read(0)), 0);
    assert_eq!(allocations(request(), layer), 3);
    let mut known = request();
    known
        .headers_mut()
        .insert("x-session-id", HeaderValue::from_static("7"));
    assert_eq!(allocations(known, layer), 3);
    let mut known = request();
    known.extensions_mut().insert(Affinity::of("7"));
    assert_eq!(allocations(known, layer), 0);
}
