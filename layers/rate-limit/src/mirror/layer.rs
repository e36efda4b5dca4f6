//! The layer.

use std::time::Duration;

use palisade_core::{
    classify::{Classify, Http},
    gate::{GateLayer, Gated},
    head::RequestHead,
    key::ExtractKey,
};
use tower_layer::Layer;

use super::{gate::QuotaMirror, handle::MirrorHandle};

/// Keeps a client within the quotas of the service that it calls, as the service's answers tell of them.
///
/// Requests that would be answered 429 wait, or are refused at once with [`RateLimited`](crate::RateLimited), which
/// says for how long. A layer and its clones share what they know. A setter begins anew: set first, then clone and
/// ask for handles.
///
/// # Example
///
/// ```
/// use http::{Request, Response};
/// use http_body_util::Empty;
/// use palisade_core::{BoxError, key::Key, reject::Rejected};
/// use palisade_rate_limit::QuotaMirrorLayer;
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// // A client of hyper or reqwest, behind `service_fn` or as a service of its own.
/// let client = service_fn(async |_: Request<Empty<bytes::Bytes>>| {
///     let answer = Response::builder().header("ratelimit", r#""burst";r=0;t=30"#);
///     answer.body(Empty::<bytes::Bytes>::new()).map_err(BoxError::from)
/// });
/// let mirror = QuotaMirrorLayer::new();
/// let api = mirror.layer(client);
///
/// let request = || Request::get("https://api.example.com/v1").body(Empty::new());
/// api.clone().oneshot(request()?).await?;
/// // Nothing is left: what would wait for 30 s is refused instead of sent.
/// let error = api.oneshot(request()?).await.unwrap_err();
/// let refused = Rejected::find(&*error).unwrap();
/// assert_eq!(refused.policy(), Some("burst"));
/// assert_eq!(refused.delay().unwrap().as_secs_f64().ceil(), 30.0);
/// let known = mirror.handle().snapshot(&Key::from("api.example.com")).unwrap();
/// assert_eq!(known.quotas[0].remaining, 0);
/// # Ok::<(), BoxError>(())
/// # })?;
/// # Ok::<(), BoxError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct QuotaMirrorLayer<C = Http> {
    mirror: QuotaMirror,
    classify: C,
}

impl QuotaMirrorLayer {
    /// One mirror for each host and port that requests go to.
    pub fn new() -> Self {
        Self::default()
    }
}

impl<C: Classify> QuotaMirrorLayer<C> {
    /// Keeps one mirror per key instead; requests without a key share one.
    ///
    /// A key should be as fine as what the service counts by: with several credentials for one host, the host and the
    /// credential.
    #[must_use]
    pub fn key(mut self, key: impl ExtractKey) -> Self {
        self.mirror = self.mirror.key(key);
        self
    }

    /// How many tokens of a language model a request takes, which are held against quotas of tokens; as it is, 1, so
    /// that requests wait when no token is left and not before.
    #[must_use]
    pub fn cost<F>(mut self, tokens: F) -> Self
    where
        F: Fn(&RequestHead<'_>) -> u64 + Send + Sync + 'static,
    {
        self.mirror = self.mirror.cost(tokens);
        self
    }

    /// The longest that a request waits; as it is, 1 s. One that would have to wait longer is refused at once, and so is
    /// one whose [`Deadline`](palisade_core::deadline::Deadline) comes before. Zero lets none wait.
    #[must_use]
    pub fn wait_up_to(mut self, longest: Duration) -> Self {
        self.mirror = self.mirror.wait_up_to(longest);
        self
    }

    /// How many requests of one key wait at most; as it is, 256. Those beyond are refused at once.
    #[must_use]
    pub fn waiting(mut self, most: usize) -> Self {
        self.mirror = self.mirror.waiting(most);
        self
    }

    /// Lets the first request after a reset go later by a random time up to this, so that clients that share a quota do
    /// not come back in one instant; as it is, zero.
    #[must_use]
    pub fn jitter(mut self, most: Duration) -> Self {
        self.mirror = self.mirror.jitter(most);
        self
    }

    /// Keeps at most this many keys; as it is, 1000. A key for which nothing is left to know makes room for a new one.
    /// While there is none, requests of new keys go as they come.
    #[must_use]
    pub fn capacity(mut self, keys: usize) -> Self {
        self.mirror = self.mirror.capacity(keys);
        self
    }

    /// The `layer` in metrics; as it is, `quota_mirror`.
    #[must_use]
    pub fn named(mut self, name: impl AsRef<str>) -> Self {
        self.mirror = self.mirror.named(name);
        self
    }

    /// Judges how requests end with `classify` instead of by HTTP status: what was never sent is given back, and what a
    /// service that is overloaded asks for is obeyed.
    #[must_use]
    pub fn classify<D: Classify>(self, classify: D) -> QuotaMirrorLayer<D> {
        QuotaMirrorLayer {
            mirror: self.mirror,
            classify,
        }
    }

    /// Looks at what is known, and forgets it, while requests go out.
    pub fn handle(&self) -> MirrorHandle {
        self.mirror.handle()
    }

    /// The gate itself, to [fuse](palisade_core::gate::gates) it with its neighbours.
    pub fn gate(&self) -> &QuotaMirror {
        &self.mirror
    }
}

impl<S, C: Classify> Layer<S> for QuotaMirrorLayer<C> {
    type Service = Gated<S, QuotaMirror, C>;

    fn layer(&self, inner: S) -> Self::Service {
        GateLayer::new(self.mirror.clone())
            .classify(self.classify.clone())
            .layer(inner)
    }
}
