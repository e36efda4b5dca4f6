use std::{
    collections::VecDeque,
    error::Error,
    fmt,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use palisade_core::{
    BoxError,
    classify::{Judge, Verdict},
};
use pin_project::pin_project;

/// How much of an event stream is held back while its first data are awaited.
const PEEK: usize = 16 * 1024;
/// How much of a failed answer is read to make its connection usable again.
const DRAIN: usize = 16 * 1024;

/// The response body of a retried service: as the service sent it.
#[pin_project]
pub struct RetryBody<B> {
    #[pin]
    kind: Kind<B>,
}

#[pin_project(project = KindProj)]
enum Kind<B> {
    Plain(#[pin] B),
    Peeked(Peeked<B>),
}

impl<B> RetryBody<B> {
    pub(crate) fn plain(body: B) -> Self {
        let kind = Kind::Plain(body);
        Self { kind }
    }

    pub(crate) fn peeked(peeked: Peeked<B>) -> Self {
        let kind = Kind::Peeked(peeked);
        Self { kind }
    }
}

impl<B> Body for RetryBody<B>
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
pub(crate) struct Peeked<B> {
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
    pub(crate) fn new(body: B) -> Self {
        Self {
            frames: VecDeque::new(),
            size: 0,
            body: Box::pin(body),
            over: false,
        }
    }

    /// Reads until the judge has a verdict, or the answer has begun and must be passed on.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        judge: &mut impl Judge,
    ) -> Poll<Option<Verdict>> {
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
                let verdict = judge.error(&*error);
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
    pub(crate) fn error(&self) -> Option<&(dyn Error + 'static)> {
        let error = self.frames.back()?.as_ref().err()?;
        Some(&**error)
    }

    /// Reads what is there of an answer that nobody wants.
    pub(crate) fn drain(mut self) {
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
        let rest = if self.over {
            SizeHint::with_exact(0)
        } else {
            self.body.size_hint()
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
pub(crate) fn drain<B: Body<Data = Bytes>>(mut body: Pin<&mut B>) {
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

impl<B> fmt::Debug for RetryBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            Kind::Plain(_) => "plain",
            Kind::Peeked(_) => "peeked",
        };
        f.debug_tuple("RetryBody").field(&kind).finish()
    }
}
