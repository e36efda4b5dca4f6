//! A client of one endpoint, with connections of its own.

mod address;
mod connect;
mod connections;
mod future;
#[cfg(test)]
mod tests;

use std::{
    error::Error,
    fmt,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response, Uri, Version, header::HOST};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{self, connect::capture_connection},
    rt::{TokioExecutor, TokioTimer},
};
use palisade_core::{
    BoxError,
    reject::{Reason, Rejected},
};
use tower_service::Service;

use self::{
    address::Base,
    connect::{Connector, Secure},
    connections::Ledger,
};
pub use self::{
    address::InvalidUrl, connect::TooManyConnections, connections::Connections,
    future::ClientFuture,
};

/// A backend in the same network answers in milliseconds or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Shorter than the idle time-outs that are usual in servers, of which 5 s is the shortest that is common.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// As good as for ever, and no instant overflows.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
/// What comes round comes round no faster.
const SHORTEST: Duration = Duration::from_millis(1);

/// Sends requests to one endpoint, over connections that it keeps. Clones share them.
///
/// The scheme, the authority and a path before the path of each request come from the URL; so does its `Host` header.
/// Extensions of the request go no further. The answer is hyper's, and so are the errors, where palisade's judges find
/// that a connection was refused or came too late: no byte was sent then, and the request can go elsewhere. Nothing is
/// sent twice by itself.
///
/// `http` is HTTP/1.1 unless [`http2`](Self::http2) says otherwise, `https` (feature `hyper-tls`) what both sides speak.
/// Each connection is a task of its own on the runtime of tokio, so a request has to be sent from within one. When the
/// last clone is gone, so are the idle connections; bodies are read to their ends.
///
/// ```
/// use std::time::Duration;
///
/// use bytes::Bytes;
/// use http_body_util::Full;
/// use palisade_balance::{Balance, Client, Endpoint, Endpoints, InvalidUrl};
///
/// let endpoints = Endpoints::default();
/// for url in ["http://10.0.0.1:8080/llm", "http://10.0.0.2:8080/llm"] {
///     let client = Client::<Full<Bytes>>::new(url)?
///         .connect_timeout(Duration::from_millis(500))
///         .max_connections(100);
///     // Further requests go to others, instead of waiting for a connection.
///     endpoints.insert(Endpoint::new(url, client).max_in_flight(100));
/// }
/// let service = Balance::adaptive(endpoints);
/// # drop(service);
/// # Ok::<(), InvalidUrl>(())
/// ```
pub struct Client<B>(Arc<Shared<B>>);

struct Shared<B> {
    settings: Settings,
    /// Made for the first request, when all is set.
    pool: OnceLock<Pool<B>>,
}

struct Pool<B> {
    client: legacy::Client<Connector<Secure>, B>,
    ledger: Arc<Ledger>,
}

#[derive(Clone)]
pub(crate) struct Settings {
    base: Base,
    name: Option<Arc<str>>,
    protocol: Protocol,
    address: Option<SocketAddr>,
    connect_timeout: Duration,
    idle_timeout: Duration,
    max_idle: usize,
    max_connections: Option<usize>,
    ping: Option<(Duration, Duration)>,
    #[cfg(feature = "hyper-tls")]
    tls: Option<Arc<rustls::ClientConfig>>,
}

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    /// With TLS what both sides speak, else HTTP/1.1.
    Either,
    Http1,
    Http2,
}

impl<B> Client<B> {
    /// Reaches the endpoint at this URL: `http://10.0.0.1:8080`, `https://llm.example.com/eu`.
    ///
    /// # Errors
    ///
    /// [`InvalidUrl`] if requests cannot be sent there. Nothing is resolved or connected before the first request.
    pub fn new(url: impl TryInto<Uri>) -> Result<Self, InvalidUrl> {
        let url = url.try_into().map_err(|_| InvalidUrl::Syntax)?;
        Ok(Self::with(Settings {
            base: Base::new(&url)?,
            name: None,
            protocol: Protocol::Either,
            address: None,
            connect_timeout: CONNECT_TIMEOUT,
            idle_timeout: IDLE_TIMEOUT,
            max_idle: usize::MAX,
            max_connections: None,
            ping: None,
            #[cfg(feature = "hyper-tls")]
            tls: None,
        }))
    }

    /// Is called so in metrics, as the endpoint should be; the authority of the URL unless said otherwise.
    #[must_use]
    pub fn named(self, name: impl Into<Arc<str>>) -> Self {
        self.set(|settings| settings.name = Some(name.into()))
    }

    /// Speaks HTTP/1.1 only.
    #[must_use]
    pub fn http1(self) -> Self {
        self.set(|settings| settings.protocol = Protocol::Http1)
    }

    /// Speaks HTTP/2 only, without TLS by prior knowledge, as gRPC needs it: all requests share one connection.
    #[must_use]
    pub fn http2(self) -> Self {
        self.set(|settings| settings.protocol = Protocol::Http2)
    }

    /// Connects to this address, whatever the host of the URL resolves to: that one is still asked for, and with TLS
    /// has to be proved.
    #[must_use]
    pub fn address(self, address: SocketAddr) -> Self {
        self.set(|settings| settings.address = Some(address))
    }

    /// Gives up on a connection that takes longer to come than two seconds: on resolving, on TCP, on TLS, and on a
    /// place below [`max_connections`](Self::max_connections) together.
    #[must_use]
    pub fn connect_timeout(self, timeout: Duration) -> Self {
        self.set(|settings| settings.connect_timeout = timeout.min(LONGEST))
    }

    /// Uses no connection again that nothing has used for four seconds, and closes it within as much again.
    ///
    /// Should be shorter than what the server waits, or requests meet connections that it has just closed.
    #[must_use]
    pub fn idle_timeout(self, timeout: Duration) -> Self {
        // The pool closes nothing where it is zero.
        let timeout = timeout.clamp(SHORTEST, LONGEST);
        self.set(|settings| settings.idle_timeout = timeout)
    }

    /// Keeps no more idle connections than this, where there is no bound unless said otherwise.
    #[must_use]
    pub fn max_idle(self, most: usize) -> Self {
        self.set(|settings| settings.max_idle = most)
    }

    /// Never has more connections open than this, idle ones included, and at least one; no bound unless said otherwise.
    ///
    /// A request that needs another waits for one until the connect timeout, and is then refused, as
    /// [`TooManyConnections`]. With HTTP/1.1 a connection has one request at a time: with
    /// [`Endpoint::max_in_flight`](crate::Endpoint::max_in_flight) at the same number, requests go to another endpoint
    /// instead of waiting. With HTTP/2 one connection has all requests, but needs a second beside it when answers go
    /// on over one that has had no new request for the idle timeout: leave room for both.
    #[must_use]
    pub fn max_connections(self, most: usize) -> Self {
        self.set(|settings| settings.max_connections = Some(most.max(1)))
    }

    /// While answers come over HTTP/2, asks the server this often for a sign of life, and closes a connection that has
    /// given none for `timeout`. Never asks unless told to: many servers of gRPC hang up on who asks more than once
    /// in five minutes.
    ///
    /// Without it the system finds out: TCP is asked after 15 s of silence, and a peer that acknowledges nothing is
    /// given up after 20 s (Linux), as gRPC does (proposal A18).
    #[must_use]
    pub fn ping(self, every: Duration, timeout: Duration) -> Self {
        let [every, timeout] = [every, timeout].map(|time| time.clamp(SHORTEST, LONGEST));
        self.set(|settings| settings.ping = Some((every, timeout)))
    }

    /// Trusts others than Mozilla's roots, or shows a certificate of its own. Its list of ALPN is not used.
    #[cfg(feature = "hyper-tls")]
    #[must_use]
    pub fn tls(self, config: impl Into<Arc<rustls::ClientConfig>>) -> Self {
        self.set(|settings| settings.tls = Some(config.into()))
    }

    fn with(settings: Settings) -> Self {
        Self(Arc::new(Shared {
            settings,
            pool: OnceLock::new(),
        }))
    }

    fn set(self, set: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = self.0.settings.clone();
        set(&mut settings);
        Self::with(settings)
    }
}

impl<B> Client<B>
where
    B: Body<Data: Send> + Send,
{
    /// How many connections there are, and were.
    pub fn connections(&self) -> Connections {
        self.pool().ledger.read()
    }

    fn pool(&self) -> &Pool<B> {
        let Shared { settings, pool } = &*self.0;
        pool.get_or_init(|| {
            let ledger = Arc::new(Ledger::new(settings.name()));
            let connector = Connector::new(settings, ledger.clone());
            Pool {
                client: settings.builder().build(connector),
                ledger,
            }
        })
    }
}

impl Settings {
    fn name(&self) -> Arc<str> {
        let name = self.name.clone();
        name.unwrap_or_else(|| self.base.authority().into())
    }

    fn builder(&self) -> legacy::Builder {
        let mut builder = legacy::Client::builder(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(self.idle_timeout)
            .pool_max_idle_per_host(self.max_idle)
            .http2_only(self.protocol == Protocol::Http2)
            .set_host(false)
            // Attempts are counted in one place.
            .retry_canceled_requests(false);
        if let Some((every, timeout)) = self.ping {
            builder
                .http2_keep_alive_interval(every)
                .http2_keep_alive_timeout(timeout);
        }
        builder
    }
}

impl<B> Service<Request<B>> for Client<B>
where
    B: Body<Data: Send> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = ClientFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> ClientFuture {
        let base = &self.0.settings.base;
        let Some(uri) = base.at(request.uri()) else {
            // 400: it never fits, and says nothing of the endpoint.
            let rejected = Rejected::new(Reason::CostExceedsQuota, PathTooLong(()));
            return ClientFuture::refused(rejected);
        };
        *request.uri_mut() = uri;
        // That of the connection it came by means nothing for the one it goes by.
        *request.version_mut() = Version::HTTP_11;
        request.headers_mut().insert(HOST, base.host().clone());
        // The rest is for the layers, and would live as long as the connection takes to send it.
        request.extensions_mut().clear();
        let shares = self.0.settings.protocol == Protocol::Http2;
        let connected = shares.then(|| capture_connection(&mut request));
        ClientFuture::sent(self.pool().client.request(request), connected)
    }
}

impl<B> Clone for Client<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B> fmt::Debug for Client<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Client");
        debug.field("url", &format_args!("{}", self.0.settings.base));
        if let Some(pool) = self.0.pool.get() {
            debug.field("connections", &pool.ledger.read());
        }
        debug.finish_non_exhaustive()
    }
}

/// With the path of the URL before it, the path of a request is longer than a URL may be.
#[derive(Debug)]
struct PathTooLong(());

impl fmt::Display for PathTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the path of the request is too long for this endpoint")
    }
}

impl Error for PathTooLong {}
