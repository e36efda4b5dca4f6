use std::task::{Context, Poll};

use http::Request;
use palisade_core::{
    head::RequestHead,
    key::{ExtractKey, Key},
};
use tower_layer::Layer;
use tower_service::Service;

use crate::Affinity;

/// Keeps requests of one key together: by user, by session, by whatever a header says.
///
/// Goes outside the balancer. A request that has an [`Affinity`] keeps it, and one without a key gets none. The body is
/// not touched; an [`Affinity`] costs three allocations where the request has no extensions yet.
///
/// ```
/// use http::{Request, Response};
/// use http_body_util::Empty;
/// use palisade_balance::{Affinity, AffinityLayer, BalanceLayer, Endpoints, Strategy};
/// use palisade_core::key;
/// use tower::ServiceBuilder;
/// # use palisade_core::testing::Answers;
/// # let client = Answers(|| Response::new(Empty::<bytes::Bytes>::new()));
/// # let endpoints = Endpoints::default();
/// # endpoints.insert(palisade_balance::Endpoint::new("a", client));
///
/// let service = ServiceBuilder::new()
///     .layer(AffinityLayer::new(key::header("x-session-id")))
///     .layer(BalanceLayer::new(Strategy::ConsistentHash))
///     .service(endpoints);
/// # fn is_service(_: impl tower::Service<Request<()>>) {}
/// # is_service(service);
/// ```
#[derive(Clone, Debug)]
pub struct AffinityLayer<K> {
    key: K,
}

impl<K: ExtractKey> AffinityLayer<K> {
    /// By the key that this finds.
    pub fn new(key: K) -> Self {
        Self { key }
    }
}

impl<S, K: Clone> Layer<S> for AffinityLayer<K> {
    type Service = KeyAffinity<S, K>;

    fn layer(&self, inner: S) -> Self::Service {
        KeyAffinity {
            inner,
            key: self.key.clone(),
        }
    }
}

/// Says to which others a request belongs. Made by [`AffinityLayer`].
#[derive(Clone, Debug)]
pub struct KeyAffinity<S, K> {
    inner: S,
    key: K,
}

impl<S, K, B> Service<Request<B>> for KeyAffinity<S, K>
where
    S: Service<Request<B>>,
    K: ExtractKey,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        if request.extensions().get::<Affinity>().is_none() {
            let key = self.key.key(&RequestHead::from(&request));
            let affinity = key.map(|key| match key {
                Key::Bytes(bytes) => Affinity::of(bytes),
                Key::Address(std::net::IpAddr::V4(address)) => Affinity::of(address.octets()),
                Key::Address(std::net::IpAddr::V6(address)) => Affinity::of(address.octets()),
            });
            if let Some(affinity) = affinity {
                request.extensions_mut().insert(affinity);
            }
        }
        self.inner.call(request)
    }
}
