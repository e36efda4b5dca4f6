//! Making connections: no more than there are places for, and none that takes too long.

use std::{
    error::Error,
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper::rt;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use palisade_core::{
    BoxError,
    reject::{Reason, Rejected},
    time,
};
use pin_project::pin_project;
use tokio::{sync::Semaphore, time::timeout_at};
use tower_service::Service;

use super::{
    Settings,
    connections::{Ledger, Open},
    future::dials,
};

/// After so much silence TCP asks whether the other side is still there.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMES: u32 = 2;
/// Data that are not acknowledged for so long never will be.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

#[cfg(feature = "hyper-tls")]
pub(super) type Secure = hyper_rustls::HttpsConnector<Dial>;
#[cfg(not(feature = "hyper-tls"))]
pub(super) type Secure = Dial;

/// Connects through `D` when there is a place, and counts.
#[derive(Clone, Debug)]
pub(crate) struct Connector<D> {
    dial: D,
    timeout: Duration,
    places: Option<(Arc<Semaphore>, usize)>,
    ledger: Arc<Ledger>,
}

impl Connector<Secure> {
    pub(super) fn new(settings: &Settings, ledger: Arc<Ledger>) -> Self {
        let dial = Dial::new(settings);
        #[cfg(feature = "hyper-tls")]
        let dial = Secure::from((dial, tls(settings)));
        Self::through(
            dial,
            settings.connect_timeout,
            settings.max_connections,
            ledger,
        )
    }
}

impl<D> Connector<D> {
    pub(super) fn through(
        dial: D,
        timeout: Duration,
        most: Option<usize>,
        ledger: Arc<Ledger>,
    ) -> Self {
        let places = most.map(|most| most.min(Semaphore::MAX_PERMITS));
        Self {
            dial,
            timeout,
            places: places.map(|most| (Arc::new(Semaphore::new(most)), most)),
            ledger,
        }
    }
}

impl<D> Service<Uri> for Connector<D>
where
    D: Service<Uri, Response: Send, Error: Into<BoxError>, Future: Send + 'static>,
{
    type Response = Counted<D::Response>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.dial.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        dials();
        // Starts when it is polled, as connectors of hyper do.
        let connecting = self.dial.call(uri);
        let (places, ledger) = (self.places.clone(), self.ledger.clone());
        let timeout = self.timeout;
        Box::pin(async move {
            let by = time::now() + timeout;
            let place = match places {
                None => None,
                Some((places, most)) => match timeout_at(by, places.acquire_owned()).await {
                    Ok(place) => place.ok(),
                    Err(_) => {
                        let full = TooManyConnections { most };
                        return Err(Rejected::new(Reason::Overloaded, full).into());
                    }
                },
            };
            let late = || io::Error::new(io::ErrorKind::TimedOut, "connecting took too long");
            let io = match timeout_at(by, connecting).await {
                Ok(connected) => connected.map_err(Into::into),
                Err(_) => Err(late().into()),
            };
            match io {
                Ok(io) => Ok(Counted {
                    io,
                    _open: ledger.opened(place),
                }),
                Err(error) => {
                    ledger.failed();
                    Err(error)
                }
            }
        })
    }
}

/// Connects to the host of a URL, or to one certain address.
#[derive(Clone, Debug)]
pub(crate) struct Dial {
    tcp: HttpConnector,
    /// With the address as its authority.
    always: Option<Uri>,
}

impl Dial {
    fn new(settings: &Settings) -> Self {
        let mut tcp = HttpConnector::new();
        // `https` comes here for its TCP connections.
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        // Shared among the addresses of a host, so that a dead one leaves time for the next.
        tcp.set_connect_timeout(Some(settings.connect_timeout));
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE_EVERY));
        tcp.set_keepalive_retries(Some(KEEPALIVE_TIMES));
        #[cfg(target_os = "linux")]
        tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
        let always = settings.address;
        let always = always.and_then(|address| format!("http://{address}").parse().ok());
        Self { tcp, always }
    }
}

impl Service<Uri> for Dial {
    type Response = <HttpConnector as Service<Uri>>::Response;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = <HttpConnector as Service<Uri>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.tcp.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        self.tcp.call(self.always.clone().unwrap_or(uri))
    }
}

#[cfg(feature = "hyper-tls")]
fn tls(settings: &Settings) -> Arc<rustls::ClientConfig> {
    use std::sync::LazyLock;

    use super::Protocol;

    static MOZILLA: LazyLock<Arc<rustls::ClientConfig>> = LazyLock::new(|| {
        let roots = rustls::RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.into(),
        };
        let provider = rustls::crypto::ring::default_provider();
        let config = rustls::ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .expect("ring knows the default versions")
            .with_root_certificates(roots);
        Arc::new(config.with_no_client_auth())
    });

    let config = settings.tls.as_ref().unwrap_or(&MOZILLA);
    if !settings.base.is_secure() {
        // Not looked at.
        return config.clone();
    }
    let mut config = rustls::ClientConfig::clone(config);
    let protocols: &[&[u8]] = match settings.protocol {
        Protocol::Either => &[b"h2", b"http/1.1"],
        Protocol::Http1 => &[b"http/1.1"],
        Protocol::Http2 => &[b"h2"],
    };
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

/// A connection that holds its place until it is closed.
#[pin_project]
#[derive(Debug)]
pub(crate) struct Counted<T> {
    #[pin]
    io: T,
    _open: Open,
}

impl<T: rt::Read> rt::Read for Counted<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.project().io.poll_read(cx, buf)
    }
}

impl<T: rt::Write> rt::Write for Counted<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.project().io.poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().io.poll_write_vectored(cx, bufs)
    }
}

impl<T: Connection> Connection for Counted<T> {
    fn connected(&self) -> Connected {
        self.io.connected()
    }
}

/// All connections that a [`Client`](crate::Client) may have are in use, and none became free in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TooManyConnections {
    /// So many.
    pub most: usize,
}

impl fmt::Display for TooManyConnections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "all {} connections to the endpoint are in use",
            self.most
        )
    }
}

impl Error for TooManyConnections {}
