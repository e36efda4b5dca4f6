use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::Response;
use http_body::{Body, Frame, SizeHint};
use palisade_core::BoxError;
use pin_project::pin_project;

use crate::watch::Watch;

/// A response body that fails when its time is over.
#[pin_project]
pub struct DeadlineBody<B> {
    /// `None` once it was late: what it holds is let go there and then.
    #[pin]
    inner: Option<B>,
    watch: Watch,
}

impl<B: Body> DeadlineBody<B> {
    #[inline]
    pub(crate) fn new(inner: B, watch: Watch) -> Self {
        Self {
            inner: Some(inner),
            watch,
        }
    }

    /// Hears the head of what is going to be one.
    #[inline]
    pub(crate) fn hear(response: &Response<B>, watch: &mut Watch) {
        watch.limits().head(response);
        if response.body().is_end_stream() {
            watch.end();
        }
        watch.rest();
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
        let watch = this.watch;
        let limits = watch.limits();
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
                    watch.end();
                    None
                } else {
                    watch.late()
                };
                let Some(error) = error else {
                    watch.rest();
                    return Poll::Ready(Some(Ok(frame)));
                };
                error
            }
            Poll::Ready(Some(Err(error))) => {
                limits.fail();
                return Poll::Ready(Some(Err(error.into())));
            }
            Poll::Ready(None) => {
                watch.end();
                return Poll::Ready(None);
            }
            Poll::Pending => {
                limits.wait();
                ready!(watch.elapse(cx))
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
    use std::{cell::Cell, future::poll_fn, sync::Arc, time::Duration};

    use bytes::Bytes;
    use http_body_util::{BodyExt, Empty, channel::Channel};
    use palisade_core::time;
    use tokio_test::{assert_pending, assert_ready, task};

    use super::*;
    use crate::{
        error::Limit,
        future::DeadlineFuture,
        limits::{After, Limits},
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
            let mut limits = Limits::new(time::now(), Limit::Total);
            (limits.first, limits.idle) = (first, idle);
            let (mut sender, body) = Channel::<Bytes, BoxError>::new(1);
            let (response, mut watch) = (Response::new(body), Watch::new(&tally, limits));
            DeadlineBody::hear(&response, &mut watch);
            let response = response.map(|body| DeadlineBody::new(body, watch));
            let mut body = task::spawn(Box::pin(response.into_body()));
            for _ in 0..2 {
                assert_pending!(body.enter(|cx, body| body.poll_frame(cx)));
                sender.send_data("x".into()).await.unwrap();
                let frame = assert_ready!(body.enter(|cx, body| body.poll_frame(cx)));
                assert!(frame.unwrap().unwrap().is_data());
            }
            assert_eq!(body.watch.has_timer(), is_kept, "{first:?} {idle:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_waits_with_the_timer_of_its_future_as_long_as_it_may_need_one() {
        let second = After::new(Duration::from_secs(1));
        for (first, whole, ends, goes_along) in [
            (second, After::NEVER, false, true),
            (After::NEVER, second, false, true),
            (After::NEVER, second, true, false),
            (After::NEVER, After::NEVER, false, false),
        ] {
            let tally = Arc::new(Tally::new("x".into(), Mode::Enforce));
            let mut limits = Limits::new(time::now(), Limit::Total);
            (limits.first, limits.whole) = (first, whole);
            let answer = Cell::new(None);
            let call = poll_fn(|_| match answer.take() {
                Some(answer) => Poll::Ready(Ok::<_, BoxError>(answer)),
                None => Poll::Pending,
            });
            let mut call = task::spawn(DeadlineFuture::new(call, Watch::new(&tally, limits)));
            assert_pending!(call.poll());
            let (_sender, body) = Channel::<Bytes, BoxError>::new(1);
            let body = match ends {
                true => Empty::new().map_err(BoxError::from).boxed(),
                false => body.boxed(),
            };
            answer.set(Some(Response::new(body)));
            let response = assert_ready!(call.poll()).unwrap();
            let seen = response.body().watch.has_timer();
            assert_eq!(seen, goes_along, "{first:?} {whole:?} {ends}");
            drop(call);
            let mut body = task::spawn(Box::pin(response.into_body()));
            if goes_along {
                assert_pending!(body.enter(|cx, body| body.poll_frame(cx)));
                tokio::time::advance(Duration::from_secs(1)).await;
                assert!(body.is_woken());
                let late = assert_ready!(body.enter(|cx, body| body.poll_frame(cx)));
                assert!(late.is_some_and(|late| late.is_err()));
            }
        }
    }
}
