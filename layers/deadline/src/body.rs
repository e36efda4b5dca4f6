use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::Response;
use http_body::{Body, Frame, SizeHint};
use palisade_core::BoxError;
use pin_project::pin_project;

use crate::{limits::Limits, timer::Timer};

/// A response body that fails when its time is over.
#[pin_project]
pub struct DeadlineBody<B> {
    /// `None` once it was late: what it holds is let go there and then.
    #[pin]
    inner: Option<B>,
    #[pin]
    timer: Timer,
    limits: Limits,
}

impl<B: Body> DeadlineBody<B> {
    #[inline]
    pub(crate) fn answer(response: Response<B>, mut limits: Limits) -> Response<Self> {
        limits.head(&response);
        if response.body().is_end_stream() {
            limits.end();
        }
        response.map(|inner| Self {
            inner: Some(inner),
            timer: Timer::new(),
            limits,
        })
    }
}

impl<B> Body for DeadlineBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let mut this = self.project();
        let limits = this.limits;
        let Some(mut inner) = this.inner.as_mut().as_pin_mut() else {
            return Poll::Ready(None);
        };
        let error = match inner.as_mut().poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if limits.is_done() {
                    return Poll::Ready(Some(Ok(frame)));
                }
                limits.frame(&frame);
                if let Some(trailers) = frame.trailers_ref() {
                    limits.samples.hear(trailers);
                }
                // What ends with this frame has ended, and only something later than the limit is late.
                let error = if frame.is_trailers() || inner.is_end_stream() {
                    limits.end();
                    None
                } else {
                    loop {
                        match limits.late() {
                            None => break None,
                            Some(limit) => match limits.reach(limit) {
                                None => {}
                                error => break error,
                            },
                        }
                    }
                };
                let Some(error) = error else {
                    // The next silence would only have to make another.
                    if limits.is_free() && limits.idle.is_never() {
                        this.timer.stop();
                    }
                    return Poll::Ready(Some(Ok(frame)));
                };
                error
            }
            Poll::Ready(Some(Err(error))) => {
                limits.fail();
                return Poll::Ready(Some(Err(error.into())));
            }
            Poll::Ready(None) => {
                limits.end();
                return Poll::Ready(None);
            }
            Poll::Pending => {
                limits.wait();
                ready!(limits.elapse(this.timer.as_mut(), cx))
            }
        };
        this.inner.set(None);
        Poll::Ready(Some(Err(error)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let inner = self.inner.as_ref();
        inner.map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B> fmt::Debug for DeadlineBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadlineBody")
            .field("late", &self.inner.is_none())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use bytes::Bytes;
    use http_body_util::channel::Channel;
    use palisade_core::time;
    use tokio_test::{assert_pending, assert_ready, task};

    use super::*;
    use crate::{
        error::Limit,
        limits::After,
        tally::{Mode, Tally},
    };

    #[tokio::test(start_paused = true)]
    async fn a_timer_is_kept_from_frame_to_frame_if_it_may_be_needed_again() {
        let second = After::new(Duration::from_secs(1));
        for (first, idle, is_kept) in [
            (second, After::NEVER, false),
            (After::NEVER, second, true),
            (second, second, true),
        ] {
            let tally = Arc::new(Tally::new("x".into(), Mode::Enforce));
            let mut limits = Limits::new(tally, time::now(), Limit::Total);
            (limits.first, limits.idle) = (first, idle);
            let (mut sender, body) = Channel::<Bytes, BoxError>::new(1);
            let response = DeadlineBody::answer(Response::new(body), limits);
            let mut body = task::spawn(Box::pin(response.into_body()));
            for _ in 0..2 {
                assert_pending!(body.enter(|cx, body| body.poll_frame(cx)));
                sender.send_data("x".into()).await.unwrap();
                let frame = assert_ready!(body.enter(|cx, body| body.poll_frame(cx)));
                assert!(frame.unwrap().unwrap().is_data());
            }
            assert_eq!(body.timer.is_made(), is_kept, "{first:?} {idle:?}");
        }
    }
}
