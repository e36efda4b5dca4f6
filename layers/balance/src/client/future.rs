use std::{
    cell::Cell,
    fmt,
    future::{Future, poll_fn},
    mem,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use http::Response;
use hyper::body::Incoming;
use hyper_util::client::legacy::{self, connect::CaptureConnection};
use palisade_core::{BoxError, reject::Rejected};
use tokio::runtime::Handle;

thread_local!(static DIALLED: Cell<bool> = const { Cell::new(false) });

/// Says to the request that is being polled that it makes a connection.
pub(super) fn dials() {
    DIALLED.set(true);
}

/// The response future of [`Client`](crate::Client). Dropped, it gives up on a connection that is not there yet, and on
/// an answer; with HTTP/2 others may be waiting for the connection, which is then made all the same.
pub struct ClientFuture {
    step: Step,
    /// With HTTP/2: tells when there is a connection.
    connected: Option<CaptureConnection>,
    /// It is this request that makes the connection.
    dials: bool,
}

enum Step {
    Sent(legacy::ResponseFuture),
    Refused(Rejected),
    Over,
}

impl ClientFuture {
    pub(super) fn sent(
        answer: legacy::ResponseFuture,
        connected: Option<CaptureConnection>,
    ) -> Self {
        Self {
            step: Step::Sent(answer),
            connected,
            dials: false,
        }
    }

    pub(super) fn refused(rejected: Rejected) -> Self {
        Self {
            step: Step::Refused(rejected),
            connected: None,
            dials: false,
        }
    }
}

impl Future for ClientFuture {
    type Output = Result<Response<Incoming>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Step::Sent(answer) = &mut this.step {
            let before = DIALLED.replace(false);
            let polled = Pin::new(answer).poll(cx);
            this.dials |= DIALLED.replace(before);
            let answer = ready!(polled);
            this.step = Step::Over;
            return Poll::Ready(answer.map_err(Into::into));
        }
        match mem::replace(&mut this.step, Step::Over) {
            Step::Refused(rejected) => Poll::Ready(Err(rejected.into())),
            Step::Sent(_) | Step::Over => panic!("polled after completion"),
        }
    }
}

impl Drop for ClientFuture {
    fn drop(&mut self) {
        if !self.dials {
            return;
        }
        // hyper-util has all who wait for the connection fail when the one who makes it leaves.
        if let Some(mut connected) = self.connected.take()
            && connected.connection_metadata().is_none()
            && let Step::Sent(mut answer) = mem::replace(&mut self.step, Step::Over)
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(async move {
                let mut connected = pin!(connected.wait_for_connection_metadata());
                poll_fn(|cx| {
                    if Pin::new(&mut answer).poll(cx).is_ready() {
                        return Poll::Ready(());
                    }
                    // In the poll that has found the connection: the request is dropped before it is sent.
                    connected.as_mut().poll(cx).map(drop)
                })
                .await;
            });
        }
    }
}

impl fmt::Debug for ClientFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientFuture").finish_non_exhaustive()
    }
}
