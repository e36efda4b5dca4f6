use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// A request body whose beginning was read and comes again: the same frames, trailers, errors and lengths.
pub struct PromptBody<B: Body> {
    /// Most bodies begin with a frame that is long enough: no queue for that.
    first: Option<Frame<Bytes>>,
    more: VecDeque<Frame<Bytes>>,
    end: End<B::Error>,
    rest: B,
}

#[derive(Debug)]
enum End<E> {
    /// The rest is still to come.
    Open,
    /// The rest has ended, well or with an error that nobody has heard of yet.
    Over(Option<E>),
}

/// What reading on has brought.
pub(super) enum Read<'a> {
    Data(&'a Bytes),
    /// The trailers, or nothing.
    End,
    Error,
}

impl<B: Body<Data = Bytes> + Unpin> PromptBody<B> {
    pub(super) fn new(body: B) -> Self {
        Self {
            first: None,
            more: VecDeque::new(),
            end: End::Open,
            rest: body,
        }
    }

    /// How many frames were read.
    pub(super) fn frames(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }

    /// Reads one frame ahead. Not after the end.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Read<'_>> {
        let frame = match ready!(Pin::new(&mut self.rest).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                self.end = End::Over(Some(error));
                return Poll::Ready(Read::Error);
            }
            None => {
                self.end = End::Over(None);
                return Poll::Ready(Read::End);
            }
        };
        let kept = match &mut self.first {
            None => &*self.first.insert(frame),
            Some(_) => {
                self.more.push_back(frame);
                &self.more[self.more.len() - 1]
            }
        };
        Poll::Ready(kept.data_ref().map_or(Read::End, Read::Data))
    }
}

/// Nothing but the rest is ever pinned.
impl<B: Body + Unpin> Unpin for PromptBody<B> {}

impl<B: Body<Data = Bytes> + Unpin> Body for PromptBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    #[inline]
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if let Some(frame) = self.first.take().or_else(|| self.more.pop_front()) {
            return Poll::Ready(Some(Ok(frame)));
        }
        match &mut self.end {
            End::Open => Pin::new(&mut self.rest).poll_frame(cx),
            End::Over(error) => Poll::Ready(error.take().map(Err)),
        }
    }

    fn is_end_stream(&self) -> bool {
        let read = self.first.is_none() && self.more.is_empty();
        read && match &self.end {
            End::Open => self.rest.is_end_stream(),
            End::Over(error) => error.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let frames = self.first.iter().chain(&self.more);
        let data = frames.filter_map(Frame::data_ref);
        let kept: u64 = data.map(|data| data.len() as u64).sum();
        let rest = match &self.end {
            End::Open => self.rest.size_hint(),
            End::Over(None) => SizeHint::with_exact(0),
            // Not zero while the error is still to come: a reader could take that for a good end.
            End::Over(Some(_)) => SizeHint::default(),
        };
        let mut all = SizeHint::new();
        if let Some(upper) = rest.upper() {
            all.set_upper(upper.saturating_add(kept));
        }
        all.set_lower(rest.lower().saturating_add(kept));
        all
    }
}

impl<B: Body> fmt::Debug for PromptBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frames = usize::from(self.first.is_some()) + self.more.len();
        f.debug_struct("PromptBody")
            .field("frames_read", &frames)
            .finish_non_exhaustive()
    }
}
