//! A timeout for one attempt.

use std::{
    borrow::Cow,
    fmt,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use palisade_core::{BoxError, time};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    body::DeadlineBody,
    limit::{Limit, Scope},
    metrics::Metrics,
    service::DeadlineFuture,
};

/// Fails attempts that stay silent for too long.
///
/// ```
/// use std::time::Duration;
/// use palisade_deadline::AttemptTimeoutLayer;
/// use tower::Layer;
///
/// let service = AttemptTimeoutLayer::first_byte(Duration::from_secs(2)).layer("any service");
/// # assert!(format!("{service:?}").contains("any service"));
/// ```
#[derive(Clone)]
pub struct AttemptTimeoutLayer {
    limit: Duration,
    metrics: Metrics,
}

impl AttemptTimeoutLayer {
    /// Fails an attempt whose first data has not come `limit` after the call; from then on it may take its time.
    pub fn first_byte(limit: Duration) -> Self {
        Self {
            limit,
            metrics: Metrics::new("attempt_timeout".into()),
        }
    }

    /// Names the layer in metrics; `attempt_timeout` otherwise.
    #[must_use]
    pub fn named(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.metrics = Metrics::new(name.into());
        self
    }
}

impl<S> Layer<S> for AttemptTimeoutLayer {
    type Service = AttemptTimeout<S>;

    fn layer(&self, inner: S) -> AttemptTimeout<S> {
        let layer = self.clone();
        AttemptTimeout { inner, layer }
    }
}

/// A service whose attempts fail when they stay silent for too long.
#[derive(Clone, Debug)]
pub struct AttemptTimeout<S> {
    inner: S,
    layer: AttemptTimeoutLayer,
}

impl<S, R, B> Service<Request<R>> for AttemptTimeout<S>
where
    S: Service<Request<R>, Response = Response<B>>,
    S::Error: Into<BoxError>,
{
    type Response = Response<DeadlineBody<B>>;
    type Error = BoxError;
    type Future = DeadlineFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<R>) -> Self::Future {
        let AttemptTimeoutLayer { limit, metrics } = &self.layer;
        let limit = Limit::new(time::now(), *limit, Scope::FirstData, metrics.clone());
        DeadlineFuture::new(self.inner.call(request), limit)
    }
}

impl fmt::Debug for AttemptTimeoutLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttemptTimeoutLayer")
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}
