//! Answers that are held back until they are known to be one, for layers that may ask again until then.

use std::{
    collections::VecDeque,
    error::Error,
    fmt,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use crate::{
    BoxError,
    classify::{Judge, Verdict},
};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;

/// How much of an event stream is held back while its first data are awaited.
const PEEK: usize = 16 * 1024;
/// How much of a failed answer is read to make its connection usable again.
const DRAIN: usize = 16 * 1024;

/// The response body of a service that may have been asked more than once: as the service sent it.
#[pin_project]
pub struct PeekedBody<B> {
    #[pin]
    kind: Kind<B>,
}

#[pin_project(project = KindProj)]
enum Kind<B> {
    Plain(#[pin] B),
    Peeked(Peeked<B>),
}

impl<B> PeekedBody<B> {
    /// A body of which nothing was read.
    pub fn plain(body: B) -> Self {
        let kind = Kind::Plain(body);
        Self { kind }
    }

    /// A body that begins with what was read of it.
    pub fn peeked(peeked: Peeked<B>) -> Self {
        let kind = Kind::Peeked(peeked);
        Self { kind }
    }
}

impl<B> Body for PeekedBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().kind.project() {
            KindProj::Plain(body) => body.poll_frame(cx).map_err(Into::into),
            KindProj::Peeked(peeked) => peeked.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Plain(body) => body.is_end_stream(),
            Kind::Peeked(peeked) => peeked.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Plain(body) => body.size_hint(),
            Kind::Peeked(peeked) => peeked.size_hint(),
        }
    }
}

/// The body of an event stream that nobody has seen yet.
pub struct Peeked<B> {
    /// What was read of it, and will be read again.
    frames: VecDeque<Result<Frame<Bytes>, BoxError>>,
    size: usize,
    /// Boxed, because it is polled here and then moves into the answer.
    body: Pin<Box<B>>,
    over: bool,
}

impl<B> Peeked<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    /// Nothing read yet.
    pub fn new(body: B) -> Self {
        Self {
            frames: VecDeque::new(),
            size: 0,
            body: Box::pin(body),
            over: false,
        }
    }

    /// Reads until the judge has a verdict, or the answer has begun and must be passed on.
    pub fn poll(&mut self, cx: &mut Context<'_>, judge: &mut impl Judge) -> Poll<Option<Verdict>> {
        while let Poll::Ready(frame) = self.body.as_mut().poll_frame(cx) {
            let verdict = self.keep(frame, judge);
            if verdict.is_some() || judge.begun() || self.size > PEEK {
                return Poll::Ready(verdict);
            }
        }
        Poll::Pending
    }

    fn keep(
        &mut self,
        frame: Option<Result<Frame<Bytes>, B::Error>>,
        judge: &mut impl Judge,
    ) -> Option<Verdict> {
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                let error = error.into();
                let verdict = match judge.error(&*error) {
                    // There was a head, so that the request was sent, whatever it is that broke since.
                    Verdict::Unsent => Verdict::Failure,
                    verdict => verdict,
                };
                self.over = true;
                self.frames.push_back(Err(error));
                return Some(verdict);
            }
            None => {
                self.over = true;
                return Some(judge.end(None));
            }
        };
        let verdict = match frame.data_ref() {
            Some(data) => {
                self.size += data.len().max(size_of::<Bytes>());
                judge.data(data)
            }
            None => {
                self.over = true;
                Some(judge.end(frame.trailers_ref()))
            }
        };
        self.frames.push_back(Ok(frame));
        verdict
    }

    /// The error that it ended with.
    pub fn error(&self) -> Option<&(dyn Error + 'static)> {
        let error = self.frames.back()?.as_ref().err()?;
        Some(&**error)
    }

    /// The trailers that it ended with.
    pub fn trailers(&self) -> Option<&HeaderMap> {
        self.frames.back()?.as_ref().ok()?.trailers_ref()
    }

    /// The trailers that it ended with, to add to them.
    pub fn trailers_mut(&mut self) -> Option<&mut HeaderMap> {
        self.frames.back_mut()?.as_mut().ok()?.trailers_mut()
    }

    /// Reads what is there of an answer that nobody wants.
    pub fn drain(mut self) {
        if !self.over {
            drain(self.body.as_mut());
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(frame) = self.frames.pop_front() {
            return Poll::Ready(Some(frame));
        }
        if self.over {
            return Poll::Ready(None);
        }
        self.body.as_mut().poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && (self.over || self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let data = self.frames.iter().flatten().filter_map(Frame::data_ref);
        let kept: u64 = data.map(|data| data.len() as u64).sum();
        let rest = match self.frames.back() {
            _ if !self.over => self.body.size_hint(),
            // With an exact size, HTTP/1 would leave trailers out, and end well what has ended with an error.
            Some(Err(_)) => SizeHint::default(),
            Some(Ok(frame)) if frame.is_trailers() => SizeHint::default(),
            Some(Ok(_)) | None => SizeHint::with_exact(0),
        };
        let mut all = SizeHint::new();
        if let Some(upper) = rest.upper() {
            all.set_upper(upper.saturating_add(kept));
        }
        all.set_lower(rest.lower().saturating_add(kept));
        all
    }
}

/// Reads what is there of an answer that nobody wants, so that its connection can be used again. Never waits.
pub fn drain<B: Body<Data = Bytes>>(mut body: Pin<&mut B>) {
    let mut left = DRAIN;
    let mut cx = Context::from_waker(Waker::noop());
    while !body.is_end_stream()
        && let Poll::Ready(Some(Ok(frame))) = body.as_mut().poll_frame(&mut cx)
        && let Ok(data) = frame.into_data()
        && let Some(rest) = left.checked_sub(data.len().max(size_of::<Bytes>()))
    {
        left = rest;
    }
}

impl<B> fmt::Debug for Peeked<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peeked")
            .field("size", &self.size)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

impl<B> fmt::Debug for PeekedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            Kind::Plain(_) => "plain",
            Kind::Peeked(_) => "peeked",
        };
        f.debug_tuple("PeekedBody").field(&kind).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::{io, pin::pin};

    use http::HeaderMap;

    use super::*;
    use crate::{
        classify::{Classify, Http, Sse},
        testing::{Step, Steps},
    };

    /// What is passed on of an event stream that a layer has looked into.
    fn peeked(steps: impl IntoIterator<Item = Step>) -> PeekedBody<Steps> {
        let request = http::Request::new(());
        let mut judge = Sse.start(&(&request).into());
        let response = http::Response::builder().header("content-type", "text/event-stream");
        let response = response.body(()).unwrap();
        assert_eq!(judge.head(&(&response).into()), None);
        let mut peeked = Peeked::new(Steps::new(steps));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(peeked.poll(&mut cx, &mut judge).is_ready());
        PeekedBody::peeked(peeked)
    }

    #[test]
    fn a_stream_that_breaks_was_sent_whatever_broke_it() {
        struct Refused;

        impl Body for Refused {
            type Data = Bytes;
            type Error = BoxError;

            fn poll_frame(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
                let error = io::Error::from(io::ErrorKind::ConnectionRefused);
                Poll::Ready(Some(Err(error.into())))
            }
        }

        let mut cx = Context::from_waker(Waker::noop());
        let verdict = Peeked::new(Refused).poll(&mut cx, &mut Http);
        assert_eq!(verdict, Poll::Ready(Some(Verdict::Failure)));
    }

    #[test]
    fn a_length_is_not_promised_for_what_ends_with_an_error_or_with_trailers() {
        const PING: &str = ": ping\n\n";

        for end in [
            Step::Error("connection reset"),
            Step::Trailers(HeaderMap::new()),
        ] {
            let mut body = pin!(peeked([Step::Data(PING), end]));
            let hint = body.size_hint();
            assert_eq!((hint.lower(), hint.upper()), (PING.len() as u64, None));
            let mut cx = Context::from_waker(Waker::noop());
            for _ in 0..2 {
                assert!(!body.is_end_stream());
                assert!(body.as_mut().poll_frame(&mut cx).is_ready());
            }
            assert!(body.is_end_stream());
        }
        let whole = peeked([Step::Data(PING)]);
        assert_eq!(whole.size_hint().exact(), Some(PING.len() as u64));
    }
}
