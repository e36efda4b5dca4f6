//! How long requests take, for limits that follow it.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, Response, StatusCode};
use palisade_core::quantile::Quantile;
use tokio::time::Instant;

use crate::error::Limit;

/// Where the times of one request go.
#[derive(Clone, Default)]
pub(crate) struct Samples {
    /// Up to the first data.
    pub(crate) first: Option<Arc<Quantile>>,
    /// Up to the end.
    pub(crate) whole: Option<Arc<Quantile>>,
}

impl Samples {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none() && self.whole.is_none()
    }

    /// Forgets a request that failed fast, which says nothing of how long one takes that does not.
    #[inline]
    pub(crate) fn judge<B>(&mut self, response: &Response<B>) {
        if !self.is_empty() && has_failed(response.status(), response.headers()) {
            *self = Self::default();
        }
    }

    /// Forgets one of gRPC that says in its trailers that it has failed.
    pub(crate) fn hear(&mut self, trailers: &HeaderMap) {
        if !self.is_empty() && grpc_has_failed(trailers) {
            *self = Self::default();
        }
    }

    pub(crate) fn first(&mut self, age: Duration, now: Instant) {
        if let Some(first) = self.first.take() {
            first.record(age, now);
        }
    }

    pub(crate) fn whole(&mut self, age: Duration, now: Instant) {
        self.first(age, now);
        if let Some(whole) = self.whole.take() {
            whole.record(age, now);
        }
    }

    /// Ended at this age by a limit, so that it would have taken longer, nobody knows how much: taken for twice as
    /// long, as RFC 6298 backs off. Taken for its age alone, a limit that ends more than it should could never grow.
    ///
    /// What ended it early because it was silent says nothing of how long a whole answer takes.
    pub(crate) fn cut(&mut self, limit: Limit, age: Duration, now: Instant) {
        if matches!(limit, Limit::FirstByte | Limit::Idle) {
            self.whole = None;
        }
        self.whole(age.saturating_mul(2), now);
    }
}

fn has_failed(status: StatusCode, headers: &HeaderMap) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS || grpc_has_failed(headers)
}

fn grpc_has_failed(headers: &HeaderMap) -> bool {
    headers
        .get("grpc-status")
        .is_some_and(|status| status != "0")
}
