//! A timeout for connecting.

use std::{
    borrow::Cow,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use palisade_core::{BoxError, classify::Unsent, time, timer::Timer};
use pin_project::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    error::{Awaited, Elapsed, Limit},
    handle::{Handle, Shared},
    tally::{Mode, Tally, Why},
};

/// Fails connections that take too long, name resolution and TLS included.
///
/// Around a connector, such as hyper-util's client or tonic's `connect_with_connector` takes, rather than a service of
/// requests. The error is [`Elapsed`] inside [`Unsent`], so that all judges know that no byte of a request was sent.
///
/// ```
/// use std::time::Duration;
/// use http::Uri;
/// use palisade_core::classify::Verdict;
/// use palisade_deadline::{ConnectTimeoutLayer, Elapsed};
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let black_hole = service_fn(|_: Uri| std::future::pending::<Result<(), std::io::Error>>());
/// let connector = ConnectTimeoutLayer::new(Duration::from_secs(2)).layer(black_hole);
/// let error = connector.oneshot(Uri::from_static("http://[100::1]")).await.unwrap_err();
/// assert_eq!(Elapsed::find(&*error).unwrap().after, Duration::from_secs(2));
/// assert_eq!(Verdict::of(&*error), Verdict::Unsent);
/// # }
/// ```
#[derive(Clone)]
pub struct ConnectTimeoutLayer {
    shared: Arc<Shared<Duration>>,
}

impl ConnectTimeoutLayer {
    /// Fails a connection that is not there `timeout` after it was begun.
    pub fn new(timeout: Duration) -> Self {
        let tally = Tally::new("connect_timeout".into(), Mode::Enforce);
        let shared = Shared::new(&timeout, tally);
        Self { shared }
    }

    /// Fails nothing and counts what it would have failed.
    #[must_use]
    pub fn shadow(self) -> Self {
        let name = self.shared.tally.name.clone();
        self.with(Tally::new(name, Mode::Shadow))
    }

    /// Names the layer in metrics; `connect_timeout` otherwise.
    #[must_use]
    pub fn named(self, name: impl Into<Cow<'static, str>>) -> Self {
        let mode = self.shared.tally.mode();
        self.with(Tally::new(name.into(), mode))
    }

    /// Looks at the layer and its clones, and steers them. Taken last: a setter makes another layer.
    pub fn handle(&self) -> Handle<Duration> {
        Handle::new(self.shared.clone())
    }

    fn with(mut self, tally: Tally) -> Self {
        self.shared = Shared::new(&self.shared.get(), tally);
        self
    }
}

impl<C> Layer<C> for ConnectTimeoutLayer {
    type Service = ConnectTimeout<C>;

    fn layer(&self, inner: C) -> ConnectTimeout<C> {
        let layer = self.clone();
        ConnectTimeout { inner, layer }
    }
}

/// A connector whose connections fail when they take too long.
#[derive(Clone, Debug)]
pub struct ConnectTimeout<C> {
    inner: C,
    layer: ConnectTimeoutLayer,
}

impl<C, T> Service<T> for ConnectTimeout<C>
where
    C: Service<T>,
    C::Error: Into<BoxError>,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = ConnectFuture<C::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, target: T) -> Self::Future {
        self.layer.shared.tally.arrive();
        let after = self.layer.shared.get();
        ConnectFuture {
            by: time::now().checked_add(after),
            after,
            inner: Some(self.inner.call(target)),
            timer: None,
            tally: self.layer.shared.tally.clone(),
        }
    }
}

/// The future of [`ConnectTimeout`].
#[pin_project]
pub struct ConnectFuture<F> {
    #[pin]
    inner: Option<F>,
    /// Boxed when there is something to wait for, because hyper wants futures of connectors that can be moved.
    timer: Option<Pin<Box<Timer>>>,
    by: Option<Instant>,
    after: Duration,
    tally: Arc<Tally>,
}

impl<F, T, E> Future for ConnectFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = Result<T, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let inner = this.inner.as_mut().as_pin_mut();
        if let Poll::Ready(connected) = inner.expect("polled after completion").poll(cx) {
            return Poll::Ready(connected.map_err(Into::into));
        }
        let Some(by) = *this.by else {
            return Poll::Pending;
        };
        let timer = this.timer.get_or_insert_with(|| Box::pin(Timer::new()));
        ready!(timer.as_mut().poll(cx, by));
        if !this.tally.ends(Why::Elapsed(Limit::Connect)) {
            *this.by = None;
            return Poll::Pending;
        }
        this.inner.set(None);
        let elapsed = Elapsed {
            limit: Limit::Connect,
            after: *this.after,
            awaited: Awaited::Connection,
        };
        Poll::Ready(Err(Unsent::new(elapsed).into()))
    }
}

impl fmt::Debug for ConnectTimeoutLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectTimeoutLayer")
            .field("timeout", &self.shared.get())
            .finish_non_exhaustive()
    }
}

impl<F> fmt::Debug for ConnectFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectFuture")
            .field("after", &self.after)
            .finish_non_exhaustive()
    }
}
