use std::{borrow::Cow, fmt, sync::Arc};

use bytes::Bytes;
use http::{HeaderName, Request, Response, request};
use http_body::Body;
use palisade_core::{
    BoxError,
    classify::{Classify, Http},
    head::{RequestHead, ResponseHead},
    replay::ReplayBody,
};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    Answer, Failure, Fallback, Handle,
    alternative::{Ask, Kind},
    metrics::Metrics,
    policy::{MARK, Policy},
};

/// Gives a service alternatives, which are asked in the order in which they were added.
///
/// `B` is the body of requests, which the compiler finds where the layer is used.
///
/// ```
/// use http::{Response, StatusCode};
/// use palisade_core::classify::Verdict;
/// use palisade_fallback::{Answer, FallbackLayer};
///
/// let layer = FallbackLayer::<()>::new()
///     .function("too busy", |head, failure| {
///         let busy = matches!(failure.verdict(), Verdict::Overload { .. });
///         let answer = || Answer::json(StatusCode::OK, r#"{"later":true}"#);
///         (busy && head.uri.path() == "/recommendations").then(answer)
///     })
///     .value("closed", Response::new("closed"))
///     .named("shop");
/// assert_eq!(layer.handle().snapshot().alternatives.len(), 2);
/// ```
pub struct FallbackLayer<B, C = Http> {
    policy: Arc<Policy<B>>,
    classify: C,
}

impl<B> FallbackLayer<B> {
    /// No alternatives yet. Request bodies are kept up to 64 KiB, answers are judged by HTTP status.
    pub fn new() -> Self {
        Self {
            policy: Arc::new(Policy {
                alternatives: Vec::new(),
                condition: None,
                hold_back: None,
                replay_up_to: 64 * 1024,
                mark: Some(MARK),
                stats: Arc::default(),
                metrics: Metrics::new("fallback".into()),
            }),
            classify: Http,
        }
    }
}

impl<B> Default for FallbackLayer<B> {
    fn default() -> Self {
        Self::new()
    }
}

impl<B, C> FallbackLayer<B, C> {
    /// An alternative that is asked as the service was: the same head, and the body from its start.
    ///
    /// An instance of it is made ready and called for each request that gets so far. A service that is not `Sync` goes
    /// in as a tower `BoxCloneSyncService`.
    #[must_use]
    pub fn service<S, R>(self, name: &str, service: S) -> Self
    where
        S: Service<Request<ReplayBody<B>>, Response = Response<R>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
        B: Send + 'static,
        R: Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let service: Arc<dyn Ask<B>> = Arc::new(service);
        let rewrite = None;
        self.add(name, Kind::Service { service, rewrite })
    }

    /// The same with another head: another model, path or key.
    #[must_use]
    pub fn rewritten<S, R, F>(self, name: &str, rewrite: F, service: S) -> Self
    where
        F: Fn(&mut request::Parts) + Send + Sync + 'static,
        S: Service<Request<ReplayBody<B>>, Response = Response<R>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
        B: Send + 'static,
        R: Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let kind = Kind::Service {
            service: Arc::new(service),
            rewrite: Some(Arc::new(rewrite)),
        };
        self.add(name, kind)
    }

    /// An alternative that is always the same. None after it is ever asked, unless it is forced.
    #[must_use]
    pub fn value(self, name: &str, answer: impl Into<Answer>) -> Self {
        self.add(name, Kind::Value(Arc::new(answer.into())))
    }

    /// An alternative that is made of the head of the request and the failure before it; `None` passes the request on to
    /// the next one. It runs as the request is sent or its future is polled, so it must not block.
    #[must_use]
    pub fn function<F>(self, name: &str, function: F) -> Self
    where
        F: Fn(&RequestHead<'_>, &Failure<'_>) -> Option<Answer> + Send + Sync + 'static,
    {
        self.add(name, Kind::Function(Arc::new(function)))
    }

    /// Asks the alternative that was added last for these requests only: others pass it over, as if it were not there.
    ///
    /// ```
    /// use http::Response;
    /// use palisade_fallback::FallbackLayer;
    ///
    /// let layer = FallbackLayer::<()>::new()
    ///     .value("no results", Response::new("[]"))
    ///     .only_for(|head| head.uri.path() == "/search");
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn only_for<F>(mut self, applies: F) -> Self
    where
        F: Fn(&RequestHead<'_>) -> bool + Send + Sync + 'static,
    {
        if let Some(last) = self.policy_mut().alternatives.last_mut() {
            last.applies = Some(Arc::new(applies));
        }
        self
    }

    /// Asks an alternative after these failures, of the service and of alternatives; [`unserved`](crate::unserved)
    /// otherwise.
    ///
    /// Not asked about a success.
    #[must_use]
    pub fn condition<F>(mut self, condition: F) -> Self
    where
        F: Fn(&Failure<'_>) -> bool + Send + Sync + 'static,
    {
        self.policy_mut().condition = Some(Arc::new(condition));
        self
    }

    /// Also holds back these answers until their first data, so that one that breaks off before them is replaced.
    ///
    /// For gRPC services that send the head before they know how the call ends. Not for calls in which the caller waits
    /// for the head before it sends more: head and data would wait for each other.
    #[must_use]
    pub fn hold_back<F>(mut self, hold_back: F) -> Self
    where
        F: Fn(&ResponseHead<'_>) -> bool + Send + Sync + 'static,
    {
        self.policy_mut().hold_back = Some(Arc::new(hold_back));
        self
    }

    /// Keeps up to this many bytes of a request's body; with one of which more was sent no service is asked.
    #[must_use]
    pub fn replay_up_to(mut self, bytes: usize) -> Self {
        self.policy_mut().replay_up_to = bytes;
        self
    }

    /// Names the alternative that has served in this header; `x-fallback` otherwise, and none for `None`.
    #[must_use]
    pub fn mark(mut self, header: impl Into<Option<HeaderName>>) -> Self {
        self.policy_mut().mark = header.into();
        self
    }

    /// Names the layer in metrics; `fallback` otherwise.
    #[must_use]
    pub fn named(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.policy_mut().metrics = Metrics::new(name.into());
        self
    }

    /// Judges answers with `classify` instead of by HTTP status.
    #[must_use]
    pub fn classify<D: Classify>(self, classify: D) -> FallbackLayer<B, D> {
        FallbackLayer {
            policy: self.policy,
            classify,
        }
    }

    /// Looks at it and steers it from outside.
    pub fn handle(&self) -> Handle {
        let alternatives = self.policy.alternatives.iter();
        let entries = alternatives.map(|alternative| alternative.entry.clone());
        Handle::new(entries.collect(), self.policy.stats.clone())
    }

    fn add(mut self, name: &str, kind: Kind<B>) -> Self {
        self.policy_mut().add(name, kind);
        self
    }

    /// Own settings for this clone from here on.
    fn policy_mut(&mut self) -> &mut Policy<B> {
        Arc::make_mut(&mut self.policy)
    }
}

impl<S, B, C: Classify> Layer<S> for FallbackLayer<B, C> {
    type Service = Fallback<S, B, C>;

    fn layer(&self, inner: S) -> Fallback<S, B, C> {
        Fallback::new(inner, self.classify.clone(), self.policy.clone())
    }
}

impl<B, C: Clone> Clone for FallbackLayer<B, C> {
    fn clone(&self) -> Self {
        Self {
            policy: self.policy.clone(),
            classify: self.classify.clone(),
        }
    }
}

impl<B, C: fmt::Debug> fmt::Debug for FallbackLayer<B, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let alternatives = self.policy.alternatives.iter();
        let names: Vec<_> = alternatives.map(|each| &*each.entry.name).collect();
        f.debug_struct("FallbackLayer")
            .field("alternatives", &names)
            .field("classify", &self.classify)
            .finish_non_exhaustive()
    }
}
