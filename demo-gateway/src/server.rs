//! Connections: accepted up to a ceiling, heard out up to a time, and let go of in order.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use http::Request;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore, oneshot, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    api::{self, Routes, Seat},
    app::App,
    dashboard::EVENTS,
    workers::Workers,
};

/// How an HTTP/2 connection begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How often a silent HTTP/2 connection is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Requests at once on one HTTP/2 connection.
const STREAMS: u32 = 256;

/// Between two looks at a connection that has sent half a preface.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Before accepting is tried again when there is no file descriptor left.
const BREATHE: Duration = Duration::from_millis(50);

/// Serves until told to stop, and then until what is in flight has ended, or `shutdown_timeout` is over.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    workers: Workers,
    mut stop: oneshot::Receiver<()>,
) {
    let config = app.config.server.clone();
    let routes = api::routes(app.clone());
    let graceful = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(
        config.max_connections.min(Semaphore::MAX_PERMITS),
    ));
    let protocols = Protocols::new(config.header_timeout);
    let mut connections = JoinSet::new();
    // Closed when it stops, for connections that have not begun to speak.
    let (stopping, stops) = watch::channel(());
    loop {
        let next = async {
            // First a place, then a connection: whoever is too many waits in the backlog, unharmed.
            let place = room.clone().acquire_owned().await;
            (accept(&listener).await, place)
        };
        let ((stream, peer), place) = tokio::select! {
            next = next => next,
            _ = &mut stop => break,
        };
        let (app, routes) = (app.clone(), routes.clone());
        let (protocols, watcher) = (protocols.clone(), graceful.watcher());
        let mut stops = stops.clone();
        // From here on it belongs to another thread, also with what wakes it.
        let (Some((worker, desk)), Ok(stream)) = (workers.choose(), stream.into_std()) else {
            continue;
        };
        let serving = async move {
            let _both = (place, desk);
            let Ok(stream) = TcpStream::from_std(stream) else {
                return;
            };
            // Without it the events of a stream wait up to 40 ms for each other.
            let _best_effort = stream.set_nodelay(true);
            let version = tokio::select! {
                version = timeout(protocols.patience, version(&stream)) => version,
                _ = stops.changed() => return,
            };
            if let Ok(Ok(version)) = version {
                protocols
                    .converse(version, stream, (app, routes, peer), watcher)
                    .await;
            }
        };
        connections.spawn_on(serving, worker);
        // Else those that have ended would stay until the last.
        while connections.try_join_next().is_some() {}
    }
    drop((listener, stopping));
    if timeout(config.shutdown_timeout, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("gave up on requests that took longer than the gateway waits for");
    }
    connections.shutdown().await;
    // From here on nothing of a request is told any more.
    workers.close().await;
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            // That connection was gone before it was taken up.
            Err(error) if is_of_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                sleep(BREATHE).await;
            }
        }
    }
}

fn is_of_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}

#[derive(Clone)]
struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    patience: Duration,
}

impl Protocols {
    fn new(header_timeout: Duration) -> Self {
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(header_timeout);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .max_concurrent_streams(STREAMS);
        Self {
            http1,
            http2,
            patience: header_timeout,
        }
    }

    async fn converse(
        self,
        version: Version,
        stream: TcpStream,
        (app, routes, peer): (Arc<App>, Routes, SocketAddr),
        watcher: Watcher,
    ) {
        // Counted by the connection, on its thread: what all threads count together goes from core to core each time.
        let seat = Arc::new(Seat { app, routes, peer });
        let hangup = Hangup::default();
        let may_end = (version == Version::Http1).then(|| hangup.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            if let Some(hangup) = &may_end
                && request.uri().path() == EVENTS
            {
                request.extensions_mut().insert(hangup.clone());
            }
            api::answer(seat.clone(), request)
        });
        let io = TokioIo::new(stream);
        let ended = match version {
            Version::Http1 => {
                let conversation = watcher.watch(self.http1.serve_connection(io, service));
                tokio::select! {
                    ended = conversation => ended,
                    () = hangup.0.notified() => return,
                }
            }
            Version::Http2 => {
                watcher
                    .watch(self.http2.serve_connection(io, service))
                    .await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "connection ended");
        }
    }
}

/// Ends the connection that a request has come on, for whom nothing else reaches: an answer that nobody takes is not
/// asked for more. Other streams on a connection of HTTP/2 have not deserved that.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hangup(Arc<Notify>);

impl Hangup {
    pub(crate) fn hang_up(&self) {
        self.0.notify_one();
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    Http1,
    Http2,
}

/// Which version the first bytes speak, without taking them.
async fn version(stream: &TcpStream) -> io::Result<Version> {
    let mut seen = [0; PREFACE.len()];
    loop {
        let many = stream.peek(&mut seen).await?;
        if many == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if many == PREFACE.len() && seen == *PREFACE {
            return Ok(Version::Http2);
        }
        if !PREFACE.starts_with(&seen[..many]) {
            return Ok(Version::Http1);
        }
        sleep(LOOK_AGAIN).await;
    }
}
