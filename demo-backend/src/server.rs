//! Connections: taken, served, ended in peace or cut.

use std::{
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use palisade_core::time;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{sleep, sleep_until},
};

use crate::{
    answer::Backend,
    fault::Kind,
    instance::{Instance, Phase},
};

/// After which `accept` is asked again when no more connections can be had: file descriptors are given back in between.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// Serves until the phase is no longer `Running`, then until the last connection has ended.
pub(crate) async fn serve(listener: TcpListener, backend: Backend) {
    let instance = Arc::clone(&backend.instance);
    let mut phase = instance.phase.subscribe();
    let mut connections = JoinSet::new();
    let mut crash = pin!(crash(&instance));
    loop {
        tokio::select! {
            biased;
            () = left(&mut phase, Phase::Running) => break,
            () = &mut crash => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    if let Some(stream) = admit(&instance, stream) {
                        let phase = instance.phase.subscribe();
                        connections.spawn(connection(stream, backend.clone(), phase));
                    }
                }
                Err(error) if is_of_the_client(&error) => {}
                Err(_) => sleep(ACCEPT_AGAIN).await,
            },
        }
    }
    drop(listener);
    // From `Draining` it only goes on to `Down`: nobody restarts what has not ended.
    let mut down = pin!(async {
        left(&mut phase, Phase::Running).await;
        left(&mut phase, Phase::Draining).await;
    });
    loop {
        tokio::select! {
            biased;
            () = &mut down => return connections.shutdown().await,
            ended = connections.join_next() => if ended.is_none() {
                return;
            },
        }
    }
}

/// Returns when the phase is another.
async fn left(phase: &mut watch::Receiver<Phase>, this: Phase) {
    let _sender_lives = phase.wait_for(|phase| *phase != this).await;
}

/// Crashes when the time of a certain crash has come.
async fn crash(instance: &Instance) {
    loop {
        let at = instance.chaos().crash_at();
        let changed = instance.chaos_changed.notified();
        let Some(at) = at else {
            changed.await;
            continue;
        };
        tokio::select! {
            () = sleep_until(at) => {
                instance.meters.fault(Kind::Crash.index());
                return instance.crash();
            }
            () = changed => {}
        }
    }
}

fn admit(instance: &Instance, stream: TcpStream) -> Option<TcpStream> {
    let chaos = instance.chaos();
    if !chaos.is_empty() && chaos.refuses(instance.next_connection(), time::now()) {
        instance.meters.fault(Kind::Refuse.index());
        // Without it the client would see an end in peace. Where it cannot be set, that has to do.
        let _unset = stream.set_zero_linger();
        return None;
    }
    // Tokens are small and must not wait for one another. An error means that the client is gone.
    stream.set_nodelay(true).ok()?;
    Some(stream)
}

fn is_of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
    )
}

async fn connection(stream: TcpStream, backend: Backend, mut phase: watch::Receiver<Phase>) {
    let link = Arc::new(Link::default());
    let socket = Socket {
        stream,
        link: Arc::clone(&link),
    };
    let service = service_fn(move |request| {
        let (backend, link) = (backend.clone(), Arc::clone(&link));
        async move { backend.answer(request, Some(link)).await }
    });
    // No timer: a test with a paused clock would see its idle connections end.
    let builder = Builder::new(TokioExecutor::new());
    let mut connection = pin!(builder.serve_connection(TokioIo::new(socket), service));
    tokio::select! {
        // An error is the client's, or a fault.
        _ended = connection.as_mut() => return,
        () = left(&mut phase, Phase::Running) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ended = connection.await;
}

/// What a request may do to the connection that it came on.
#[derive(Debug, Default)]
pub(crate) struct Link {
    reset: AtomicBool,
    used: AtomicBool,
}

impl Link {
    /// Ends it with a reset, once it is closed.
    pub(crate) fn reset(&self) {
        self.reset.store(true, Relaxed);
    }

    /// Whether no request came before: then the connection has just been admitted.
    pub(crate) fn is_first(&self) -> bool {
        !self.used.swap(true, Relaxed)
    }
}

/// A stream that can be made to end with a reset.
struct Socket {
    stream: TcpStream,
    link: Arc<Link>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.link.reset.load(Relaxed) {
            // Where it cannot be set, an early end has to do.
            let _unset = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, to)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.link.reset.load(Relaxed) {
            // The end in peace would come before the reset.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
