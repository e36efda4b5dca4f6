use std::{borrow::Cow, fmt, time::Duration};

use tower_layer::Layer;

use crate::{header::TimeoutHeader, metrics::Metrics, service::DeadlineService};

/// Ends requests, heads and bodies, at their deadline.
///
/// ```
/// use std::time::Duration;
/// use palisade_deadline::{DeadlineLayer, Propagate, TimeoutHeader};
/// use tower::Layer;
///
/// // What the caller asks for, but never more than a minute; the next server is told what is left.
/// let layer = DeadlineLayer::from_header("grpc-timeout")
///     .or(Duration::from_secs(30))
///     .at_most(Duration::from_secs(60))
///     .propagate(Propagate::Header(TimeoutHeader::grpc()));
/// let service = layer.layer("any service");
/// # assert!(format!("{service:?}").contains("any service"));
/// ```
#[derive(Clone)]
pub struct DeadlineLayer {
    pub(crate) header: Option<TimeoutHeader>,
    pub(crate) or: Option<Duration>,
    pub(crate) at_most: Option<Duration>,
    pub(crate) propagate: Propagate,
    pub(crate) metrics: Metrics,
}

/// Who is told of the deadline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Propagate {
    /// Nobody. Nothing is allocated.
    #[default]
    Nothing,
    /// The layers further in: a [`Deadline`](palisade_core::deadline::Deadline) in the request's extensions. Costs
    /// one allocation, or three when the extensions were empty.
    Extension,
    /// Also the next server, by this header with what remains. Costs the value, and its place if there was none.
    Header(TimeoutHeader),
}

impl DeadlineLayer {
    /// Ends each request `limit` after its call.
    pub fn new(limit: Duration) -> Self {
        Self {
            header: None,
            or: Some(limit),
            at_most: None,
            propagate: Propagate::Nothing,
            metrics: Metrics::new("deadline".into()),
        }
    }

    /// Ends each request when its header says. Without a header that says something there is no deadline: see
    /// [`or`](Self::or).
    pub fn from_header(header: impl Into<TimeoutHeader>) -> Self {
        Self {
            header: Some(header.into()),
            or: None,
            at_most: None,
            propagate: Propagate::Nothing,
            metrics: Metrics::new("deadline".into()),
        }
    }

    /// Ends requests whose header says nothing `limit` after their call.
    #[must_use]
    pub fn or(mut self, limit: Duration) -> Self {
        self.or = Some(limit);
        self
    }

    /// Ends every request `limit` after its call at the latest, whatever its header asks for.
    #[must_use]
    pub fn at_most(mut self, limit: Duration) -> Self {
        self.at_most = Some(limit);
        self
    }

    /// Tells others of the deadline.
    #[must_use]
    pub fn propagate(mut self, propagate: Propagate) -> Self {
        self.propagate = propagate;
        self
    }

    /// Names the layer in metrics; `deadline` otherwise.
    #[must_use]
    pub fn named(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.metrics = Metrics::new(name.into());
        self
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = DeadlineService<S>;

    fn layer(&self, inner: S) -> DeadlineService<S> {
        DeadlineService::new(inner, self.clone())
    }
}

impl fmt::Debug for DeadlineLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadlineLayer")
            .field("header", &self.header)
            .field("or", &self.or)
            .field("at_most", &self.at_most)
            .field("propagate", &self.propagate)
            .finish_non_exhaustive()
    }
}
