//! The layer.

use std::time::Duration;

use palisade_core::{
    classify::{Classify, Http},
    gate::{GateLayer, Gated},
    key::ExtractKey,
};
use tower_layer::Layer;

use crate::{
    gate::RateLimit,
    handle::Handle,
    headers::Headers,
    quota::Quota,
    rule::{Rule, RuleError},
};

/// Refuses requests for which a rule has no room.
///
/// A layer and its clones share their counts, also when axum applies one layer to many routes. A setter begins new
/// ones: set first, then clone and ask for handles.
///
/// ```
/// use palisade_core::key;
/// use palisade_rate_limit::{Quota, RateLimitLayer};
///
/// let layer = RateLimitLayer::new(Quota::per_second(50).burst(100)).key(key::header("x-api-key"));
/// assert_eq!(layer.handle().peek("default", &"k1".into()).unwrap().remaining, 100);
/// ```
#[derive(Clone, Debug)]
pub struct RateLimitLayer<C = Http> {
    limit: RateLimit,
    classify: C,
}

impl RateLimitLayer {
    /// One quota for all requests, as a token bucket, in a rule named `default`.
    pub fn new(quota: Quota) -> Self {
        Self::of(RateLimit::new(quota))
    }

    /// Several quotas, all of which a request needs room in; it takes from all of them or from none.
    ///
    /// # Errors
    ///
    /// If a name is no name or is there twice, there are more than [`Rule::MOST`], or a quota cannot be kept.
    pub fn rules(rules: impl IntoIterator<Item = Rule>) -> Result<Self, RuleError> {
        RateLimit::rules(rules).map(Self::of)
    }

    fn of(limit: RateLimit) -> Self {
        let classify = Http;
        Self { limit, classify }
    }
}

impl<C: Classify> RateLimitLayer<C> {
    /// Counts each key apart, for every rule that does not say whose it is. Requests without a key share one quota.
    #[must_use]
    pub fn key(mut self, key: impl ExtractKey) -> Self {
        self.limit = self.limit.key(key);
        self
    }

    /// Tells callers how they stand; as it is, in [`Headers::Standard`].
    #[must_use]
    pub fn headers(mut self, headers: Headers) -> Self {
        self.limit = self.limit.headers(headers);
        self
    }

    /// The `layer` in metrics; as it is, `rate_limit`.
    #[must_use]
    pub fn named(mut self, name: impl AsRef<str>) -> Self {
        self.limit = self.limit.named(name);
        self
    }

    /// Judges how requests end with `classify` instead of by HTTP status: what never reached a service is given back.
    #[must_use]
    pub fn classify<D: Classify>(self, classify: D) -> RateLimitLayer<D> {
        RateLimitLayer {
            limit: self.limit,
            classify,
        }
    }

    /// Lets requests that are over their quota wait, for at most this long and no longer than their
    /// [`Deadline`](palisade_core::deadline::Deadline), and at most `requests` at a time. They move on in the order
    /// they came; who would wait longer is refused at once, and who leaves has taken nothing.
    #[must_use]
    pub fn wait_up_to(mut self, longest: Duration, requests: usize) -> Self {
        self.limit = self.limit.wait_up_to(longest, requests);
        self
    }

    /// Counts in a store that other processes share, except for rules that are [local](Rule::local).
    ///
    /// # Errors
    ///
    /// If a window is not a whole number of microseconds.
    #[cfg(feature = "redis")]
    pub fn store(mut self, store: &crate::redis::RedisStore) -> Result<Self, RuleError> {
        self.limit = self.limit.store(store)?;
        Ok(self)
    }

    /// Looks at the counts and resets them, while requests come in.
    pub fn handle(&self) -> Handle {
        self.limit.handle()
    }

    /// The gate itself, to [fuse](palisade_core::gate::gates) it with its neighbours.
    pub fn gate(&self) -> &RateLimit {
        &self.limit
    }
}

impl<S, C: Classify> Layer<S> for RateLimitLayer<C> {
    type Service = Gated<S, RateLimit, C>;

    fn layer(&self, inner: S) -> Self::Service {
        GateLayer::new(self.limit.clone())
            .classify(self.classify.clone())
            .layer(inner)
    }
}
